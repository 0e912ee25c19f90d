"""The harness on a made-up network, and what it says of wrong outputs."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrt.bench import resources
from pixelrt.bench.harness import Bench, Case, Outcome
from pixelrt.bench.reference import compare_output, compared_region
from pixelrt.bench.resources import host_peak, sampled_peak
from pixelrt.bench.scenes import scene
from pixelrt.bench.stages import StageClock
from pixelrt.bench.steady import Effort, WarmupLimits
from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt.geometry import Region, Size
from pixelrt.runtime.backends.fake import FakeBackend
from pixelrt.runtime.backends.select import Choice
from pixelrt.runtime.planning import RunOptions
from pixelrt.spec import ReceptiveField
from tests.bench.test_statistics import FakeClock
from tests.bundles import image_spec, nearest, write_bundle

EFFORT = Effort(4, warmup=WarmupLimits(0.0, max_runs=5))
SIZE = Size(48, 64)


def core(images: Any) -> Any:
    return images.repeat(2, axis=2).repeat(2, axis=3)


def route(pixels: Any) -> Any:
    return nearest()(pixels[None])[0]


def bench_of(
    bundle: Bundle, image: Callable[[Any], Any], clock: StageClock | None = None, **options: Any
) -> Outcome:
    backend = FakeBackend({"image": image, "core": core})
    with Bench(bundle, Choice(), backends=(backend,), route=route, clock=clock, **options) as bench:
        return bench.run(Case(SIZE, RunOptions()), EFFORT)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "made.pixelrt")


def test_a_right_output_is_identical(bundle: Bundle) -> None:
    found = bench_of(bundle, nearest()).result
    assert (found.fidelity.psnr, found.fidelity.max_levels) == (300.0, 0)
    assert found.fidelity.passed
    assert found.fidelity.compared_pixels == 4 * SIZE.pixels
    assert (found.output_width, found.output_height) == (128, 96)
    assert [one.psnr for one in found.fidelity.samples] == [300.0]


def test_the_output_that_was_measured_is_the_one_compared(bundle: Bundle) -> None:
    """A network that is right when it is verified, and while it warms up, then no more."""
    right = nearest()
    calls = 0

    def turning(tiles: Any) -> Any:
        nonlocal calls
        calls += 1
        out = right(tiles)
        if tiles.shape[1:3] == (48, 64) and calls > 6:
            out[:, 10:20, 10:20] ^= 0x40
        return out

    found = bench_of(bundle, turning)
    assert found.result.fidelity.max_levels == 64
    assert 20 < (found.result.fidelity.psnr or 0) < 40
    assert not found.result.fidelity.passed


def test_a_case_whose_times_change_is_not_stable(bundle: Bundle) -> None:
    clock = FakeClock()
    took = iter([1.0, 1.0, 1.0, 1.0, 1.0, 5.0, 5.0])  # three of them warm up

    def slower(tiles: Any) -> Any:
        if tiles.shape[1:3] == (48, 64):
            clock.now += next(took, 5.0)
        return nearest()(tiles)

    found = bench_of(bundle, slower, StageClock(clock)).result
    assert not found.stable
    assert "medians of its windows differ" in found.reasons[-1]
    assert found.spread > 0.1


def test_rates_follow_from_the_median(bundle: Bundle) -> None:
    clock = FakeClock()

    def second(tiles: Any) -> Any:
        clock.now += 2.0
        return nearest()(tiles)

    found = bench_of(bundle, second, StageClock(clock)).result
    assert found.stable
    assert found.latency.p50 == found.model.p50 == found.stages["compute"].p50 == 2.0
    assert found.images_per_second == 0.5
    assert found.megapixels_per_second == pytest.approx(SIZE.pixels / 1e6 / 2)
    assert found.seconds_per_megapixel == pytest.approx(2 / (SIZE.pixels / 1e6))
    assert len(found.samples) == found.latency.runs == 4


def test_nothing_is_compared_where_nothing_is_wanted(bundle: Bundle) -> None:
    found = bench_of(bundle, nearest(), reference_pixels=0, samples=False).result.fidelity
    assert found.psnr is None
    assert found.passed
    assert found.limit is None
    assert found.samples == []


def test_a_reference_that_fails_is_said(bundle: Bundle) -> None:
    def fails(_: Any) -> Any:
        raise InputError("too large")

    image = np.zeros((8, 8, 3), np.uint8)
    found = compare_output(bundle.manifest, image, route(image), fails)
    assert found.psnr is None
    assert "too large" in found.note


def test_large_outputs_are_compared_in_the_middle(tmp_path: Path) -> None:
    """The part that is read has the exact halo around the part that counts."""
    bundle = write_bundle(
        tmp_path / "wide.pixelrt", image_spec(multiple=8, minimum=8), ReceptiveField(8, 16, {})
    )
    read, kept = compared_region(bundle.manifest, Size(400, 80), 100 * 100)
    assert read == Region(152, 0, 248, 80)
    assert kept == Region(168, 0, 232, 80)
    assert compared_region(bundle.manifest, Size(90, 90), 100 * 100) == (Region(0, 0, 90, 90),) * 2
    image = scene(Size(400, 80))
    wrong = route(image)
    wrong[500, 40] ^= 0x10  # outside
    assert compare_output(bundle.manifest, image, wrong, route, 100 * 100).psnr == 300.0
    wrong[400, 40] ^= 0x10
    assert compare_output(bundle.manifest, image, wrong, route, 100 * 100).max_levels == 16


@pytest.mark.parametrize("size", [Size(1, 1), Size(37, 900), Size(1500, 20), Size(512, 512)])
def test_scenes_have_the_size_asked_for(size: Size) -> None:
    found = scene(size)
    assert found.shape == (size.height, size.width, 3)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


def test_a_large_scene_is_no_enlargement() -> None:
    """Mirrored, so that it is as detailed as the photograph."""
    photo, large = scene(Size(512, 512)), scene(Size(1000, 1100))
    assert np.array_equal(large[:512, :512], photo)
    assert np.array_equal(large[512:514, :512], photo[:-3:-1])


@pytest.mark.parametrize("kernel", [True, False])
def test_peak_of_the_process(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(resources, "_set_back", lambda: False)
    # a mapping of its own: an allocator may keep what is freed, or use what it kept
    with host_peak() as peak, mmap.mmap(-1, 80_000_000) as memory:
        block = np.frombuffer(memory, np.uint8)
        for _ in range(20):
            block += 1  # long enough for a sample
        del block
    with host_peak() as after:
        pass
    assert peak.value - peak.before > 60_000_000
    assert after.value < peak.value
    assert ("VmHWM" in peak.method) == kernel


def test_sampled_peak_sees_the_end() -> None:
    values = [5]
    with sampled_peak(lambda: values[0], "made up", interval=60) as peak:
        values[0] = 9
    assert (peak.before, peak.value) == (5, 9)
