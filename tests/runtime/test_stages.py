"""The three stages on the fake: the plain loop's results, no hazard, nothing left behind."""

from __future__ import annotations

import warnings
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrt.errors import BackendError, OutOfMemoryError
from pixelrt.geometry import Size, TilePlan, plan_tiles
from pixelrt.runtime.device.flow_plan import flow_plan
from pixelrt.runtime.device.graphs import GraphCache, GraphedCompute
from pixelrt.runtime.device.memory import HostPool, PageableMemoryWarning
from pixelrt.runtime.device.replan import run_with_replan
from pixelrt.runtime.device.resources import DeviceBuffer, Stream
from pixelrt.runtime.device.stages import Compute, FlowShape, TileFlow
from pixelrt.runtime.tiling import run_plan
from tests.runtime.cuda_cases import Array, photo, through
from tests.runtime.fake_cuda import FakeCuda, Hazard


def network(tiles: Array, scale: int) -> Array:
    """A stand-in: negative, enlarged, and different at every place of a tile."""
    large = 255 - tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    return (large + np.arange(large.shape[2], dtype=np.uint8)[:, None]).astype(np.uint8)


def kernel(cuda: FakeCuda, scale: int) -> Compute:
    def compute(
        stream: Stream, source: DeviceBuffer, result: DeviceBuffer, shape: tuple[int, ...]
    ) -> None:
        def run(values: Array, out: Array) -> None:
            out[:] = network(values.reshape(shape), scale).reshape(-1)

        size = prod(shape)
        cuda.kernel(
            stream.handle, [(source.address, size)], [(result.address, size * scale**2)], run
        )

    return compute


def flow_shape(tiles: Array, scale: int, **options: Any) -> FlowShape:
    height, width, channels = tiles.shape[1:]
    return FlowShape(
        (height, width, channels), (height * scale, width * scale, channels), **options
    )


FLOWS = st.fixed_dictionaries(
    {
        "count": st.integers(0, 13),
        "slots": st.integers(1, 4),
        "batch": st.integers(1, 4),
        "fixed_batch": st.booleans(),
        "scale": st.integers(1, 3),
        "height": st.integers(1, 9),
        "graphs": st.booleans(),
        "seed": st.integers(0, 1 << 16),
    }
)


def run_flow(cuda: FakeCuda, flow: dict[str, Any], runs: int = 2) -> list[Array]:
    """The results of the last of ``runs`` passes."""
    tiles = photo(flow["count"], flow["height"], 5)
    shape = flow_shape(
        tiles,
        flow["scale"],
        batch=flow["batch"],
        slots=flow["slots"],
        fixed_batch=flow["fixed_batch"],
    )
    results: list[Array] = []
    with HostPool(cuda) as pool, GraphCache(cuda, capacity=3) as cache:
        compute = kernel(cuda, flow["scale"])
        if flow["graphs"]:
            compute = GraphedCompute(cache, compute)
        with TileFlow(cuda, pool, compute, shape) as stages:
            for _ in range(runs):
                results = through(stages, tiles)
            assert cuda.used("device") == shape.device_bytes
    return results


@given(FLOWS)
@settings(deadline=None, max_examples=150)
def test_the_results_are_those_of_the_plain_loop(flow: dict[str, Any]) -> None:
    cuda = FakeCuda(flow["seed"])
    results = run_flow(cuda, flow)
    cuda.assert_clean()
    tiles = photo(flow["count"], flow["height"], 5)
    assert len(results) == len(tiles)
    for result, tile in zip(results, tiles, strict=True):
        np.testing.assert_array_equal(result, network(tile[None], flow["scale"])[0])


@given(FLOWS, st.floats(0, 1), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=300)
def test_whatever_call_fails_there_is_no_hazard_and_nothing_left(
    flow: dict[str, Any], place: float, lose_device: bool, out_of_memory: bool
) -> None:
    whole = FakeCuda(flow["seed"])
    run_flow(whole, flow)
    k = int(place * (len(whole.calls) - 1))
    cuda = FakeCuda(flow["seed"], fail_at=k, lose_device=lose_device, out_of_memory=out_of_memory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PageableMemoryWarning)
        try:
            results = run_flow(cuda, flow)
        except BackendError as exc:
            first = str(exc)
        else:
            # Pinning and recording can do without; anything else must be heard of.
            first = ""
            assert whole.calls[k] in {"host_alloc", *RECORDING}
            tiles = photo(flow["count"], flow["height"], 5)
            for result, tile in zip(results, tiles, strict=True):
                np.testing.assert_array_equal(result, network(tile[None], flow["scale"])[0])
    if first and not lose_device:
        assert first.startswith(f"planted failure of {whole.calls[k]}")
    if lose_device:
        cuda.finish()
    cuda.assert_clean()


RECORDING = (
    "capture_begin",
    "capture_end",
    "graph_instantiate",
    "graph_destroy",
    "event_create",
    "kernel",
)
"""Calls within the recording of a graph, which then goes off."""


# a missing event is seen


class Forgetful(FakeCuda):
    """Leaves out one kind of ordering once the flow is set up: a wrong pipeline.

    ``edge``: (call, stream or None, event), counted in the order in which the flow makes
    them: streams copy in, compute, copy out; events copied in, computed, copied out.
    """

    edge: tuple[str, int | None, int] = ("", None, 0)
    forgotten = 0

    def stream_wait_event(self, stream: int, event: int) -> None:
        role = list(self.streams).index(stream) - 2
        if self.edge == ("wait", role, list(self.events).index(event) % 3):
            self.forgotten += 1
            return
        super().stream_wait_event(stream, event)

    def event_synchronize(self, event: int) -> None:
        if self.edge == ("host", None, list(self.events).index(event) % 3):
            self.forgotten += 1
            return
        super().event_synchronize(event)


EDGES = {
    "copy in does not wait for compute": ("wait", 0, 1),
    "compute does not wait for copy in": ("wait", 1, 0),
    "compute does not wait for copy out": ("wait", 1, 2),
    "copy out does not wait for compute": ("wait", 2, 1),
    "the host writes before copy in is done": ("host", None, 0),
    "the host reads before copy out is done": ("host", None, 2),
}


def wrong_run(seed: int, edge: tuple[str, int | None, int], slots: int) -> str:
    """What is noticed when ``edge`` is left out."""
    cuda = Forgetful(seed)
    cuda.edge = edge
    tiles = photo(4 * slots, 4, 5)
    pool = HostPool(cuda)
    # Not closed: what is left of a wrong run cannot be released in order.
    flow = TileFlow(cuda, pool, kernel(cuda, 1), flow_shape(tiles, 1, slots=slots))
    try:
        results = through(flow, tiles)
    except Hazard as exc:
        return str(exc)
    assert cuda.forgotten or edge[0] == ""
    wrong = [not np.array_equal(a, b) for a, b in zip(results, network(tiles, 1), strict=True)]
    return "wrong results" if any(wrong) else ""


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES)
def test_the_fake_sees_every_ordering_that_is_left_out(
    edge: tuple[str, int | None, int], slots: int
) -> None:
    seen = [wrong_run(seed, edge, slots) for seed in range(10)]
    if edge[0] == "wait":
        assert all("is not ordered after" in words for words in seen), seen
    else:
        assert any(seen), "noise where the host is too early"


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_with_all_of_them_nothing_is_seen(slots: int) -> None:
    assert not any(wrong_run(seed, ("", None, 0), slots) for seed in range(10))


def test_the_fake_sees_memory_that_is_freed_without_waiting() -> None:
    class NoWait(FakeCuda):
        def stream_synchronize(self, stream: int) -> None:
            pass

    cuda = NoWait()
    tiles = photo(3)

    def refuse(*_: object) -> None:
        raise KeyError

    with (
        pytest.raises(Hazard, match="is freed before"),
        HostPool(cuda) as pool,
        TileFlow(cuda, pool, kernel(cuda, 1), flow_shape(tiles, 1)) as flow,
    ):
        flow.run(range(3), lambda *_: None, refuse)


# errors of the caller


@pytest.mark.parametrize("where", ["read", "compute", "keep"])
@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt, OutOfMemoryError])
def test_an_error_of_the_caller_goes_through_and_the_flow_goes_on(
    where: str, at: int, kind: type[BaseException]
) -> None:
    cuda = FakeCuda(at)
    tiles = photo(5, 4, 4)
    calls = {"read": 0, "compute": 0, "keep": 0}
    armed = True

    def step(name: str) -> None:
        if armed and name == where and calls[name] == at:
            raise kind("planted")
        calls[name] += 1

    plain = kernel(cuda, 2)

    def compute(*args: Any) -> None:
        step("compute")
        plain(*args)

    with HostPool(cuda) as pool, TileFlow(cuda, pool, compute, flow_shape(tiles, 2)) as flow:
        with pytest.raises(kind, match="planted"):
            flow.run(range(5), lambda *_: step("read"), lambda *_: step("keep"))
        cuda.assert_idle()
        armed = False
        np.testing.assert_array_equal(through(flow, tiles), network(tiles, 2))
    cuda.assert_clean()


def test_results_cannot_be_written_to() -> None:
    cuda = FakeCuda()
    tiles = photo(2)

    def spoil(_: int, result: Array) -> None:
        result[:] = 0

    with (
        HostPool(cuda) as pool,
        TileFlow(cuda, pool, kernel(cuda, 1), flow_shape(tiles, 1)) as flow,
        pytest.raises(ValueError, match="read-only"),
    ):
        flow.run(range(2), lambda *_: None, spoil)
    cuda.assert_clean()


def test_a_device_that_is_too_small_is_an_error_that_leaves_nothing() -> None:
    tiles = photo(4)
    shape = flow_shape(tiles, 2, slots=2)
    for memory in range(0, shape.device_bytes, 500):
        cuda = FakeCuda(memory=memory)
        with HostPool(cuda) as pool, pytest.raises(OutOfMemoryError):
            TileFlow(cuda, pool, kernel(cuda, 2), shape)
        cuda.assert_clean()


def test_copies_of_one_batch_are_queued_beside_the_compute_of_another() -> None:
    """With two slots, the copy in of batch 1 need not wait for any of batch 0."""
    cuda = FakeCuda()
    tiles = photo(2)
    with (
        HostPool(cuda) as pool,
        TileFlow(cuda, pool, kernel(cuda, 1), flow_shape(tiles, 1)) as flow,
    ):
        through(flow, tiles)
    first_in, first_compute, first_out, second_in = cuda.operations[:4]
    assert [op.name for op in cuda.operations[:4]] == ["h2d", "kernel", "d2h", "h2d"]
    assert second_in.before == 1 << first_in.index
    assert not second_in.before >> first_compute.index & 1
    assert not second_in.before >> first_out.index & 1


# whole images


@given(
    st.integers(8, 40), st.integers(8, 40), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99)
)
@settings(deadline=None, max_examples=40)
def test_an_image_is_that_of_run_plan(
    height: int, width: int, scale: int, batch: int, seed: int
) -> None:
    images = photo(2, height, width)
    plan = plan_tiles(Size(height, width), Size(8, 8), 2)
    cropped = (2, height * scale - 1, width * scale, 3)
    expected, out = np.zeros(cropped, np.uint8), np.zeros(cropped, np.uint8)
    run_plan(lambda tiles: network(tiles, scale), images, plan, expected, scale=scale)
    cuda = FakeCuda(seed)
    steps: list[tuple[int, int]] = []
    tile = (plan.tile.height, plan.tile.width, 3)
    shape = FlowShape(tile, (tile[0] * scale, tile[1] * scale, 3), batch=batch)
    with HostPool(cuda) as pool, TileFlow(cuda, pool, kernel(cuda, scale), shape) as flow:
        flow_plan(flow, images, plan, out, scale=scale, progress=lambda *step: steps.append(step))
    np.testing.assert_array_equal(out, expected)
    assert steps == [(done, 2 * len(plan)) for done in range(2 * len(plan) + 1)]
    cuda.assert_clean()


def test_an_image_starts_again_with_smaller_tiles_and_keeps_nothing_of_the_first_try() -> None:
    """The device holds less than it said: planned for 64 pixels a side, 16 fit."""
    images = photo(1, 64, 64)
    cuda = FakeCuda(memory=5000)
    out = np.zeros((1, 64, 64, 3), np.uint8)
    tried: list[int] = []

    def plan_for(budget: int) -> TilePlan:
        side = next((side for side in (64, 32, 16, 8) if 4 * 3 * side**2 <= budget), None)
        if side is None:
            raise OutOfMemoryError("too small", expected="768 bytes")
        return plan_tiles(Size(64, 64), Size(side, side), 2)

    def run(plan: TilePlan) -> None:
        tried.append(plan.tile.height)
        out[:] = 0
        tile = (plan.tile.height, plan.tile.width, 3)
        with (
            HostPool(cuda) as pool,
            TileFlow(cuda, pool, kernel(cuda, 1), FlowShape(tile, tile)) as flow,
        ):
            flow_plan(flow, images, plan, out, scale=1)

    run_with_replan(plan_for, run, 1 << 20)
    expected = np.zeros_like(out)
    plan = plan_tiles(Size(64, 64), Size(16, 16), 2)
    run_plan(lambda tiles: network(tiles, 1), images, plan, expected, scale=1)
    np.testing.assert_array_equal(out, expected)
    assert tried == [64, 32, 16]
    cuda.assert_clean()


def test_pageable_memory_gives_the_same_results() -> None:
    for seed in range(5):
        cuda = FakeCuda(seed, pinnable=0)
        tiles = photo(7, 4, 5)
        with HostPool(cuda) as pool, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shape = flow_shape(tiles, 2, slots=3, batch=2)
            with TileFlow(cuda, pool, kernel(cuda, 2), shape) as flow:
                np.testing.assert_array_equal(through(flow, tiles), network(tiles, 2))
        assert [warning.category for warning in caught] == [PageableMemoryWarning]
        cuda.assert_clean()
