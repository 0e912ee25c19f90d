"""``pixelrt build`` over TensorRT's real builder."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrt.bundle import Bundle, open_bundle
from pixelrt.cli.build import command, ensure_plan
from pixelrt.cli.inspect import describe
from pixelrt.cli.terminal import phase_bar
from pixelrt.engines import build
from pixelrt.engines.build import TensorRT
from pixelrt.engines.report import report_of
from pixelrt.errors import BackendError, CheckError, FidelityError, PixelrtError, UsageError
from pixelrt.plans.facts import PlanFacts
from pixelrt.plans.store import find_plans, graph_mismatch, plan_at
from pixelrt.plans.target import Capability, Target, system_name
from pixelrt.runtime.load import bundle_path
from tests.engines.support import required_tensorrt


@pytest.fixture(autouse=True)
def rtx() -> TensorRT:
    """TensorRT for RTX builds without a GPU."""
    return required_tensorrt("tensorrt-rtx")


def run(bundle: Bundle, *arguments: Any, backend: str = "tensorrt-rtx") -> None:
    words = [str(bundle.root), "--backend", backend, *map(str, arguments)]
    command.main(words, prog_name="pixelrt build", standalone_mode=False)


def facts_of(plan: Path) -> PlanFacts:
    return plan_at(plan).facts


def test_plan_and_facts(srgan_bundle: Bundle, tmp_path: Path, capsys: Any) -> None:
    plan, copy = tmp_path / "x.plan", tmp_path / "copy.json"
    run(srgan_bundle, "--shapes", "64x64", "--report", "--json", copy, "-o", plan)
    told = capsys.readouterr()
    assert "engine layers" in told.out
    assert "node_conv2d" in told.out
    assert "100.0% of multiply-adds" in told.err
    stored = plan_at(plan)
    facts, files = stored.facts, stored.read()
    assert facts.sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert facts.bundle == srgan_bundle.sha256
    assert facts.target.capabilities == ["sm86", "sm89", "sm120"]
    assert facts.profiles == ["1x64x64"]
    assert facts.graph.role == "image"
    assert facts.graph.weights
    assert list(facts.report["multiply_adds"]) == ["float16"]
    assert facts.conversion["worst_db"] >= 60
    assert facts.conversion["share"] >= 0.9
    assert graph_mismatch(facts, srgan_bundle, srgan_bundle.component.graph("image")) == ""
    assert bytes(files["report.json"]) == copy.read_bytes()
    assert report_of(copy.read_bytes()).share("float16") == 1.0
    (sample,) = facts.samples
    assert (sample.height, sample.width) == (64, 64)
    with np.load(io.BytesIO(files[sample.file])) as arrays:
        assert arrays["input"].shape == (1, 64, 64, 3)
        assert arrays["output"].shape == (1, 3, 128, 128)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "copy.json",
        "x.plan",
        "x.plan.json",
        "x.plan.report.json",
        "x.plan.sample-1x64x64.npz",
    ]


def test_float32_on_request(srgan_bundle: Bundle, tmp_path: Path, capsys: Any) -> None:
    run(srgan_bundle, "--static", "--precision", "float32", "-o", tmp_path / "x.plan")
    facts = facts_of(tmp_path / "x.plan")
    assert list(facts.report["multiply_adds"]) == ["float32"]
    assert facts.conversion.keys() == {"precision", "sha256"}
    assert (facts.precision, facts.target_db) == ("float32", 0.0)


def test_the_key_tells_builds_apart(srgan_bundle: Bundle, tmp_path: Path) -> None:
    keys = []
    changes = (
        [],
        [],
        ["--level", "1"],
        ["--workspace", "1GB"],
        ["--graph", "core"],
        ["--precision", "float32"],
        ["--target-db", "61"],
    )
    for arguments in changes:
        run(srgan_bundle, "--static", "-q", "-o", tmp_path / "x.plan", *arguments)
        keys.append(facts_of(tmp_path / "x.plan").key)
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(keys) - 1


def test_ahead_of_time_for_other_gpus(srgan_bundle: Bundle, tmp_path: Path) -> None:
    """Each target gives a plan of its own; a foreign one is refused by TensorRT's words."""
    plans = {}
    for target in ("sm75", "8.9", "sm86,sm89,sm120"):
        run(srgan_bundle, "--static", "-q", "--target", target, "-o", tmp_path / "x.plan")
        facts = facts_of(tmp_path / "x.plan")
        plans[facts.sha256] = facts.target.capabilities
    assert list(plans.values()) == [["sm75"], ["sm89"], ["sm86", "sm89", "sm120"]]


def test_a_second_build_is_the_first_one(
    srgan_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run(srgan_bundle, "--static", "-o", tmp_path / "one.plan")
    assert "built in" in capsys.readouterr().out

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("built again")

    monkeypatch.setattr("pixelrt.engines.make.build_plan", never)
    run(srgan_bundle, "--static", "-o", tmp_path / "two.plan", "--report")
    told = capsys.readouterr().out
    assert "built before" in told
    assert "engine layers" in told
    assert plan_at(tmp_path / "one.plan").read() == plan_at(tmp_path / "two.plan").read()


def test_into_the_bundle(srgan_bundle: Bundle, tmp_path: Path, capsys: Any, rtx: TensorRT) -> None:
    """Where a run looks for it; the bundle stays the bundle that it was."""
    root = tmp_path / "copy.pixelrt"
    shutil.copytree(srgan_bundle.root, root)
    bundle = open_bundle(root)
    run(bundle, "--shapes", "8x8,64x64,128x128", "--shapes", "256x256")
    graph = bundle.component.graph("image")
    found = find_plans(open_bundle(root), graph)
    assert found.problems == ()
    here, cached = found.plans
    assert here.facts == cached.facts
    folder = root / "engines" / f"tensorrt-rtx-{rtx.version}-sm86+sm89+sm120-{system_name()}"
    assert here.place.startswith(str(folder))
    assert cached.place == f"the cache ({here.facts.key[:12]})"
    assert here.read() == cached.read()
    assert [s.name for s in here.facts.samples] == ["photo-1x64x64", "photo-1x256x256"]
    assert find_plans(bundle, bundle.component.graph("core")).plans == ()
    assert open_bundle(root).sha256 == srgan_bundle.sha256


def test_a_bundle_that_cannot_be_written(srgan_bundle: Bundle, tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "copy.pixelrt"
    shutil.copytree(srgan_bundle.root, root)
    (root / "engines").touch()
    bundle = open_bundle(root)
    run(bundle, "--static")
    told = capsys.readouterr()
    assert "the plan stays in the cache" in told.err
    assert told.out.startswith("the cache (")
    assert len(find_plans(bundle, bundle.component.graph("image")).plans) == 1


def test_the_shipped_bundle_is_left_alone(capsys: Any) -> None:
    command.main(
        ["demo", "--backend", "tensorrt-rtx", "--static"], standalone_mode=False, prog_name="build"
    )
    assert capsys.readouterr().out.startswith("the cache (")
    assert not (bundle_path("demo") / "engines").exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["--target", "sm99"], UsageError, "sm75, sm80, sm86, sm89, sm120, sm121"),
        (["--shapes", "64"], UsageError, "is no profile"),
        (["--shapes", "64x64", "--shapes", "1x64x64"], UsageError, "given twice"),
        (["--hardware-compatibility", "ampere_plus"], UsageError, "no hardware compatibility"),
        (["--dla-core", "0"], UsageError, "no DLA"),
        (["--workspace", "1kB", "--static"], BackendError, "workspace"),
    ],
)
def test_mistakes(
    arguments: list[str],
    kind: type[PixelrtError],
    said: str,
    srgan_bundle: Bundle,
    tmp_path: Path,
) -> None:
    with pytest.raises(kind) as caught:
        run(srgan_bundle, *arguments, "-o", tmp_path / "x.plan")
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_is_named(srgan_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="family srgan, variant"):
        run(srgan_bundle, "--workspace", "1kB", "--static", "-o", tmp_path / "x.plan")


def test_another_precision_is_not_written(
    srgan_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: Any, **__: Any) -> None:
        raise CheckError("the engine does not run in float16")

    monkeypatch.setattr("pixelrt.engines.make.check_precision", other)
    with pytest.raises(CheckError):
        run(srgan_bundle, "--static", "-o", tmp_path / "x.plan")
    assert list(tmp_path.iterdir()) == []


def test_timings_are_kept_in_the_cache(
    srgan_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """TensorRT measures while it builds; its bindings run here without a GPU."""
    trt = required_tensorrt()
    monkeypatch.setattr(build, "load_tensorrt", lambda _: trt)
    here = Target("tensorrt", trt.version, (Capability(8, 9),), "a GPU", "13.0", system_name())
    monkeypatch.setattr(build, "target_of", lambda *_: here)
    monkeypatch.setenv("PIXELRT_CACHE", str(tmp_path / "cache"))
    run(srgan_bundle, "--static", "-o", tmp_path / "x.plan", backend="tensorrt")
    assert "left out" not in capsys.readouterr().err
    (kept,) = (tmp_path / "cache" / "timing").iterdir()
    assert kept.stat().st_size > 0
    kept.write_bytes(b"rubbish")
    run(srgan_bundle, "--static", "--level", "1", "-o", tmp_path / "x.plan", backend="tensorrt")
    assert "The timing cache will not be used" in capsys.readouterr().err
    kept.unlink()
    kept.mkdir()
    run(srgan_bundle, "--static", "--level", "2", "-o", tmp_path / "x.plan", backend="tensorrt")
    assert "the next build measures again" in capsys.readouterr().err


def test_the_bar(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with phase_bar(enabled=True) as step:
        assert step is None, "standard error is no terminal here"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with phase_bar(enabled=True) as step:
        assert step is not None
        step("Building engine", 0, 6)
        step("Building engine", 3, 6)
    assert "Building engine" in capsys.readouterr().err


def test_inspect_tells_of_plans(srgan_bundle: Bundle, tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "copy.pixelrt"
    shutil.copytree(srgan_bundle.root, root)
    run(open_bundle(root), "--static", "-q")
    text = describe(open_bundle(root))
    assert "float16 image, tensorrt-rtx-1.7.1.116-sm86+sm89+sm120" in text
    assert "1x256x256" in text
    next((root / "engines").glob("*/*.plan.json")).write_text("{}")
    assert "does not describe a plan" in describe(open_bundle(root))


def at_hand(monkeypatch: pytest.MonkeyPatch, capability: Capability) -> None:
    """A machine with TensorRT for RTX and a GPU; TensorRT itself is not installed."""
    load = build.load_tensorrt

    def only_rtx(flavour: Any) -> TensorRT:
        if flavour == "tensorrt":
            raise BackendError("tensorrt is not installed")
        return load(flavour)

    def detect(flavour: Any, version: str, device: int = 0) -> Target:
        return Target(flavour, version, (capability,), "a GPU", "13.0", system_name())

    monkeypatch.setattr(build, "load_tensorrt", only_rtx)
    monkeypatch.setattr("pixelrt.plans.target.detect_target", detect)


def test_a_plan_is_built_once_for_the_gpu_at_hand(
    srgan_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    root = tmp_path / "copy.pixelrt"
    shutil.copytree(srgan_bundle.root, root)
    bundle = open_bundle(root)
    graph = bundle.component.graph("image")
    at_hand(monkeypatch, Capability(8, 9))
    for count in (1, 0):
        ensure_plan(bundle, shipped=False, quiet=True)
        assert capsys.readouterr().err.count("built ") == count
    assert len({one.facts.key for one in find_plans(bundle, graph).plans}) == 1
    at_hand(monkeypatch, Capability(12, 0))
    ensure_plan(bundle, shipped=False, quiet=True)
    assert len({one.facts.key for one in find_plans(bundle, graph).plans}) == 2
    at_hand(monkeypatch, Capability(9, 0))
    ensure_plan(bundle, shipped=False, quiet=True)
    told = capsys.readouterr().err
    assert "no plan was built  tensorrt: tensorrt is not installed" in told
    assert "does not build for sm90" in told


def test_a_plan_is_proven_where_its_gpu_is(
    srgan_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Here no GPU is; where one gives a wrong result, nothing is put into the bundle."""
    run(srgan_bundle, "--static", "-o", tmp_path / "x.plan")
    assert "not executed here" in capsys.readouterr().err

    def wrong(*_: Any, **__: Any) -> Any:
        raise FidelityError("the plan does not reproduce the reference")

    monkeypatch.setattr("pixelrt.runtime.backends.select.open_session", wrong)
    with pytest.raises(FidelityError):
        run(srgan_bundle, "--static", "--level", "1", "-o", tmp_path / "y.plan")
    assert not list(tmp_path.glob("y.plan*"))
