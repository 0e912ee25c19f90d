"""The backend: plans found, refused by name, proven, run; images through them on the fakes."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pixelrt.bundle import Bundle, encode_reference
from pixelrt.cli.verify import run_checks
from pixelrt.errors import (
    BackendError,
    FidelityError,
    InputError,
    OutOfMemoryError,
    PixelrtError,
    UsageError,
)
from pixelrt.plans.facts import PlanFacts, PlanTarget, encode_facts
from pixelrt.plans.store import facts_path, plan_at
from pixelrt.runtime.backends.base import TileSession
from pixelrt.runtime.backends.fake import FakeBackend
from pixelrt.runtime.backends.onnxruntime import OnnxRuntimeCpu
from pixelrt.runtime.backends.select import BACKENDS, open_session
from pixelrt.runtime.backends.tensorrt import TensorRTBackend
from pixelrt.runtime.device.cuda import RealCuda
from pixelrt.runtime.device.memory import PageableMemoryWarning
from pixelrt.runtime.load import backend_of_plan, load
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.spec import ReceptiveField
from tests.bundles import image_spec, nearest, write_bundle
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_tensorrt import Array, TensorFormat, TensorLocation, digest
from tests.runtime.plan_cases import FUNCTIONS, GPU, Desk, core_net, image_net
from tests.runtime.test_cuda import Api

DYNAMIC = "1x8x8,2x24x24,4x64x64"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "double.pixelrt", field=ReceptiveField(1, 4, {"60dB": 2}))


@pytest.fixture
def desk(bundle: Bundle) -> Desk:
    return Desk(bundle)


def model(desk: Desk, *others: Any, **more: Any) -> ImageModel:
    return ImageModel(desk.bundle, backends=(desk.backend(), *others), **more)


def host(name: str = "fake") -> FakeBackend:
    functions = {"image": nearest(2), "core": FUNCTIONS["core"]}
    return FakeBackend(functions, name=name)


def picture(height: int, width: int, dtype: str = "uint8") -> Array:
    peak = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    return (np.random.default_rng(0).random((height, width, 3)) * peak).astype(dtype)


# --- images -----------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_images_of_every_kind(desk: Desk, dtype: str, streams: int) -> None:
    desk.build(image_net("image", DYNAMIC))
    desk.build(core_net("core", DYNAMIC), "core", name="core")
    array = picture(150, 100, dtype)
    steps: list[tuple[int, int]] = []
    with model(desk) as one, ImageModel(desk.bundle, backends=(host(),)) as plain:
        result = one(array, streams=streams, progress=lambda *step: steps.append(step))
        np.testing.assert_array_equal(result, plain(array))
        role = "image" if dtype == "uint8" else "core"
        session = one.session(role)
        assert isinstance(session, TileSession)
        assert (session.info.name, session.info.device) == ("tensorrt", GPU)
        assert session.info.precision == "float16"
        assert session.info.engine == plan_digest(desk, role)[:12]
        assert one.fidelity[role].startswith("verified now")
        assert not one.passed_over
        assert not one.notes
    assert steps[-1][0] == steps[-1][1] > 4
    desk.cuda.assert_clean()


def plan_digest(desk: Desk, role: str) -> str:
    name = "net" if role == "image" else "core"
    return plan_at(desk.bundle.root / f"engines/desk-{name}/{name}.plan").facts.sha256


def test_a_batch_for_the_float_graph(desk: Desk) -> None:
    desk.build(core_net("core", DYNAMIC), "core")
    values = np.random.default_rng(0).random((3, 3, 30, 20), np.float32)
    with model(desk) as one:
        np.testing.assert_array_equal(one.run_core(values), FUNCTIONS["core"](values))
    desk.cuda.assert_clean()


def test_the_plan_says_how_an_image_is_cut(desk: Desk) -> None:
    desk.build(image_net("image", DYNAMIC))
    with model(desk) as one:
        plan = one.plan(200, 100)
        assert 8 <= plan.tile.height <= 64
        assert plan.halo == 4
        assert one.plan(40, 50, tile="off").tile.height == 40
        assert one.plan(200, 100, tile=20).tile.height == 20
        with pytest.raises(UsageError, match="the nearest shape is 1x64x64"):
            one(picture(200, 200), tile="off")
        with pytest.raises(UsageError, match="--shapes 100x100,100x100,100x100"):
            one(picture(200, 200), tile=100)
        with pytest.raises(UsageError, match="does not take an image of 4x4"):
            one(picture(4, 4))
        with pytest.raises(UsageError, match="streams"):
            one(picture(20, 20), streams=0)
    desk.cuda.assert_clean()


def test_a_static_batched_plan(desk: Desk) -> None:
    """Four tiles of 24 at a time, always; its sample is of that size."""
    desk.build(image_net("image", "4x24x24", static=True))
    array = picture(90, 50)
    with model(desk) as one:
        np.testing.assert_array_equal(one(array), nearest(2)(array[None])[0])
        assert set(desk.world.executed) == {(4, 24, 24, 3)}
    desk.cuda.assert_clean()


def test_whole_image_statistics_run_at_once(tmp_path: Path) -> None:
    spec = image_spec(statistics="image")
    desk = Desk(write_bundle(tmp_path / "whole.pixelrt", spec, ReceptiveField(1, None)))
    desk.build(image_net("image", DYNAMIC))
    with model(desk) as one:
        np.testing.assert_array_equal(one(picture(60, 50)), nearest(2)(picture(60, 50)[None])[0])
        with pytest.raises(UsageError, match="whole image"):
            one(picture(60, 50), tile=32)
        with pytest.raises(UsageError, match="does not take"):
            one(picture(80, 50))
    desk.cuda.assert_clean()


# --- memory -----------------------------------------------------------------------------


def test_a_smaller_device_gets_smaller_tiles(desk: Desk) -> None:
    desk.build(image_net("image", "1x8x8,1x48x48,1x64x64", work_per_pixel=100))
    array, sides = picture(120, 120), []
    for memory in (1 << 24, 400_000, 150_000):
        desk.cuda = FakeCuda(memory=memory)
        desk.__post_init__()
        with model(desk) as one:
            np.testing.assert_array_equal(one(array), nearest(2)(array[None])[0])
            sides.append(one.plan(120, 120).tile.height)
            assert not one.notes, "planned right at once"
        assert desk.cuda.peak <= memory
        desk.cuda.assert_clean()
    assert sides == sorted(sides, reverse=True)
    assert len(set(sides)) > 1


def test_out_of_memory_in_the_middle_starts_the_image_again(desk: Desk) -> None:
    """The device says it has four times what it has."""

    class Boastful(FakeCuda):
        boast = 1

        def memory_info(self) -> tuple[int, int]:
            free, total = super().memory_info()
            return free * self.boast, total * self.boast

    desk.cuda = cuda = Boastful(memory=300_000)
    desk.__post_init__()
    desk.build(image_net("image", "1x8x8,1x48x48,1x64x64", work_per_pixel=100))
    array = picture(150, 150)
    steps: list[int] = []
    with model(desk) as one:
        one.session()
        cuda.boast = 4
        result = one(array, progress=lambda done, _: steps.append(done))
        np.testing.assert_array_equal(result, nearest(2)(array[None])[0])
        assert "out of device memory" in one.notes[0]
        assert "again from the start" in one.notes[0]
    cuda.assert_clean()


def test_below_the_smallest_plan_the_numbers_are_told(desk: Desk) -> None:
    desk.build(image_net("image", "1x8x8,1x48x48,1x64x64", work_per_pixel=4000))
    with model(desk) as one:
        session = one.session()
        assert isinstance(session, TileSession)
        session.trim()
        desk.cuda.memory = desk.cuda.used("device") + 200_000
        with pytest.raises(OutOfMemoryError) as caught:
            one(picture(150, 150))
        assert "MiB for a tile of 9x9 (halo 4)" in caught.value.expected
        assert "MiB to work in" in caught.value.found
        desk.cuda.memory = 1 << 30
        with pytest.raises(OutOfMemoryError, match="too small"):
            one(picture(150, 150), max_memory=100_000)
        assert one(picture(20, 20)).shape == (40, 40, 3)
    desk.cuda.assert_clean()


# --- what fits and what does not -----------------------------------------------------------


Spoil = Callable[[Path], None]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit_facts(path: Path, **changes: Any) -> None:
    facts = path.with_name(path.name + ".json")
    told = json.loads(facts.read_bytes())
    told["facts"] |= changes
    facts.write_text(json.dumps(told))


DAMAGE: dict[str, tuple[Spoil, str]] = {
    "an altered plan": (lambda p: flip(p, -3), "was altered: its sha256 is another"),
    "a truncated plan": (lambda p: p.write_bytes(p.read_bytes()[:-20]) and None, "bytes, not"),
    "a missing plan": (
        lambda p: p.rename(p.with_name("away")) and None,
        "no plan of the image graph",
    ),
    "altered facts": (lambda p: edit_facts(p, precision="float32"), "does not fit its seal"),
    "facts of another format": (lambda p: edit_facts(p, format=7), "format 7, not 1"),
    "facts that are none": (
        lambda p: p.with_name(p.name + ".json").write_text("{}") and None,
        "does not describe a plan",
    ),
    "missing facts": (lambda p: p.with_name(p.name + ".json").unlink(), "cannot be used as a plan"),
    "an altered sample": (
        lambda p: flip(p.with_name("net.plan.sample.npz"), 40),
        "sample.npz was altered",
    ),
    "a missing sample": (lambda p: p.with_name("net.plan.sample.npz").unlink(), "sample.npz"),
    "a writable plan": (lambda p: p.chmod(0o666), "no file of ours"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_damaged_is_named_and_never_loaded(desk: Desk, case: str) -> None:
    path = desk.build(image_net("image", DYNAMIC))
    spoil, words = DAMAGE[case]
    spoil(path)
    with model(desk, host()) as one:
        assert one.info.name == "fake"
        assert words in "\n".join(map(str, one.passed_over))
    with pytest.raises(PixelrtError, match="(?s)" + words):
        model(desk, backend="tensorrt")(picture(20, 20))
    assert not desk.world.executed
    desk.cuda.assert_clean()


def test_a_foreign_file_under_right_facts(desk: Desk) -> None:
    """Sealed by someone, but no plan: TensorRT's own words, and the next backend."""
    path = desk.build(image_net("image", DYNAMIC))
    facts = plan_at(path).facts
    body = b"\x7fELF no plan"
    entry = msgspec.structs.replace(facts.files["net.plan"], sha256=digest(body), bytes=len(body))
    path.write_bytes(body)
    sealed(path, msgspec.structs.replace(facts, files={**facts.files, "net.plan": entry}))
    with model(desk, host()) as one:
        assert one.info.name == "fake"
        (passed,) = one.passed_over
        assert "could not load the plan" in passed.reason
        assert "header.magicTag" in passed.reason
    desk.cuda.assert_clean()


def sealed(path: Path, facts: PlanFacts) -> None:
    facts_path(path).write_bytes(encode_facts(facts))


WRONG_FACTS: dict[str, tuple[Any, str]] = {
    "profiles": (image_net("image", "1x8x8,2x24x24,4x96x96"), "profile 0 is"),
    "more profiles": (image_net("image", DYNAMIC, "1x8x8"), "2 profiles, not 1"),
    "static": (image_net("image", "1x24x24", static=True), "takes (1, 24, 24, 3) only"),
    "types": (
        replace(
            image_net("image", DYNAMIC),
            source=replace(image_net("image", DYNAMIC).source, dtype="float32"),
        ),
        "image is FLOAT, not uint8",
    ),
    "names": (core_net("core", DYNAMIC), "tensors output, pixels, not image, result"),
    "dimensions": (
        replace(
            image_net("image", DYNAMIC),
            result=replace(image_net("image", DYNAMIC).result, shape=("N", "2*H", "2*W", 1)),
        ),
        "result has shape (-1, -1, -1, 1)",
    ),
}


@pytest.mark.parametrize("case", WRONG_FACTS)
def test_an_engine_that_is_not_what_its_facts_say(desk: Desk, case: str) -> None:
    net, words = WRONG_FACTS[case]
    desk.build(net, profiles=[DYNAMIC])
    with pytest.raises(InputError, match="is not what its facts say") as caught:
        model(desk, backend="tensorrt").session()
    assert words in caught.value.found
    desk.cuda.assert_clean()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"location": TensorLocation.HOST}, "image is not in device memory"),
        ({"format": TensorFormat.CHW4}, "image is not contiguous"),
        ({"swapped": True}, "image is no input"),
    ],
)
def test_tensors_of_another_kind(desk: Desk, change: dict[str, Any], words: str) -> None:
    desk.build(image_net("image", DYNAMIC))
    vars(desk.world).update(change)
    with pytest.raises(InputError, match="is not what its facts say") as caught:
        model(desk, backend="tensorrt").session()
    assert words in caught.value.found
    desk.cuda.assert_clean()


def test_an_engine_whose_result_has_another_size(desk: Desk) -> None:
    """Three times as large where the graph says two: seen before anything is written."""
    net = image_net("image", DYNAMIC)
    desk.build(replace(net, result=replace(net.result, shape=("N", "3*H", "3*W", 3))))
    with pytest.raises(BackendError, match="another size than its graph") as caught:
        model(desk, backend="tensorrt").session()
    assert caught.value.expected == "(1, 18, 18, 3)"
    desk.cuda.assert_clean()


def test_tensorrt_that_does_not_start(desk: Desk) -> None:
    desk.build(image_net("image", DYNAMIC))
    desk.world.refuse = "Runtime"
    with pytest.raises(BackendError, match="could not start") as caught:
        model(desk, backend="tensorrt").session()
    assert "planted refusal of Runtime" in caught.value.found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no npz", "allow_pickle"),
        (
            encode_reference(
                np.zeros((1, 9, 8, 3), np.uint8), np.zeros((1, 3, 18, 16), np.float32)
            ),
            "uint8 (1, 9, 8, 3)",
        ),
        (
            encode_reference(np.zeros((1, 24, 24, 3), np.uint8), np.zeros(3, np.float32)),
            "float32 (3,)",
        ),
    ],
)
def test_a_sample_that_is_none(desk: Desk, data: bytes, words: str) -> None:
    path = desk.build(image_net("image", DYNAMIC))
    facts = plan_at(path).facts
    entry = msgspec.structs.replace(facts.files["sample.npz"], sha256=digest(data), bytes=len(data))
    path.with_name("net.plan.sample.npz").write_bytes(data)
    sealed(path, msgspec.structs.replace(facts, files={**facts.files, "sample.npz": entry}))
    with pytest.raises(InputError, match=r"sample\.npz of the plan in .* is no sample") as caught:
        model(desk, backend="tensorrt").session()
    assert words in caught.value.found
    desk.cuda.assert_clean()


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "another GPU": ({"gpu": "NVIDIA Other"}, "it was tuned for NVIDIA Other, this is NVIDIA Fake"),
    "another capability": ({"capabilities": ["sm75"]}, "(sm75), this is NVIDIA Fake 100 (sm90)"),
    "another TensorRT": ({"version": "10.9.0"}, "it was built by tensorrt 10.9.0, this is 11.4.0"),
    "another CUDA": ({"cuda": "12.8"}, "it was built for CUDA 12.8, this is 13.0"),
    "another system": ({"system": "windows-amd64"}, "it was built on windows-amd64"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_plan_of_elsewhere_is_passed_over_by_name(desk: Desk, case: str) -> None:
    changes, words = MISFITS[case]
    told = {"capabilities": ["sm90"], "gpu": GPU, "cuda": "13.0", "system": "linux-x86_64"}
    target = PlanTarget("tensorrt", **{"version": "11.4.0", **told, **changes})
    desk.build(image_net("image", DYNAMIC), target=target)
    with model(desk, host()) as one:
        assert one.info.name == "fake"
        (passed,) = one.passed_over
        assert words in passed.reason
        assert "pixelrt build" in passed.reason
    for precision in ("auto", "float32"):
        with pytest.raises(BackendError) as caught:
            model(desk, backend="tensorrt", precision=precision).session()
        assert words in caught.value.found
    # the right one beside it is taken, and the other is still spoken of
    desk.build(image_net("image", DYNAMIC), name="fits")
    with model(desk) as one:
        assert one.info.name == "tensorrt"
        assert words in str(one.passed_over[0])
    desk.cuda.assert_clean()


def test_version_compatible_plans_may_bring_their_own_code(desk: Desk) -> None:
    target = PlanTarget("tensorrt", "10.9.0", ["sm90"], GPU, "13.0", "linux-x86_64")
    desk.build(image_net("image", DYNAMIC), target=target, options={"version_compatible": True})
    with model(desk) as one:
        assert one.info.name == "tensorrt"
    assert desk.world.host_code == [True]


def test_no_plan_says_how_to_build_one(desk: Desk) -> None:
    with pytest.raises(BackendError, match="has no plan of this bundle") as caught:
        model(desk, backend="tensorrt").session()
    assert f"pixelrt build {desk.bundle.root} --backend tensorrt --graph image" in str(caught.value)
    desk.build(image_net("image", DYNAMIC))
    with model(desk, host()) as one:
        assert one.session("image").info.name == "tensorrt"
        assert one.session("core").info.name == "fake"
        assert "no plan of the core graph" in str(one.passed_over[0])


def test_a_plan_of_another_bundle_does_not_count(desk: Desk, tmp_path: Path) -> None:
    other = Desk(write_bundle(tmp_path / "other.pixelrt"))
    path = other.build(image_net("image", DYNAMIC))
    folder = desk.bundle.root / "engines"
    facts = plan_at(path).facts
    graph = msgspec.structs.replace(facts.graph, sha256="f" * 64)
    shutil.copytree(path.parent, folder / "desk")
    sealed(
        folder / "desk" / "net.plan",
        msgspec.structs.replace(facts, graph=graph, bundle=desk.bundle.sha256),
    )
    with pytest.raises(BackendError) as caught:
        model(desk, backend="tensorrt").session()
    assert "it was made from another graph than graphs/image.onnx" in caught.value.found


# --- proof ------------------------------------------------------------------------------


def test_a_plan_that_is_wrong_on_this_gpu_is_not_used(desk: Desk) -> None:
    desk.functions = {**FUNCTIONS, "image": lambda x: nearest(2)(x) // 2}
    desk.__post_init__()
    desk.build(image_net("image", DYNAMIC))
    for executed in (True, False):
        desk.world.executed.clear()
        with model(desk, host()) as one:
            assert one.info.name == "fake"
            assert "does not reproduce the reference" in str(one.passed_over[0])
        assert bool(desk.world.executed) == executed, "known to fail, it is not loaded again"
    with pytest.raises(FidelityError):
        model(desk, backend="tensorrt").session()
    desk.cuda.assert_clean()


def test_the_plans_own_sample_proves_it_where_the_bundles_do_not_fit(desk: Desk) -> None:
    """The bundle's sample is 9x9: a static plan of 24 takes its own only, which must be right."""
    desk.build(image_net("image", "1x24x24", static=True))
    with model(desk) as one:
        one.session()
        assert desk.world.executed == [(1, 24, 24, 3)]
        assert [sample.name for sample in one.session().samples] == ["photo-plan"]
    shutil.rmtree(desk.bundle.root / "engines")
    desk.build(image_net("image", "1x28x28", static=True), samples=[])
    with pytest.raises(FidelityError, match="cannot be held against") as caught:
        model(desk, backend="tensorrt").session()
    assert "1x28x28" in caught.value.found
    desk.cuda.assert_clean()


@pytest.mark.parametrize("right", [True, False])
def test_weights_of_a_stripped_plan_come_from_its_graph(desk: Desk, right: bool) -> None:
    path = desk.build(image_net("image", DYNAMIC, stripped=True))
    if right:
        with model(desk) as one:
            np.testing.assert_array_equal(
                one(picture(30, 20)), nearest(2)(picture(30, 20)[None])[0]
            )
    else:
        facts, other = plan_at(path).facts, b"other weights"
        entry = msgspec.structs.replace(
            facts.files["graph.bin"], sha256=digest(other), bytes=len(other)
        )
        path.with_name("net.plan.graph.bin").write_bytes(other)
        sealed(path, msgspec.structs.replace(facts, files={**facts.files, "graph.bin": entry}))
        with pytest.raises(InputError, match=r"weights of graph\.onnx do not fit") as caught:
            model(desk, backend="tensorrt").session()
        assert "conv.weight" in caught.value.found
    desk.cuda.assert_clean()


def test_a_stripped_plan_without_its_graph(desk: Desk) -> None:
    desk.build(image_net("image", DYNAMIC), options={"strip_plan": True})
    with pytest.raises(InputError, match="stripped of its weights") as caught:
        model(desk, backend="tensorrt").session()
    assert "0 graphs beside it" in caught.value.found
    desk.cuda.assert_clean()


def test_verify_checks_the_plan_that_fits_and_speaks_of_the_other(desk: Desk) -> None:
    target = PlanTarget("tensorrt", "10.9.0", ["sm90"], GPU, "13.0", "linux-x86_64")
    desk.build(image_net("image", DYNAMIC), target=target)
    desk.build(image_net("image", DYNAMIC), name="fits")
    checks, absent = run_checks(desk.bundle, (desk.backend(), host()))
    assert [(one.info.name, one.role, one.sample.name) for one in checks if one.passed] == [
        ("tensorrt", "image", "photo-small"),
        ("tensorrt", "image", "photo-plan"),
        ("fake", "core", "photo-small"),
        ("fake", "image", "photo-small"),
    ]
    told = "\n".join(map(str, absent))
    assert "tensorrt, image graph: " in told
    assert "it was built by tensorrt 10.9.0" in told
    assert "no plan of the core graph" in told
    desk.cuda.assert_clean()


# --- a plan that the user names -----------------------------------------------------------


def test_a_plan_of_the_users_is_the_only_one(desk: Desk, tmp_path: Path) -> None:
    path = desk.build(image_net("image", DYNAMIC), name="one")
    desk.build(image_net("image", DYNAMIC), name="two", precision="float32")
    away = tmp_path / "away"
    shutil.copytree(path.parent, away)
    for file in list(away.iterdir()):
        file.rename(away / file.name.replace("one.plan", "renamed.plan"))
    plan = plan_at(away / "renamed.plan")
    with ImageModel(desk.bundle, backends=(desk.backend(plan),)) as one:
        assert one.info.engine == plan.facts.sha256[:12]
        with pytest.raises(BackendError, match=r"(?s)was made from the image graph, not from core"):
            one(picture(20, 20, "uint16"))


def test_load_takes_a_plan(desk: Desk) -> None:
    path = desk.build(image_net("image", DYNAMIC))
    backend = backend_of_plan(path)
    assert isinstance(backend, TensorRTBackend)
    assert backend.name == "tensorrt"
    assert load(desk.bundle.root, plan=path, backend="tensorrt").bundle.sha256
    with pytest.raises(UsageError, match="does not run on onnxruntime-cpu"):
        load(desk.bundle.root, plan=path, backend="onnxruntime-cpu")
    with pytest.raises(InputError, match="cannot be used as a plan"):
        load(desk.bundle.root, plan=desk.bundle.root / "graphs" / "core.onnx")


# --- what is not there --------------------------------------------------------------------


def test_the_order_of_auto() -> None:
    assert [one.name for one in BACKENDS][:2] == ["tensorrt", "tensorrt-rtx"]
    assert isinstance(BACKENDS[-1], OnnxRuntimeCpu)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"installed": lambda _: False}, "tensorrt is not installed; pip install 'pixelrt[tens"),
        (
            {"cuda": lambda: _raise(BackendError("cudaSetDevice failed", hint="exclusive mode"))},
            "cudaSetDevice failed; exclusive mode",
        ),
        (
            {"load": lambda _: _raise(BackendError("tensorrt is installed but does not load"))},
            "tensorrt is installed but does not load",
        ),
    ],
)
def test_what_is_missing_has_its_words(desk: Desk, change: dict[str, Any], words: str) -> None:
    machine = replace(desk.machine, **change)
    backend = TensorRTBackend("tensorrt", machine=machine)
    assert words in backend.missing()
    opened = open_session(desk.bundle, "image", backends=(backend, host()))
    assert words in str(opened.passed_over[0])
    assert opened.session.info.name == "fake"


def _raise(error: Exception) -> Any:
    raise error


def test_this_machine_says_what_it_lacks() -> None:
    """The real look at the real machine: whatever it is, words or nothing, never an exception."""
    for flavour in ("tensorrt", "tensorrt-rtx"):
        reason = TensorRTBackend(flavour).missing()  # type: ignore[arg-type]
        assert "\n" not in reason
        if reason:
            assert "install" in reason or "GPU" in reason or "driver" in reason


# --- errors release everything --------------------------------------------------------------


@pytest.mark.parametrize("lose_device", [False, True])
def test_every_call_that_fails_while_an_image_runs_is_told_and_leaves_nothing(
    desk: Desk, lose_device: bool
) -> None:
    desk.build(image_net("image", DYNAMIC))
    array = picture(60, 40)

    def run() -> str:
        try:
            with model(desk) as one:
                result = one(array, streams=2)
                np.testing.assert_array_equal(result, nearest(2)(array[None])[0])
                return ""
        except BackendError as exc:
            return str(exc)

    run()  # the verdict is known from here on
    desk.cuda = FakeCuda(1)
    desk.__post_init__()
    assert not run()
    calls = list(desk.cuda.calls)
    heard = 0
    for k in range(len(calls)):
        desk.cuda = FakeCuda(1, fail_at=k, lose_device=lose_device)
        desk.__post_init__()
        with warnings_off():
            words = run()
        heard += "planted failure" in words
        if lose_device:
            desk.cuda.finish()
        desk.cuda.assert_clean()
    assert heard > len(calls) / 2


@contextmanager
def warnings_off() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PageableMemoryWarning)
        yield


def test_a_lost_device_is_told_and_a_new_model_is_not_needed_to_close(desk: Desk) -> None:
    desk.build(image_net("image", DYNAMIC))
    one = model(desk)
    one(picture(60, 40))
    desk.cuda.fail_at, desk.cuda.lose_device = len(desk.cuda.calls) + 30, True
    with pytest.raises(BackendError, match="planted failure"):
        one(picture(60, 40))
    with pytest.raises(BackendError):
        one(picture(60, 40))
    with pytest.raises(BackendError):
        one.close()
    one.close()
    desk.cuda.finish()
    desk.cuda.assert_clean()


def test_cudas_words_for_a_lost_device_reach_the_user(desk: Desk) -> None:
    """The message that the real layer makes of NVIDIA's code 719."""
    desk.build(image_net("image", DYNAMIC))
    real = RealCuda(api=Api({"cudaStreamSynchronize": 719}))

    class Dying(FakeCuda):
        def _failure(self, name: str) -> BackendError:
            with pytest.raises(BackendError) as caught:
                real.stream_synchronize(11)
            return caught.value

    desk.cuda = Dying()
    desk.__post_init__()
    with model(desk) as one:
        one(picture(60, 40))
        desk.cuda.fail_call, desk.cuda.lose_device = "copy", True
        with pytest.raises(BackendError, match="unspecified launch failure") as caught:
            one(picture(60, 40))
        assert "the GPU is lost to this process" in caught.value.hint
        with pytest.raises(BackendError):
            one.close()
    desk.cuda.finish()
    desk.cuda.assert_clean()


@pytest.mark.parametrize(
    ("codes", "driver", "words"),
    [
        ({"cudaGetDeviceCount": 35}, 0, "no NVIDIA driver is installed"),
        ({"cudaGetDeviceCount": 35}, 12040, "the driver is for CUDA 12.4; update it"),
        ({"cudaGetDeviceCount": 100}, 13000, "no GPU is visible"),
        ({"cudaSetDevice": 46}, 13000, "another process holds the GPU in exclusive mode"),
    ],
)
def test_drivers_and_second_processes(
    desk: Desk, codes: dict[str, int], driver: int, words: str
) -> None:
    desk.build(image_net("image", DYNAMIC))
    machine = replace(desk.machine, cuda=lambda: RealCuda(api=Api(codes, driver)))
    backend = TensorRTBackend("tensorrt", machine=machine)
    with ImageModel(desk.bundle, backends=(backend, host())) as one:
        assert one(picture(20, 20)).shape == (40, 40, 3)
        assert words in str(one.passed_over[0])
    with pytest.raises(BackendError) as caught:
        ImageModel(desk.bundle, backend="tensorrt", backends=(backend,))(picture(20, 20))
    assert words in caught.value.found


def test_one_graphs_buffers_make_room_for_the_others(desk: Desk) -> None:
    """The device holds what either graph needs for this image, but not both."""
    desk.build(image_net("image", DYNAMIC, work_per_pixel=100))
    desk.build(core_net("core", DYNAMIC, work_per_pixel=100), "core", name="core")
    with model(desk) as one:
        for role in ("image", "core"):
            session = one.session(role)  # type: ignore[arg-type]
            assert isinstance(session, TileSession)
            session.trim()
        pixels = 64 * 64
        buffers = 2 * (3 + 12) * 4 * pixels
        desk.cuda.memory = desk.cuda.used("device") + int((100 * pixels + buffers) * 1.13)
        for dtype in ("uint8", "float32", "uint8", "uint16"):
            array = picture(64, 64, dtype)
            result = one(array, tile="off")
            np.testing.assert_array_equal(result, nearest(2)(array[None])[0])
    desk.cuda.assert_clean()
