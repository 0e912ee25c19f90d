"""The GPU measurement's own parts, on the fake of the CUDA calls."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, timeline
from benchmarks.cases import TINY, Case
from benchmarks.gpu_parts import copy_rows, copy_seconds, fidelity_rows, timeline_row
from benchmarks.script import run_command
from benchmarks.timeline import PageableCuda, Span, TimelineCuda, as_cuda, merged, overlap
from pixelrt.bench.harness import Bench
from pixelrt.bench.harness import Case as Shape
from pixelrt.bench.resources import DEVICE_METHOD, device_peak
from pixelrt.bench.steady import Effort, WarmupLimits
from pixelrt.errors import BackendError
from pixelrt.fidelity import PSNR_CEILING
from pixelrt.geometry import Size
from pixelrt.runtime.backends.base import TileSession
from pixelrt.runtime.backends.select import Choice
from pixelrt.runtime.device.graphs import GraphCache, GraphedCompute
from pixelrt.runtime.device.memory import HostPool
from pixelrt.runtime.device.resources import DeviceBuffer
from pixelrt.runtime.device.stages import FlowShape, TileFlow
from pixelrt.runtime.planning import RunOptions
from pixelrt.spec import ReceptiveField
from tests.bundles import nearest, write_bundle
from tests.cli.test_bench import WellFormed
from tests.runtime.cuda_cases import copying, photo, through
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.plan_cases import Desk, image_net


@pytest.mark.parametrize("graphs", [False, True])
def test_a_flow_is_seen_as_copies_and_computing(graphs: bool) -> None:
    fake = FakeCuda()
    cuda = TimelineCuda(fake)
    tiles = photo(6)
    shape = FlowShape(tiles.shape[1:], tiles.shape[1:])
    plain = copying(as_cuda(cuda))
    with HostPool(as_cuda(cuda)) as pool, GraphCache(as_cuda(cuda)) as cache:
        compute = GraphedCompute(cache, plain) if graphs else plain
        with TileFlow(as_cuda(cuda), pool, compute, shape) as flow:
            for _ in range(3):  # plain, recorded, replayed
                cuda.begin()
                np.testing.assert_array_equal(through(flow, tiles), tiles)
                spans = cuda.end()
                kinds = [span.kind for span in spans]
                assert {kind: kinds.count(kind) for kind in timeline.KINDS} == dict.fromkeys(
                    timeline.KINDS, 6
                )
                assert all(span.end >= span.start for span in spans)
            assert len(cache) == (2 if graphs else 0)
            assert not cache.reason
            before = len(fake.events)
            through(flow, tiles)  # nothing is logged
            assert len(fake.events) == before
    fake.assert_clean()


def test_overlap_of_known_spans() -> None:
    work = [Span("compute", 10, 20), Span("compute", 15, 30)]
    spans = [*work, Span("h2d", 5, 15), Span("d2h", 40, 50)]
    facts = overlap(spans)
    assert facts["copies hidden"] == pytest.approx(5 / 20)
    assert facts["whole ms"] == 45
    assert (facts["copy in ms"], facts["compute ms"], facts["copy out ms"]) == (10, 25, 10)
    assert merged(work) == [Span("compute", 10, 30)]
    assert overlap([])["copies hidden"] == 0


def test_pictures_of_a_timeline() -> None:
    spans = [Span("h2d", 0, 25), Span("compute", 25, 75), Span("d2h", 75, 100)]
    first, *rows = timeline.as_text(spans, width=20).splitlines()
    assert first == "0 to 100.00 ms"
    assert [row.split("|")[1] for row in rows] == [
        "#####" + " " * 15, " " * 5 + "#" * 10 + " " * 5, " " * 15 + "#####",
    ]  # fmt: skip
    picture = timeline.as_svg(spans, "a < b")
    WellFormed(picture)
    boxes = re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"', picture)
    assert boxes == [("90.00", "222.50"), ("312.50", "445.00"), ("757.50", "222.50")]
    WellFormed(timeline.as_svg([], "empty"))


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("kind", ["h2d", "d2h"])
def test_copies_leave_nothing_behind(kind: Any, pinned: bool) -> None:
    fake = FakeCuda()
    cuda = fake if pinned else as_cuda(PageableCuda(fake))
    assert len(copy_seconds(cuda, 4096, kind, 5)) == 5
    fake.assert_clean()


def test_rows_of_copies_and_of_a_failure() -> None:
    rows = list(copy_rows(FakeCuda(), 4096))
    assert [row.name for row in rows] == [
        "copy in, pinned", "copy in, pageable", "copy out, pinned", "copy out, pageable",
    ]  # fmt: skip
    assert all(row.seconds and row.facts["GB/s"] > 0 for row in rows)
    (row, *_) = copy_rows(FakeCuda(memory=1), 4096)
    assert row.seconds is None
    assert row.reason
    assert "not measured" in gpu.gpu_table([row])


def test_without_a_gpu_a_message_and_exit_code_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> Any:
        raise BackendError("there is no CUDA device 0", hint="check nvidia-smi")

    monkeypatch.setattr(gpu, "RealCuda", none)
    assert run_command(gpu.main, ["--quick"]) == 4
    assert "there is no CUDA device 0" in capsys.readouterr().err


def test_peak_of_device_memory() -> None:
    fake = FakeCuda()
    before = fake.memory_info()[0]
    with DeviceBuffer(fake, 1 << 20), device_peak("tensorrt", fake) as peak:
        free, total = fake.memory_info()
    assert peak is not None
    assert peak.value == total - free == total - before + (1 << 20)
    assert peak.method == DEVICE_METHOD
    with device_peak("onnxruntime-cpu", fake) as nothing:
        assert nothing is None


# --- plans, on the fake TensorRT ----------------------------------------------------------


DYNAMIC = "1x8x8,2x24x24,4x64x64"
CASE = Case(TINY, Size(150, 100))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(write_bundle(tmp_path / "b.pixelrt", field=ReceptiveField(1, 4, {"60dB": 2})))


def test_the_timeline_of_an_image_in_tiles(desk: Desk) -> None:
    desk.build(image_net("image", DYNAMIC))
    row, spans = timeline_row(CASE, desk.bundle, "tensorrt", desk.machine)
    assert not row.reason
    kinds = [span.kind for span in spans]
    assert kinds.count("h2d") == kinds.count("d2h") > 2
    assert kinds.count("compute") >= kinds.count("h2d")
    assert 0 <= row.facts["copies hidden"] <= 1
    desk.cuda.assert_clean()


def test_every_plan_has_its_fidelity(desk: Desk) -> None:
    desk.build(image_net("image", DYNAMIC))
    desk.build(image_net("blurred", DYNAMIC), name="wrong")
    rows = list(fidelity_rows(CASE, desk.bundle, "tensorrt", desk.machine))
    good, bad = sorted((row for row in rows if row.facts), key=lambda row: -row.facts["dB"])
    assert "samples, all pass" in good.note
    assert "FAILED" in bad.note
    (core,) = (row for row in rows if "core graph" in row.name)
    assert "no plan" in core.reason
    desk.cuda.assert_clean()


def test_without_plans_the_rows_say_why(desk: Desk) -> None:
    rows = list(fidelity_rows(CASE, desk.bundle, "tensorrt", desk.machine))
    row, spans = timeline_row(CASE, desk.bundle, "tensorrt-rtx", desk.machine)
    assert [bool(one.reason) for one in (*rows, row)] == [True] * 3
    assert "not installed" in row.reason
    assert spans == []


def test_the_harness_leaves_tiles_to_a_device(desk: Desk) -> None:
    desk.build(image_net("image", DYNAMIC))
    effort = Effort(3, warmup=WarmupLimits(0.0, max_runs=3))
    backends = (desk.backend(),)
    with Bench(
        desk.bundle, Choice(), backends=backends, route=lambda p: nearest()(p[None])[0]
    ) as one:
        assert isinstance(one.session, TileSession)
        result = one.run(Shape(Size(150, 100), RunOptions()), effort).result
    assert (result.backend, result.precision) == ("tensorrt", "float16")
    assert result.fidelity.psnr == PSNR_CEILING
    assert result.plan.tiles > 1
    assert {one.graph for one in result.fidelity.samples} == {"image"}  # it has no other plan
    assert result.stages["compute"].p50 > 0
    desk.cuda.assert_clean()
