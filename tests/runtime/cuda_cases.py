"""What the memory layer must do, on the fake and on a real device alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from math import prod
from typing import Any

import numpy as np
import pytest

from pixelrt.errors import OutOfMemoryError
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.graphs import GraphCache, GraphedCompute
from pixelrt.runtime.device.interop import between, device_array
from pixelrt.runtime.device.memory import Arena, HostPool
from pixelrt.runtime.device.resources import DeviceBuffer, Event, Stream, settled
from pixelrt.runtime.device.stages import Compute, FlowShape, TileFlow

Array = np.ndarray[Any, Any]


def copying(cuda: Cuda) -> Compute:
    """The identity: what a device can do without kernels of ours."""

    def compute(
        stream: Stream, source: DeviceBuffer, result: DeviceBuffer, shape: tuple[int, ...]
    ) -> None:
        cuda.copy(result.address, source.address, prod(shape), "d2d", stream.handle)

    return compute


def through(flow: TileFlow, tiles: Array) -> list[Array]:
    """The results of ``tiles`` in the order in which they were handed over."""
    order: list[int] = []
    results: list[Array] = []

    def read(job: int, target: Array) -> None:
        target[...] = tiles[job]

    def keep(job: int, result: Array) -> None:
        order.append(job)
        results.append(result.copy())

    flow.run(range(len(tiles)), read, keep)
    assert order == list(range(len(tiles))), "results are handed over in order"
    return results


def photo(count: int, height: int = 16, width: int = 24) -> Array:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)


def round_trip(cuda: Cuda) -> None:
    values = np.arange(100_003, dtype=np.uint32).view(np.uint8)
    with (
        HostPool(cuda) as pool,
        Stream(cuda) as stream,
        Event(cuda) as event,
        pool.take(values.size) as there,
        pool.take(values.size) as back,
        DeviceBuffer(cuda, values.size) as device,
        settled(stream),
    ):
        assert there.pinned
        there.array[:] = values
        stream.copy_in(device, there.address, values.size)
        stream.copy_out(back.address, device, values.size)
        stream.record(event)
        event.synchronize()
        assert event.done()
        np.testing.assert_array_equal(back.array, values)


def fills(cuda: Cuda) -> None:
    with (
        HostPool(cuda) as pool,
        Stream(cuda) as stream,
        pool.take(1000) as back,
        DeviceBuffer(cuda, 1000) as device,
        settled(stream),
    ):
        stream.fill(device, 7)
        stream.copy_out(back.address, device, 1000)
        stream.synchronize()
        assert set(back.array.tolist()) == {7}


def pool_reuses(cuda: Cuda) -> None:
    with HostPool(cuda) as pool:
        with pool.take(100_000) as first:
            address = first.address
        with pool.take(99_000) as second:
            assert second.address == address
            assert second.array.shape == (99_000,)


def streams_order(cuda: Cuda) -> None:
    values = photo(40).reshape(-1)
    with (
        HostPool(cuda) as pool,
        Stream(cuda) as one,
        Stream(cuda) as two,
        pool.take(values.size) as there,
        pool.take(values.size) as back,
        DeviceBuffer(cuda, values.size) as device,
        settled(one, two),
    ):
        there.array[:] = values
        one.copy_in(device, there.address, values.size)
        two.wait_for(one)
        two.copy_out(back.address, device, values.size)
        two.synchronize()
        np.testing.assert_array_equal(back.array, values)


def events_time(cuda: Cuda) -> None:
    with (
        Stream(cuda) as stream,
        Event(cuda, timing=True) as start,
        Event(cuda, timing=True) as end,
        DeviceBuffer(cuda, 1 << 20) as device,
        settled(stream),
    ):
        stream.record(start)
        stream.fill(device)
        stream.record(end)
        stream.synchronize()
        assert end.milliseconds_since(start) > 0


def flow_keeps_all(cuda: Cuda) -> None:
    for count, slots, batch, fixed in ((1, 2, 1, False), (7, 2, 1, False), (11, 3, 4, True)):
        tiles = photo(count)
        shape = FlowShape(tiles.shape[1:], tiles.shape[1:], batch, slots, fixed)
        with HostPool(cuda) as pool, TileFlow(cuda, pool, copying(cuda), shape) as flow:
            for _ in range(2):
                np.testing.assert_array_equal(through(flow, tiles), tiles)


def flow_goes_on_after_an_error(cuda: Cuda) -> None:
    tiles = photo(5)
    shape = FlowShape(tiles.shape[1:], tiles.shape[1:])

    def refuse(job: int, _: Array) -> None:
        if job == 1:
            raise KeyError("planted")

    with HostPool(cuda) as pool, TileFlow(cuda, pool, copying(cuda), shape) as flow:
        for read, keep in ((refuse, lambda *_: None), (lambda *_: None, refuse)):
            with pytest.raises(KeyError, match="planted"):
                flow.run(range(5), read, keep)
        np.testing.assert_array_equal(through(flow, tiles), tiles)


def graphs_replay(cuda: Cuda) -> None:
    tiles = photo(9)
    shape = FlowShape(tiles.shape[1:], tiles.shape[1:], slots=2)
    launches = 0

    def counted(*args: Any) -> None:
        nonlocal launches
        launches += 1
        copying(cuda)(*args)

    with HostPool(cuda) as pool, GraphCache(cuda) as cache:
        with TileFlow(cuda, pool, GraphedCompute(cache, counted), shape) as flow:
            for _ in range(3):
                np.testing.assert_array_equal(through(flow, tiles), tiles)
        assert not cache.reason
        assert len(cache) == 2
        assert launches == 4, "each of two slots runs once plainly and is recorded once"


def arena_is_shared(cuda: Cuda) -> None:
    with (
        HostPool(cuda) as pool,
        Arena(cuda) as arena,
        Stream(cuda) as one,
        Stream(cuda) as two,
        pool.take(4096) as back,
        settled(one, two),
    ):
        for stream, value in ((one, 1), (two, 2), (one, 3)):
            with arena.use(stream, 1024 * value) as memory:
                stream.fill(memory, value)
        with arena.use(two, 512) as memory:
            two.copy_out(back.address, memory, 512)
        two.synchronize()
        assert arena.size == 3072
        assert set(back.array[:512].tolist()) == {3}


def too_much_memory(cuda: Cuda) -> None:
    total = cuda.memory_info()[1]
    with pytest.raises(OutOfMemoryError, match="cudaErrorMemoryAllocation"):
        DeviceBuffer(cuda, 2 * total)
    with DeviceBuffer(cuda, 16):
        pass


def callers_stream(cuda: Cuda) -> None:
    """A caller's array that is still being written, on the caller's stream."""
    with ExitStack() as stack:
        pool = stack.enter_context(HostPool(cuda))
        theirs, ours = (stack.enter_context(Stream(cuda)) for _ in range(2))
        array, result = (stack.enter_context(DeviceBuffer(cuda, 5000)) for _ in range(2))
        back = stack.enter_context(pool.take(5000))
        stack.enter_context(settled(theirs, ours))
        theirs.fill(array, 42)
        view = device_array(_Foreign(array.address, 5000, theirs.handle))
        with between(cuda, view.stream, ours):
            cuda.copy(result.address, view.address, view.size, "d2d", ours.handle)
        theirs.fill(array, 1)
        theirs.copy_out(back.address, result, 5000)
        theirs.synchronize()
        assert set(back.array.tolist()) == {42}


def capture_that_fails(cuda: Cuda) -> None:
    """Allocating is not allowed while a stream is recorded: graphs go off, work goes on."""
    with (
        HostPool(cuda) as pool,
        Stream(cuda) as stream,
        DeviceBuffer(cuda, 64) as source,
        DeviceBuffer(cuda, 64) as result,
        pool.take(64) as back,
        settled(stream),
        GraphCache(cuda) as cache,
    ):

        def compute(*args: Any) -> None:
            copying(cuda)(*args)
            stream.synchronize()

        graphed = GraphedCompute(cache, compute)
        for value in (1, 2, 3):
            stream.fill(source, value)
            graphed(stream, source, result, (64,))
            stream.copy_out(back.address, result, 64)
            stream.synchronize()
            assert set(back.array.tolist()) == {value}
        assert cache.reason.startswith("CUDA graphs are off: ")
        assert len(cache) == 0


class _Foreign:
    """An array of another library, uint8."""

    def __init__(self, address: int, size: int, stream: int | None) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "stream": stream,
            "version": 3,
        }


CASES: tuple[Callable[[Cuda], None], ...] = (
    round_trip,
    fills,
    pool_reuses,
    streams_order,
    events_time,
    flow_keeps_all,
    flow_goes_on_after_an_error,
    graphs_replay,
    arena_is_shared,
    too_much_memory,
    callers_stream,
    capture_that_fails,
)
"""Run by ``test_memory.py`` on the fake and by ``tests/gpu/test_memory_gpu.py``."""
