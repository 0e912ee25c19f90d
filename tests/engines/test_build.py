"""Plans by TensorRT's real parser and builder; without a GPU through ``tests.engines.support``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixelrt.bundle import Bundle
from pixelrt.engines import build
from pixelrt.engines.build import (
    BuildOptions,
    BuiltPlan,
    TensorRT,
    build_plan,
    check_options,
    load_tensorrt,
    target_of,
    use_module,
)
from pixelrt.engines.report import check_precision
from pixelrt.errors import BackendError, CheckError, InputError, UsageError
from pixelrt.manifest import GraphRole
from pixelrt.plans.profiles import default_profile, parse_profile
from pixelrt.plans.target import Capability
from pixelrt.plans.tensorrt import Told, logger_of
from pixelrt.spec import TensorSpec
from tests.engines import support
from tests.engines.support import graph_file, required_tensorrt
from tests.test_families import CASES

NCHW = (TensorSpec("x", "float32", ("N", 3, "H", "W")),)
SMALL = BuildOptions((parse_profile("64x64,128x128,256x256"),))
STATIC = BuildOptions((parse_profile("64x64"),))
HEADER = '<ir_version: 8, opset_import: ["" : 18]>'
CONVOLUTION = (
    f"{HEADER} g (float[N,3,H,W] x) => (float[N,8,H,W] y)"
    " <float[8,3,3,3] w> { y = Conv<pads=[1,1,1,1]>(x, w) }"
)


@pytest.fixture(scope="session")
def trt() -> TensorRT:
    return required_tensorrt()


def built(
    bundle: Bundle,
    trt: TensorRT,
    options: BuildOptions = STATIC,
    role: GraphRole = "core",
    **more: Any,
) -> BuiltPlan:
    graph = bundle.component.graph(role)
    return build_plan(bundle.path(graph.file), graph.inputs, options, trt=trt, **more)


def weighted(path: Path, text: str, **weights: tuple[int, ...]) -> Path:
    """A graph from ONNX text with random float32 weights, in the type its text declares."""
    import numpy as np
    import onnx

    graph_file(path, text)
    model = onnx.load(path)
    del model.graph.initializer[:]
    dtypes = {"half": np.float16, "float": np.float32}
    kind = dtypes["half" if "float16[" in text else "float"]
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        values = rng.normal(size=shape).astype(kind) / 8
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    path.write_bytes(model.SerializeToString())
    return path


# --- every family -----------------------------------------------------------------------

BUILT_CASES = (
    "srgan-x2",
    "pix2pix-unet-256",
    "pix2pix-unet-128-instance",
    "cyclegan-resnet-9",
    "swin2sr-pixelshuffle-x2",
    "swin2sr-nearest-x4",
)


@pytest.mark.parametrize("role", ["core", "image"])
def test_static_and_dynamic(role: GraphRole, srgan_bundle: Bundle, trt: TensorRT) -> None:
    fixed = built(srgan_bundle, trt, STATIC, role)
    moving = built(srgan_bundle, trt, SMALL, role)
    for plan in (fixed, moving):
        assert len(plan.plan) > 10_000
        assert len(plan.sha256) == 64
        assert plan.seconds > 0
        check_precision(plan.report, "float32")
        assert plan.report.share("float32") == 1.0
    assert fixed.report.bytes_written
    assert moving.report.bytes_written is None
    work = [sum(plan.report.multiply_adds.values()) for plan in (fixed, moving)]
    assert work[1] == 4 * work[0], "the dynamic plan is counted at its optimum, twice the side"


@pytest.mark.slow
@pytest.mark.parametrize("case", BUILT_CASES)
def test_families(case: str, make_bundle: Callable[..., Bundle], trt: TensorRT) -> None:
    """Both graphs, dynamic and static; every product is found in the engine, in float32."""
    bundle = make_bundle(*CASES[case])
    profile = default_profile(bundle.manifest.image)
    for role in ("core", "image"):
        for chosen in (profile, profile.as_static()):
            plan = built(bundle, trt, BuildOptions((chosen,)), role)
            check_precision(plan.report, "float32")
            assert plan.report.multiply_adds == {
                "float32": sum(p.multiply_adds for p in plan.report.products)
            }
            assert (plan.report.bytes_written is None) == (not chosen.static)


def test_several_profiles(srgan_bundle: Bundle, trt: TensorRT) -> None:
    profiles = parse_profile("32x32,64x64,96x96"), parse_profile("1x128x128,2x160x160,4x256x256")
    plan = built(srgan_bundle, trt, BuildOptions(profiles))
    assert plan.report.shape == "1x64x64"
    said = logger_of(trt.module).told.layers
    if "ProfileInfo" in said:
        assert "OptShape: [1,3,64,64]" in said
        assert "MaxShape: [4,3,256,256]" in said


def test_a_timing_cache_is_used_again(srgan_bundle: Bundle, trt: TensorRT) -> None:
    first = built(srgan_bundle, trt)
    assert first.timing_cache
    again = built(srgan_bundle, trt, replace(STATIC, timing_cache=first.timing_cache))
    assert again.timing_cache == first.timing_cache
    assert again.report.by_kind == first.report.by_kind


def test_options_that_builders_take(srgan_bundle: Bundle, trt: TensorRT) -> None:
    options = replace(
        STATIC,
        workspace=1 << 30,
        level=5,
        max_aux_streams=0,
        tf32=False,
        hardware_compatibility="ampere_plus",
    )
    assert built(srgan_bundle, trt, options).plan


def test_two_threads_at_once(srgan_bundle: Bundle, trt: TensorRT) -> None:
    plans: list[BuiltPlan] = []
    threads = [
        threading.Thread(target=lambda o=o: plans.append(built(srgan_bundle, trt, o)))
        for o in (STATIC, SMALL)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(plan.report.shape for plan in plans) == ["1x128x128", "1x64x64"]


# --- precision --------------------------------------------------------------------------


def test_what_the_graph_says_runs(tmp_path: Path, trt: TensorRT) -> None:
    half = CONVOLUTION.replace("float[", "float16[")
    inputs = (replace(NCHW[0], dtype="float16"),)
    options = replace(STATIC, precision="float16")
    path = weighted(tmp_path / "half.onnx", half, w=(8, 3, 3, 3))
    plan = build_plan(path, inputs, options, trt=trt)
    check_precision(plan.report, "float16")
    assert plan.report.share("float16") == 1.0
    path = weighted(tmp_path / "single.onnx", CONVOLUTION, w=(8, 3, 3, 3))
    plan = build_plan(path, NCHW, options, trt=trt)
    with pytest.raises(CheckError, match="does not run in float16"):
        check_precision(plan.report, "float16")


OPERATORS = {
    "Conv<pads=[1,1,1,1]>(x, w)": ((8, 4, 3, 3), 16 * 16 * 8 * 4 * 9),
    "Conv<pads=[1,1,1,1], group=2>(x, w)": ((8, 2, 3, 3), 16 * 16 * 8 * 2 * 9),
    "ConvTranspose<strides=[2,2]>(x, w)": ((4, 8, 2, 2), 16 * 16 * 4 * 8 * 4),
    "MatMul(x, w)": ((16, 24), 4 * 16 * 16 * 24),
    'Einsum<equation="nchw,wk->nchk">(x, w)': ((16, 24), 4 * 16 * 16 * 24),
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("size", ["16x16", "8x16,16x16,32x16"])
def test_products_are_counted(operator: str, size: str, tmp_path: Path, trt: TensorRT) -> None:
    shape, work = OPERATORS[operator]
    text = f"{HEADER} g (float[N,4,H,16] x) => (float[A,B,C,D] y) {{ y = {operator} }}"
    path = weighted(tmp_path / "g.onnx", text, w=shape)
    inputs = (TensorSpec("x", "float32", ("N", 4, "H", 16)),)
    plan = build_plan(path, inputs, BuildOptions((parse_profile(size),)), trt=trt)
    assert plan.report.multiply_adds == {"float32": work}
    assert [product.node for product in plan.report.products] == ["node_y"]


# --- while it builds --------------------------------------------------------------------


def test_progress_is_seen(srgan_bundle: Bundle, trt: TensorRT) -> None:
    seen: list[tuple[str, int, int]] = []
    built(srgan_bundle, trt, progress=lambda *step: seen.append(step))
    assert len({phase for phase, _, _ in seen}) > 1
    assert all(0 <= step <= steps for _, step, steps in seen)
    assert any(step == steps > 0 for _, step, steps in seen)


def test_cancel(srgan_bundle: Bundle, trt: TensorRT) -> None:
    with pytest.raises(BackendError, match="the build was cancelled") as caught:
        built(srgan_bundle, trt, cancelled=lambda: True)
    assert "while TensorRT was in" in str(caught.value)
    assert built(srgan_bundle, trt).plan, "the next build is not disturbed"


STRUCK = """
import os, signal, sys
from pixelrt.engines.trt import Watch, in_thread

signal.signal(signal.SIGINT, signal.default_int_handler)
for _ in range(100):
    watch = Watch(None, None)

    def work():
        os.kill(os.getpid(), signal.SIGINT)  # while the caller is still starting this thread
        assert watch.stop.wait(60), "not told to stop"
        ended.append(True)

    ended = []
    try:
        in_thread(work, watch)
    except KeyboardInterrupt:
        assert ended == [True], "the thread was left behind"
    else:
        sys.exit("no KeyboardInterrupt")
assert in_thread(lambda: 7, Watch(None, None)) == 7
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""

CTRL_C = """
import os, signal, sys
from pathlib import Path
from pixelrt.engines.build import BuildOptions, build_plan
from pixelrt.plans.profiles import parse_profile
from pixelrt.spec import TensorSpec
from tests.engines.support import required_tensorrt

signal.signal(signal.SIGINT, signal.default_int_handler)
inputs = (TensorSpec("x", "float32", ("N", 3, "H", "W")),)

def built(progress):
    options, trt = BuildOptions((parse_profile("64x64"),)), required_tensorrt()
    return build_plan(Path(sys.argv[1]), inputs, options, trt=trt, progress=progress)

def strike(phase, step, steps):
    if not struck:
        struck.append(phase)
        os.kill(os.getpid(), signal.SIGINT)

struck = []
try:
    built(strike)
except KeyboardInterrupt:
    assert struck
else:
    sys.exit("no KeyboardInterrupt")
assert built(None).plan, "the next build is not disturbed"
"""


@pytest.mark.parametrize("script", [STRUCK, CTRL_C], ids=["thread", "build"])
def test_ctrl_c(script: str, tmp_path: Path, trt: TensorRT) -> None:
    path = weighted(tmp_path / "g.onnx", CONVOLUTION, w=(8, 3, 3, 3))
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_failing_callback_is_passed_on(srgan_bundle: Bundle, trt: TensorRT) -> None:
    def broken(phase: str, step: int, steps: int) -> None:
        raise ZeroDivisionError(phase)

    with pytest.raises(ZeroDivisionError):
        built(srgan_bundle, trt, progress=broken)


# --- what goes wrong --------------------------------------------------------------------


def test_a_small_workspace_in_the_builders_words(srgan_bundle: Bundle, trt: TensorRT) -> None:
    with pytest.raises(BackendError, match="could not build the small one") as caught:
        built(srgan_bundle, trt, replace(STATIC, workspace=1000), origin="the small one")
    assert "workspace" in caught.value.found
    assert "more than 1000 bytes" in caught.value.hint


def test_an_unsupported_operator_is_named(tmp_path: Path, trt: TensorRT) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 18, "my.own" : 1]> '
        "g (float[N,3,H,W] x) => (float[N,3,H,W] y) { t = Relu(x) y = my.own.Sparkle(t) }"
    )
    path = graph_file(tmp_path / "g.onnx", text, y="encoder_sparkle")
    with pytest.raises(BackendError, match="does not take my bundle") as caught:
        build_plan(path, NCHW, SMALL, trt=trt, origin="my bundle (family srgan)")
    said = str(caught.value)
    assert "'encoder_sparkle'" in said
    assert "operator Sparkle" in said
    assert "(family srgan)" in said


@pytest.mark.parametrize("keep", [0, 1, 10, 0.3, 0.9])
def test_truncated(keep: float, srgan_bundle: Bundle, tmp_path: Path, trt: TensorRT) -> None:
    whole = srgan_bundle.path("graphs/core.onnx").read_bytes()
    path = tmp_path / "core.onnx"
    path.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else int(keep)])
    with pytest.raises((InputError, BackendError)):
        build_plan(path, NCHW, SMALL, trt=trt)


@pytest.mark.parametrize("junk", [b"", b"junk", b"hello world" * 100, b"\0" * 64, b"\xff" * 64])
def test_no_model(junk: bytes, tmp_path: Path, trt: TensorRT) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(junk)
    with pytest.raises(InputError, match=r"holds no graph|is no ONNX model"):
        build_plan(path, NCHW, SMALL, trt=trt)


def test_no_file(tmp_path: Path, trt: TensorRT) -> None:
    with pytest.raises(InputError, match="there is no graph"):
        build_plan(tmp_path / "none.onnx", NCHW, SMALL, trt=trt)


@pytest.mark.parametrize("left", [None, 0, 1000])
def test_external_weights(
    left: int | None, srgan_bundle: Bundle, tmp_path: Path, trt: TensorRT
) -> None:
    """Weights beside the graph are read, from a path in any script; lost ones are an error."""
    graph = srgan_bundle.component.graph("core")
    folder = tmp_path / "Überblick 画像"
    shutil.copytree(srgan_bundle.path("graphs"), folder)
    path = folder / "core.onnx"
    assert build_plan(path, graph.inputs, STATIC, trt=trt).plan
    weights = folder / Path(graph.data[0]).name
    if left is None:
        weights.unlink()
    else:
        os.truncate(weights, left)
    with pytest.raises((InputError, BackendError)) as caught:
        build_plan(path, graph.inputs, STATIC, trt=trt)
    assert caught.value.found


def test_other_inputs_than_declared(srgan_bundle: Bundle, trt: TensorRT) -> None:
    with pytest.raises(InputError, match="other inputs") as caught:
        build_plan(srgan_bundle.path("graphs/core.onnx"), NCHW, SMALL, trt=trt)
    assert caught.value.found == "pixels"
    assert caught.value.expected == "x"


# --- options, checked before anything is built ------------------------------------------


def fake(flavour: Any, **members: Any) -> TensorRT:
    config = type("IBuilderConfig", (), members)
    return TensorRT(SimpleNamespace(IBuilderConfig=config), flavour, "11.4.0")


HALF = replace(STATIC, precision="float16")
WRONG = {
    "no profile": (BuildOptions(()), "tensorrt", "at least one profile"),
    "level": (replace(STATIC, level=6), "tensorrt", "0 to 5"),
    "workspace": (replace(STATIC, workspace=0), "tensorrt", "workspace"),
    "targets": (replace(STATIC, capabilities=(Capability(8, 9),)), "tensorrt", "this machine"),
    "dla precision": (replace(STATIC, dla_core=0), "tensorrt", "computes in float16"),
    "dla shapes": (replace(HALF, dla_core=0, profiles=SMALL.profiles), "tensorrt", "fixed shapes"),
    "dla bound": (replace(HALF, dla_core=0, version_compatible=True), "tensorrt", "bound to"),
    "rtx hardware": (
        replace(STATIC, hardware_compatibility="ampere_plus"),
        "tensorrt-rtx",
        "no hardware compatibility",
    ),
    "rtx dla": (
        replace(HALF, dla_core=0, version_compatible=True),
        "tensorrt-rtx",
        "no version compatibility and no DLA",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_that_cannot_work(case: str) -> None:
    options, flavour, said = WRONG[case]
    with pytest.raises(UsageError) as caught:
        check_options(options, fake(flavour))
    assert said in str(caught.value)


def test_targets_need_bindings_that_choose_them() -> None:
    options = replace(STATIC, capabilities=(Capability(8, 9),))
    with pytest.raises(BackendError, match="cannot choose the GPUs"):
        check_options(options, fake("tensorrt-rtx"))
    check_options(options, fake("tensorrt-rtx", set_compute_capability=None))
    assert str(target_of(options, fake("tensorrt-rtx"))).startswith("tensorrt-rtx-11.4.0-sm89-")


def test_targets_are_told_to_tensorrt_for_rtx(srgan_bundle: Bundle) -> None:
    rtx = required_tensorrt("tensorrt-rtx")
    plans = set()
    for capabilities in ((Capability(8, 9),), (Capability(8, 6), Capability(12, 0))):
        options = replace(STATIC, capabilities=capabilities)
        check_options(options, rtx)
        plans.add(built(srgan_bundle, rtx, options).sha256)
    assert len(plans) == 2
    with pytest.raises(BackendError, match="does not build for sm90"):
        built(srgan_bundle, rtx, replace(STATIC, capabilities=(Capability(9, 0),)))


def test_a_foreign_timing_cache_is_left_out() -> None:
    config = SimpleNamespace(
        create_timing_cache=lambda timings: timings,
        set_timing_cache=lambda cache, ignore_mismatch: cache == b"",
    )
    told = Told()
    job = SimpleNamespace(options=replace(STATIC, timing_cache=b"foreign"), told=told)
    build._Build._set_timings(job, config)  # type: ignore[arg-type]
    assert told.warnings == ["the timing cache does not fit and was left out"]


@pytest.mark.parametrize("option", ["refit", "strip_plan"])
def test_refit_needs_a_gpu(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> Any:
        raise BackendError("no", found="CUDA error 35")

    monkeypatch.setattr("pixelrt.engines.options.detect_target", none)
    with pytest.raises(BackendError, match="with a GPU only") as caught:
        check_options(replace(STATIC, **{option: True}), fake("tensorrt"))
    assert caught.value.found == "CUDA error 35"


def test_a_dla_that_is_not_there(tmp_path: Path, trt: TensorRT) -> None:
    """TensorRT itself says nothing and builds for the GPU."""
    path = weighted(tmp_path / "g.onnx", CONVOLUTION, w=(8, 3, 3, 3))
    with pytest.raises(BackendError, match="there is no DLA core 7"):
        build_plan(path, NCHW, replace(HALF, dla_core=7), trt=trt)


# --- finding TensorRT -------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_missing(flavour: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, flavour.replace("-", "_"), None)
    with pytest.raises(BackendError, match="is not installed") as caught:
        load_tensorrt(flavour)
    assert f"pixelrt[{flavour}]" in caught.value.hint


def test_installed_but_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(BackendError, match="does not load") as caught:
        load_tensorrt("tensorrt")
    assert "libnvinfer.so.11" in caught.value.found


@pytest.mark.parametrize("version", ["8.6.1", "9.0", "12.0", "", "x"])
def test_unknown_versions(version: str) -> None:
    with pytest.raises(BackendError, match="not supported"):
        use_module(SimpleNamespace(__version__=version), "tensorrt")
    assert use_module(SimpleNamespace(__version__="10.16.0"), "tensorrt").major == 10


def test_the_options_name_everything_but_the_timings() -> None:
    fields = set(STATIC.__dataclass_fields__)
    assert set(STATIC.as_json()) == fields - {"timing_cache"}
    assert STATIC.as_json()["profiles"] == ["1x64x64"]


def test_ci_does_not_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TensorRT and without the wheels: a failure in CI, a skip elsewhere."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(support, "real_tensorrt", support.real_tensorrt.__wrapped__)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI must run"):
        required_tensorrt()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="tensorrt_bindings"):
        required_tensorrt()


# --- the engine inspector, where there is a GPU ------------------------------------------


class Inspected:
    """The builder's module with a runtime that loads plans, as on a machine with a GPU."""

    def __init__(self, module: Any, words: str | None) -> None:
        self._module = module
        self.words = words

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        inspector = SimpleNamespace(get_engine_information=lambda form: self.words)
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
        return SimpleNamespace(
            deserialize_cuda_engine=lambda plan: engine if self.words is not None else None
        )


@pytest.mark.parametrize(("half", "said"), [(False, ""), (True, "in float16 instead of float32")])
def test_the_inspector_is_believed(
    half: bool,
    said: str,
    srgan_bundle: Bundle,
    trt: TensorRT,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the loaded engine says counts, not the build log."""
    log = built(srgan_bundle, trt)
    monkeypatch.setattr("pixelrt.engines.build.has_gpu", lambda _: True)
    words = logger_of(trt.module).told.layers
    if half:
        words = words.replace("Float", "Half")
    fake = replace(trt, module=Inspected(trt.module, words))
    report = built(srgan_bundle, fake).report
    if half:
        with pytest.raises(CheckError, match=said):
            check_precision(report, "float32")
    else:
        assert report == log.report


def test_a_plan_that_its_own_gpu_does_not_load(
    srgan_bundle: Bundle, trt: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixelrt.engines.build.has_gpu", lambda _: True)
    with pytest.raises(BackendError, match="cannot load the plan that it has built"):
        built(srgan_bundle, replace(trt, module=Inspected(trt.module, None)))
