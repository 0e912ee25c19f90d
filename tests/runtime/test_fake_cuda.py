"""The fake itself: every hazard that it promises to see is planted once and seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrt.runtime.device.cuda import Rows
from pixelrt.runtime.device.memory import HostPool
from pixelrt.runtime.device.resources import DeviceBuffer, Event, Stream
from tests.runtime.fake_cuda import LEGACY, Allocation, FakeCuda, Hazard, Span

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


@pytest.mark.parametrize("columns", [(0, 4), (3, 7), (4, 8)], ids=["same", "overlap", "beside"])
def test_tiles_of_one_image_meet_only_where_they_share_pixels(
    cuda: FakeCuda, columns: tuple[int, int]
) -> None:
    """Two halves of the same rows of an image 8 wide, on two streams."""
    one, two = Stream(cuda), Stream(cuda)
    image, tile = DeviceBuffer(cuda, SIZE), DeviceBuffer(cuda, SIZE)
    width = columns[1] - columns[0]
    left = Rows(image.address, 8, 4, 8)
    right = Rows(image.address + columns[0], 8, width, 8)
    cuda.copy_2d(left, Rows(tile.address, 4, 4, 8), "d2d", one.handle)

    def again() -> None:
        cuda.copy_2d(right, Rows(tile.address + 32, width, width, 8), "d2d", two.handle)

    if columns[0] >= 4:
        again()
    else:
        with pytest.raises(Hazard, match="not ordered"):
            again()


@pytest.mark.parametrize("kind", ["d2d", "h2d", "d2h"])
def test_rows_are_copied_and_nothing_between_them(cuda: FakeCuda, kind: str) -> None:
    source, target = cuda.malloc(SIZE), cuda.malloc(SIZE)
    if kind == "h2d":
        source = cuda.host_alloc(SIZE)
    elif kind == "d2h":
        target = cuda.host_alloc(SIZE)
    before = cuda.allocations[target].array.copy().reshape(8, 8)
    values = cuda.allocations[source].array.copy().reshape(4, 16)
    cuda.copy_2d(Rows(target + 9, 8, 3, 4), Rows(source + 2, 16, 3, 4), kind, LEGACY)  # type: ignore[arg-type]
    cuda.finish()
    after = cuda.allocations[target].array.reshape(8, 8)
    np.testing.assert_array_equal(after[1:5, 1:4], values[:, 2:5])
    if kind != "d2h":
        before[1:5, 1:4] = values[:, 2:5]
        np.testing.assert_array_equal(after, before)


def test_rows_of_pageable_memory(cuda: FakeCuda) -> None:
    device, there = cuda.malloc(SIZE), np.arange(SIZE, dtype=np.uint8).reshape(8, 8)
    back = np.zeros((8, 8), np.uint8)
    cuda.copy_2d(Rows(device, 4, 4, 8), Rows(there.ctypes.data + 2, 8, 4, 8), "h2d", LEGACY)
    there[:] = 0
    cuda.copy_2d(Rows(back.ctypes.data + 1, 8, 4, 8), Rows(device, 4, 4, 8), "d2h", LEGACY)
    expected = np.zeros((8, 8), np.uint8)
    expected[:, 1:5] = np.arange(SIZE, dtype=np.uint8).reshape(8, 8)[:, 2:6]
    np.testing.assert_array_equal(back, expected)


def test_a_copy_onto_itself(cuda: FakeCuda) -> None:
    image = cuda.malloc(SIZE)
    cuda.copy_2d(Rows(image + 4, 8, 4, 8), Rows(image, 8, 4, 8), "d2d", LEGACY)
    for size in (33, 64):
        with pytest.raises(Hazard, match="rows that overlap"):
            cuda.copy(image + SIZE - size, image, size, "d2d", LEGACY)
    with pytest.raises(Hazard, match="rows that overlap"):
        cuda.copy_2d(Rows(image + 3, 8, 4, 8), Rows(image, 8, 4, 8), "d2d", LEGACY)
    with pytest.raises(Hazard, match="64 bytes at 1 of 64"):
        cuda.copy_2d(Rows(image + 1, 8, 8, 8), Rows(image, 8, 8, 8), "d2d", LEGACY)
    with pytest.raises(Hazard, match="does not fit"):
        cuda.copy_2d(Rows(image, 8, 4, 2), Rows(image + 32, 8, 4, 3), "d2d", LEGACY)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_rows_meet_exactly_where_they_share_a_byte(data: st.DataObject) -> None:
    allocation = Allocation(0, 0, np.empty(0, np.uint8), "device")
    ints: Callable[[int, int], int] = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731

    def draw() -> tuple[Span, set[int]]:
        start, width, height = ints(0, 60), ints(1, 9), ints(1, 7)
        pitch = ints(width, 14)
        rows = (start + row * pitch for row in range(height))
        span = Span(allocation, start, width, pitch, height)
        return span, {first + byte for first in rows for byte in range(width)}

    (one, its), (two, others) = draw(), draw()
    assert one.meets(two) == two.meets(one) == bool(its & others)


def test_waiting_for_the_device_knows_all_work(cuda: FakeCuda) -> None:
    stream, buffer = Stream(cuda), DeviceBuffer(cuda, SIZE)
    stream.fill(buffer)
    cuda.activate(1)
    cuda.synchronize()
    with pytest.raises(Hazard, match="freed before"):
        cuda.free(buffer.address)
    cuda.activate()
    cuda.synchronize()
    cuda.free(buffer.address)
