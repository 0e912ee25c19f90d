"""The fake itself: every hazard that it promises to see is planted once and seen."""

from __future__ import annotations

import pytest

from pixelrt.runtime.memory import HostPool
from pixelrt.runtime.resources import DeviceBuffer, Event, Stream
from tests.runtime.fake_cuda import LEGACY, FakeCuda, Hazard

SIZE = 64


@pytest.fixture(params=range(5))
def cuda(request: pytest.FixtureRequest) -> FakeCuda:
    return FakeCuda(request.param)


def test_a_double_free(cuda: FakeCuda) -> None:
    address = cuda.malloc(SIZE)
    cuda.free(address)
    with pytest.raises(Hazard, match="double free"):
        cuda.free(address)
    pinned = cuda.host_alloc(SIZE)
    with pytest.raises(Hazard, match="double free"):
        cuda.free(pinned)


def test_memory_freed_in_use(cuda: FakeCuda) -> None:
    stream, buffer = Stream(cuda), DeviceBuffer(cuda, SIZE)
    stream.fill(buffer)
    with pytest.raises(Hazard, match="device memory is freed before fill is known to be done"):
        buffer.close()


def test_a_stream_destroyed_in_use(cuda: FakeCuda) -> None:
    stream = Stream(cuda)
    stream.fill(DeviceBuffer(cuda, SIZE))
    with pytest.raises(Hazard, match="a stream is destroyed before"):
        stream.close()


def test_a_graph_destroyed_in_use(cuda: FakeCuda) -> None:
    stream, buffer = Stream(cuda), DeviceBuffer(cuda, SIZE)
    cuda.capture_begin(stream.handle)
    stream.fill(buffer)
    executable = cuda.graph_instantiate(cuda.capture_end(stream.handle))
    cuda.executable_destroy(cuda.graph_instantiate(next(iter(cuda.graphs))))
    cuda.graph_launch(executable, stream.handle)
    with pytest.raises(Hazard, match="a graph is destroyed before"):
        cuda.executable_destroy(executable)


@pytest.mark.parametrize("what", ["memory", "pinned", "stream", "event"])
def test_leaks(cuda: FakeCuda, what: str) -> None:
    cuda.assert_clean()
    {
        "memory": lambda: cuda.malloc(SIZE),
        "pinned": lambda: cuda.host_alloc(SIZE),
        "stream": cuda.stream_create,
        "event": lambda: cuda.event_create(False),
    }[what]()
    with pytest.raises(Hazard, match="not released"):
        cuda.assert_clean()


def test_work_that_nobody_waited_for(cuda: FakeCuda) -> None:
    cuda.fill(cuda.malloc(SIZE), 0, SIZE, LEGACY)
    cuda.finish()
    cuda.allocations.clear()
    cuda.assert_clean()
    cuda.host = 0
    with pytest.raises(Hazard, match="everything ends before fill is known to be done"):
        cuda.assert_clean()


def test_calls_after_destruction(cuda: FakeCuda) -> None:
    stream, event = cuda.stream_create(), cuda.event_create(False)
    cuda.event_destroy(event)
    with pytest.raises(Hazard, match="no such event"):
        cuda.event_record(event, stream)
    cuda.stream_destroy(stream)
    with pytest.raises(Hazard, match="no such stream"):
        cuda.stream_synchronize(stream)
    address = cuda.malloc(SIZE)
    cuda.free(address)
    with pytest.raises(Hazard, match="never allocated or is freed"):
        cuda.fill(address, 0, SIZE, LEGACY)


def test_a_copy_out_of_bounds(cuda: FakeCuda) -> None:
    address, pinned = cuda.malloc(2 * SIZE), cuda.host_alloc(SIZE)
    with pytest.raises(Hazard, match="128 bytes at 1 of 128 bytes of device"):
        cuda.fill(address + 1, 0, 2 * SIZE, LEGACY)
    with pytest.raises(Hazard, match="65 bytes at 0 of 64 bytes of host"):
        cuda.copy(address, pinned, SIZE + 1, "h2d", LEGACY)
    with pytest.raises(Hazard, match="of device"):
        cuda.copy(address, address, SIZE, "h2d", LEGACY)


def late() -> FakeCuda:
    """A device that does nothing before it must."""
    cuda = FakeCuda()
    cuda.haste = 0
    return cuda


@pytest.mark.parametrize("direction", ["in", "out"])
def test_host_memory_changed_during_a_copy(direction: str) -> None:
    cuda = late()
    block, buffer = HostPool(cuda).take(SIZE), DeviceBuffer(cuda, SIZE)
    stream = Stream(cuda)
    if direction == "in":
        stream.copy_in(buffer, block.address, SIZE)
    else:
        stream.copy_out(block.address, buffer, SIZE)
    block.array[3] ^= 1
    with pytest.raises(Hazard, match="the host changed memory of a queued"):
        stream.synchronize()


def test_results_read_too_early_are_noise() -> None:
    cuda = late()
    block, buffer = HostPool(cuda).take(SIZE), DeviceBuffer(cuda, SIZE)
    block.array[:] = 5
    stream = Stream(cuda)
    stream.fill(buffer, 5)
    stream.copy_out(block.address, buffer, SIZE)
    assert len(set(block.array.tolist())) > 8
    stream.synchronize()
    assert set(block.array.tolist()) == {5}


def test_two_streams_without_order_even_if_chance_would_order_them(cuda: FakeCuda) -> None:
    one, two = Stream(cuda), Stream(cuda)
    buffer, other = DeviceBuffer(cuda, SIZE), DeviceBuffer(cuda, SIZE)
    one.fill(buffer)
    two.fill(other)
    cuda.finish()
    cuda.host = 0
    with pytest.raises(Hazard, match="d2d is not ordered after fill"):
        cuda.copy(other.address, buffer.address, SIZE, "d2d", two.handle)


def test_an_event_orders_what_came_before_its_record_only(cuda: FakeCuda) -> None:
    one, two, event = Stream(cuda), Stream(cuda), Event(cuda)
    first, second = DeviceBuffer(cuda, SIZE), DeviceBuffer(cuda, SIZE)
    one.fill(first)
    one.record(event)
    one.fill(second)
    two.wait(event)
    two.fill(first)
    with pytest.raises(Hazard, match="not ordered"):
        two.fill(second)


def test_reads_need_no_order_among_themselves(cuda: FakeCuda) -> None:
    one, two = Stream(cuda), Stream(cuda)
    source = DeviceBuffer(cuda, SIZE)
    targets = [DeviceBuffer(cuda, SIZE) for _ in range(2)]
    for stream, target in zip((one, two), targets, strict=True):
        cuda.copy(target.address, source.address, SIZE, "d2d", stream.handle)
