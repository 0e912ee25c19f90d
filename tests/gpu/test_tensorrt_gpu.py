"""Plans on a real GPU: built, proven, tiled, recorded, beside each other, and released.

Where ``tensorrt`` or ``tensorrt_rtx`` or the device is missing, each test skips with the reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrt.bundle import Bundle, open_bundle
from pixelrt.engines.build import BuildOptions, target_of
from pixelrt.engines.make import Made, Request, make_plan
from pixelrt.engines.refit import refitted_plan, sources_of
from pixelrt.errors import BackendError, OutOfMemoryError, UsageError
from pixelrt.fidelity import compare
from pixelrt.geometry import Size, plan_tiles
from pixelrt.manifest import GraphRole
from pixelrt.plans.profiles import default_profile, parse_profile
from pixelrt.plans.store import ENGINES, plan_at, plan_cache, write_plan
from pixelrt.plans.target import Flavour
from pixelrt.plans.tensorrt import TensorRT, load_tensorrt
from pixelrt.runtime.backends.onnxruntime import OnnxRuntimeCpu
from pixelrt.runtime.backends.tensorrt import HERE, TensorRTBackend
from pixelrt.runtime.device.cuda import CopyKind, Cuda, RealCuda
from pixelrt.runtime.device.fitting import Batch, DevicePlan
from pixelrt.runtime.device.lanes import EngineLane
from pixelrt.runtime.device.resources import DeviceBuffer, Event, Stream
from pixelrt.runtime.device.session import DeviceSession
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.tiling import run_plan
from tests.conftest import SMALL_SRGAN, resized
from tests.gpu.test_memory_gpu import SLACK
from tests.runtime.plan_cases import INFO
from tests.test_families import CASES

PROFILE = "1x32x32,1x160x160,4x320x320"


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def trt(request: pytest.FixtureRequest) -> TensorRT:
    """A TensorRT that can run here."""
    flavour: Flavour = request.param
    reason = TensorRTBackend(flavour).missing()
    if reason:
        pytest.skip(f"{flavour}: {reason}")
    return load_tensorrt(flavour)


@pytest.fixture
def no_leak() -> Iterator[None]:
    cuda = RealCuda()
    before = cuda.memory_info()[0]
    yield
    assert cuda.memory_info()[0] > before - SLACK


def build(
    bundle: Bundle, trt: TensorRT, *shapes: str, role: GraphRole = "image", **more: Any
) -> Path:
    """A plan in the bundle; gives its place."""
    profiles = tuple(map(parse_profile, shapes)) or (default_profile(bundle.manifest.image),)
    here = HERE.target(trt.flavour, trt.version)
    if trt.flavour == "tensorrt-rtx":
        more["capabilities"] = here.capabilities
    options = BuildOptions(profiles, **{"precision": "float16", **more})
    request = Request(bundle, role, options, target_of(options, trt))
    try:
        facts, files, _ = make_plan(request, trt)
    except UsageError as exc:
        pytest.skip(f"{trt} does not build for this GPU: {exc}")
    made = Made(facts, {name: memoryview(data) for name, data in files.items()}, fresh=True)
    path = bundle.root / ENGINES / str(request.target) / f"{role}-{facts.key[:12]}.plan"
    write_plan(path, made.facts, made.files)
    return path


def copied(bundle: Bundle, folder: Path) -> Bundle:
    shutil.copytree(bundle.root, folder)
    return open_bundle(folder)


@pytest.fixture
def plan(srgan_bundle: Bundle, trt: TensorRT) -> Path:
    return build(srgan_bundle, trt, PROFILE)


@contextmanager
def opened(path: Path, trt: TensorRT, *, graphs: bool = True, cuda: Cuda | None = None) -> Any:
    from pixelrt.runtime.backends.trt_loading import load_plan

    device = cuda or RealCuda()
    with DeviceSession(
        device, load_plan(trt, device, plan_at(path), INFO), graphs=graphs
    ) as session:
        yield session


def tiles_of(photo: Any, side: int, streams: int) -> DevicePlan:
    return DevicePlan(plan_tiles(Size(*photo.shape[:2]), Size(side, side), 12), Batch(), streams)


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("graphs", [True, False])
def test_tiles_are_those_of_run_plan_bit_for_bit(
    plan: Path, trt: TensorRT, photo: Any, streams: int, graphs: bool
) -> None:
    cut = tiles_of(photo, 128, streams)
    with opened(plan, trt, graphs=graphs) as session:

        def infer(tiles: Any) -> Any:
            return session.infer({"image": tiles})["result"]

        expected, out = (np.zeros((1, 600, 902, 3), np.uint8) for _ in range(2))
        run_plan(infer, photo[None], cut.tiles, expected, scale=2)
        for _ in range(3):
            out[:] = 0
            session.run_tiles(photo[None], cut, out, scale=2)
            np.testing.assert_array_equal(out, expected)
        recorded = sum(lane.recorded for lane in session._lanes)
        assert bool(recorded) == (graphs and not session.notes)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_fidelity_of_every_family(
    case: str, trt: TensorRT, make_bundle: Callable[..., Bundle], photo: Any
) -> None:
    """The plan is proven on its samples, and a photograph comes out as on the CPU."""
    bundle = make_bundle(*CASES[case])
    build(bundle, trt)
    tensorrt = TensorRTBackend(trt.flavour)
    small = resized(photo, 256, 256)
    with (
        ImageModel(bundle, backends=(tensorrt,)) as gpu,
        ImageModel(bundle, backends=(OnnxRuntimeCpu(),)) as cpu,
    ):
        got, wanted = gpu(small), cpu(small)
        assert gpu.info.name == trt.flavour
        assert "verified" in gpu.fidelity["image"]
    assert compare(wanted / 255.0, got / 255.0).psnr >= 50.0


def test_graph_precision_and_wide_images(srgan_bundle: Bundle, trt: TensorRT, photo: Any) -> None:
    build(srgan_bundle, trt, PROFILE, role="core")
    wide = photo.astype(np.uint16) * 257
    with (
        ImageModel(srgan_bundle, backends=(TensorRTBackend(trt.flavour),)) as gpu,
        ImageModel(srgan_bundle, backends=(OnnxRuntimeCpu(),)) as cpu,
    ):
        got, wanted = gpu(wide, streams=2), cpu(wide)
    assert got.dtype == np.uint16
    assert compare(wanted / 65535.0, got / 65535.0).psnr >= 60.0


@pytest.mark.usefixtures("no_leak")
def test_a_stripped_plan_gets_its_weights_back(
    srgan_bundle: Bundle, trt: TensorRT, photo: Any
) -> None:
    small = np.ascontiguousarray(resized(photo, 64, 64)[None])
    results = []
    for strip in (False, True):
        path = build(srgan_bundle, trt, "1x64x64", strip_plan=strip)
        with opened(path, trt) as session:
            results.append(session.infer({"image": small})["result"])
    assert np.abs(results[0].astype(int) - results[1]).max() <= 1


@pytest.mark.usefixtures("no_leak")
def test_a_plan_gets_the_weights_of_another_network(
    make_bundle: Callable[..., Bundle], trt: TensorRT, photo: Any, tmp_path: Path
) -> None:
    """Refitted, written and read again it gives the new network's pictures, and so back again."""
    old, new = (
        copied(make_bundle("srgan", SMALL_SRGAN, seed), tmp_path / f"{seed}.pixelrt")
        for seed in (0, 1)
    )
    build(old, trt, PROFILE, refit=True)
    small = resized(photo, 128, 128)
    for source_bundle, bundle in ((old, new), (new, old)):
        graph = source_bundle.component.graph("image")
        sources, reasons = sources_of(source_bundle, graph, HERE.target(trt.flavour, trt.version))
        assert sources, reasons
        source = sources[-1]
        made = refitted_plan(source.request(bundle), source, trt, plan_cache())
        path = bundle.root / ENGINES / "refitted" / "refitted.plan"
        write_plan(path, made.facts, made.files)
        with (
            ImageModel(bundle, backends=(TensorRTBackend(trt.flavour, plan=plan_at(path)),)) as gpu,
            ImageModel(bundle, backends=(OnnxRuntimeCpu(),)) as cpu,
        ):
            got, wanted = gpu(small), cpu(small)
            assert "verified" in gpu.fidelity["image"]
        assert compare(wanted / 255.0, got / 255.0).psnr >= 50.0


@pytest.mark.usefixtures("no_leak")
def test_too_large_for_the_device(plan: Path, trt: TensorRT, photo: Any) -> None:
    """Memory that others hold: the error has the numbers, and nothing stays behind."""
    cuda = RealCuda()
    with opened(plan, trt, cuda=cuda) as session:
        free = cuda.memory_info()[0]
        with DeviceBuffer(cuda, free - 2 * 2**20), pytest.raises(OutOfMemoryError):
            session.infer({"image": np.zeros((4, 320, 320, 3), np.uint8)})
        session.infer({"image": np.zeros((4, 320, 320, 3), np.uint8)})


def test_a_plan_cut_off_is_refused_by_tensorrt_too(plan: Path, trt: TensorRT) -> None:
    data = plan.read_bytes()
    from pixelrt.plans.store import StoredPlan
    from pixelrt.runtime.backends.trt_loading import load_plan
    from tests.runtime.plan_cases import facts_of, image_net

    for bad in (data[: len(data) // 2], b"\x7fELF" + data[4:]):
        facts = facts_of(image_net("image", PROFILE), {"net.plan": bad})
        stored = StoredPlan(facts, "a file", lambda bad=bad: {"net.plan": memoryview(bad)})
        with pytest.raises(BackendError, match="could not load"):
            load_plan(trt, RealCuda(), stored, INFO)


# --- a timeline ---------------------------------------------------------------------------


@dataclass
class Timeline:
    """Spans of work on the device in milliseconds after ``zero``."""

    zero: Event
    spans: list[tuple[str, Event, Event]] = field(default_factory=list)

    def of(self, kind: str) -> list[tuple[float, float]]:
        return [
            (start.milliseconds_since(self.zero), end.milliseconds_since(self.zero))
            for name, start, end in self.spans
            if name == kind
        ]


class TimedCuda(RealCuda):
    """Puts timing events around every copy once ``timeline`` is set."""

    timeline: Timeline | None = None

    def copy(self, destination: int, source: int, size: int, kind: CopyKind, stream: int) -> None:
        with timed(self, kind, stream):
            super().copy(destination, source, size, kind, stream)


@contextmanager
def timed(cuda: TimedCuda, kind: str, stream: int) -> Iterator[None]:
    timeline = cuda.timeline
    if timeline is None:
        yield
        return
    start, end = Event(cuda, timing=True), Event(cuda, timing=True)
    cuda.event_record(start.handle, stream)
    yield
    cuda.event_record(end.handle, stream)
    timeline.spans.append((kind, start, end))


def overlaps(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> int:
    return sum(any(a < d and c < b for c, d in other) for a, b in one)


HEAVY = {**SMALL_SRGAN, "channels": 64, "blocks": 16}
"""Enough arithmetic that the host is not what the device waits for."""


@pytest.mark.slow
def test_copies_run_beside_the_compute(
    make_bundle: Callable[..., Bundle], trt: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = build(make_bundle("srgan", HEAVY), trt, PROFILE)
    cuda = TimedCuda()
    large = np.random.default_rng(0).integers(0, 256, (1, 2048, 2048, 3), np.uint8)
    cut = tiles_of(large[0], 320, 1)
    out = np.zeros((1, 4096, 4096, 3), np.uint8)
    compute = EngineLane.__call__

    def timed_compute(lane: EngineLane, stream: Stream, *rest: Any) -> None:
        with timed(cuda, "compute", stream.handle):
            compute(lane, stream, *rest)

    monkeypatch.setattr(EngineLane, "__call__", timed_compute)
    with opened(plan, trt, cuda=cuda) as session, Stream(cuda) as stream:
        session.run_tiles(large, cut, out, scale=2)
        with Event(cuda, timing=True) as zero:
            stream.record(zero)
            cuda.timeline = Timeline(zero)
            session.run_tiles(large, cut, out, scale=2)
            computing = cuda.timeline.of("compute")
            copies = {kind: cuda.timeline.of(kind) for kind in ("h2d", "d2h")}
            for _, start, end in cuda.timeline.spans:
                start.close()
                end.close()
            cuda.timeline = None
    assert len(computing) == len(cut.tiles)
    for kind, spans in copies.items():
        assert overlaps(spans, computing) > len(spans) // 4, f"{kind} never ran beside the compute"
