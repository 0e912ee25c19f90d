"""Memory, streams, graphs, foreign arrays and re-planning, on the fake of the CUDA calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrt.errors import BackendError, ImageError, OutOfMemoryError
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.graphs import GraphCache, GraphedCompute, GraphKey
from pixelrt.runtime.device.interop import DeviceArray, between, device_array
from pixelrt.runtime.device.memory import Arena, HostPool, PageableMemoryWarning, size_class
from pixelrt.runtime.device.replan import run_with_replan
from pixelrt.runtime.device.resources import DeviceBuffer, Event, Stream, settled
from tests.runtime.cuda_cases import CASES, copying
from tests.runtime.fake_cuda import FakeCuda, Hazard


def outcome(case: Callable[[Cuda], None], cuda: FakeCuda) -> str:
    """The hazard that a case ran into. Other errors, and checks that notice them, are fine."""
    try:
        case(cuda)
    except Hazard as exc:
        return str(exc)
    except (BackendError, AssertionError, pytest.fail.Exception):
        return ""
    return ""


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_case(case: Callable[[Cuda], None], seed: int) -> None:
    cuda = FakeCuda(seed)
    case(cuda)
    cuda.assert_clean()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("lose_device", [False, True], ids=["once", "device lost"])
def test_whatever_call_fails_everything_is_released(
    case: Callable[[Cuda], None], lose_device: bool
) -> None:
    whole = FakeCuda()
    case(whole)
    for k in range(len(whole.calls)):
        cuda = FakeCuda(k, fail_at=k, lose_device=lose_device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PageableMemoryWarning)
            hazard = outcome(case, cuda)
        assert not hazard, f"{hazard}, after call {k}, {cuda.calls[k]}, failed"
        cuda.finish()
        cuda.host = (1 << len(cuda.operations)) - 1 if lose_device else cuda.host
        cuda.assert_clean()


# host memory


@given(st.integers(1, 1 << 34))
@settings(deadline=None)
def test_a_size_class_wastes_at_most_a_quarter(size: int) -> None:
    capacity = size_class(size)
    assert size <= capacity <= max(size + 4095, size * 5 // 4)
    assert size_class(capacity) == capacity


def test_idle_memory_is_bounded_and_the_oldest_goes_first() -> None:
    cuda = FakeCuda()
    with HostPool(cuda, idle_limit=3 * 4096) as pool:
        blocks = [pool.take(4096) for _ in range(5)]
        addresses = [block.address for block in blocks]
        for block in blocks:
            block.close()
        assert pool.idle_bytes == 3 * 4096
        with pool.take(1) as block:
            assert block.address == addresses[-1]
        pool.trim()
        assert pool.idle_bytes == cuda.used("host") == 0
    cuda.assert_clean()


def test_memory_that_cannot_be_pinned_is_used_with_one_warning() -> None:
    cuda = FakeCuda(pinnable=4096)
    with HostPool(cuda) as pool, Stream(cuda) as stream, DeviceBuffer(cuda, 9000) as device:
        with pytest.warns(PageableMemoryWarning, match="cudaErrorMemoryAllocation") as caught:
            there = pool.take(9000)
        assert len(caught) == 1
        assert pool.note == str(caught[0].message)
        with there, pool.take(9000) as back:
            assert not there.pinned
            there.array[:] = np.arange(9000) % 251
            stream.copy_in(device, there.address, 9000)
            stream.copy_out(back.address, device, 9000)
            stream.synchronize()
            np.testing.assert_array_equal(back.array, there.array)
    cuda.assert_clean()


def test_a_warning_turned_into_an_error_leaks_nothing() -> None:
    cuda = FakeCuda(pinnable=0)
    with HostPool(cuda) as pool, pytest.raises(PageableMemoryWarning):
        pool.take(1)
    cuda.assert_clean()


# our own bugs


def test_double_free_and_use_after_free_are_asserted() -> None:
    cuda = FakeCuda()
    buffer = DeviceBuffer(cuda, 8)
    buffer.close()
    with pytest.raises(AssertionError, match="released twice"):
        buffer.close()
    with pytest.raises(AssertionError, match="after its release"):
        _ = buffer.address
    pool = HostPool(cuda)
    block = pool.take(8)
    with pytest.raises(AssertionError, match="1 host blocks were not given back"):
        pool.close()
    block.close()
    with pytest.raises(AssertionError, match="given back"):
        _ = block.array
    pool.close()
    cuda.assert_clean()


def test_a_failing_release_is_a_note_of_the_error_that_came_first() -> None:
    cuda = FakeCuda(fail_call="free")
    with pytest.raises(KeyError) as caught, DeviceBuffer(cuda, 8):
        raise KeyError("first")
    assert caught.value.__notes__ == ["and while releasing: planted failure of free, call 1"]
    with pytest.raises(BackendError, match="planted failure of free"), DeviceBuffer(cuda, 8):
        pass


# the arena


def test_an_arena_that_cannot_grow_holds_nothing_and_can_be_used_again() -> None:
    cuda = FakeCuda(memory=1000)
    with Arena(cuda) as arena, Stream(cuda) as stream, settled(stream):
        with arena.use(stream, 600) as memory:
            stream.fill(memory)
        with pytest.raises(OutOfMemoryError), arena.use(stream, 1001):
            pass
        assert arena.size == cuda.used("device") == 0
        with arena.use(stream, 1000) as memory:
            stream.fill(memory)
    cuda.assert_clean()


def test_an_arena_is_in_order_again_after_an_error_of_its_user() -> None:
    cuda = FakeCuda()
    with Stream(cuda) as one, Stream(cuda) as two, settled(one, two), Arena(cuda) as arena:
        with suppress(KeyError), arena.use(one, 64) as memory:
            one.fill(memory)
            raise KeyError
        with arena.use(two, 64) as memory:
            two.fill(memory)
    cuda.assert_clean()


@pytest.mark.parametrize("error", [KeyError, None])
def test_an_arena_whose_use_cannot_be_noted_waits_for_it(error: type[Exception] | None) -> None:
    cuda = FakeCuda(fail_call="event_record")
    expected = error or BackendError
    with Stream(cuda) as stream, Arena(cuda) as arena:
        with suppress(expected), arena.use(stream, 64) as memory:
            stream.fill(memory)
            if error:
                raise error
        cuda.assert_idle()
    cuda.assert_clean()


def test_the_fake_sees_an_arena_without_its_event() -> None:
    cuda = FakeCuda()
    one, two = Stream(cuda), Stream(cuda)
    memory = DeviceBuffer(cuda, 64)
    one.fill(memory)
    with pytest.raises(Hazard, match="fill is not ordered after fill"):
        two.fill(memory)


# graphs


def test_a_graph_is_never_replayed_for_other_memory_or_another_shape() -> None:
    cuda = FakeCuda()
    with Stream(cuda) as stream, GraphCache(cuda) as cache:
        graphed = GraphedCompute(cache, copying(cuda))
        addresses = set()
        for _ in range(3):
            with DeviceBuffer(cuda, 64) as source, DeviceBuffer(cuda, 64) as result:
                addresses.add(source.address)
                for shape in ((64,), (32,)):
                    for _ in range(3):
                        stream.fill(source)
                        graphed(stream, source, result, shape)
                stream.synchronize()
        assert len(addresses) == 1, "the fake gives a freed address again"
        assert cuda.calls.count("capture_begin") == 6
    cuda.assert_clean()


def test_the_fake_sees_a_stale_replay() -> None:
    cuda = FakeCuda()
    stream = Stream(cuda)
    source, result = DeviceBuffer(cuda, 64), DeviceBuffer(cuda, 64)
    stream.fill(source)
    cuda.capture_begin(stream.handle)
    copying(cuda)(stream, source, result, (64,))
    executable = cuda.graph_instantiate(cuda.capture_end(stream.handle))
    stream.synchronize()
    source.close()
    assert DeviceBuffer(cuda, 64).address == source._handle
    with pytest.raises(Hazard, match="memory that was freed"):
        cuda.graph_launch(executable, stream.handle)


def test_graphs_are_bounded_and_the_least_used_goes() -> None:
    cuda = FakeCuda(3)
    with (
        Stream(cuda) as stream,
        DeviceBuffer(cuda, 64) as source,
        DeviceBuffer(cuda, 64) as result,
    ):
        with GraphCache(cuda, capacity=2) as cache:
            graphed = GraphedCompute(cache, copying(cuda))
            stream.fill(source)
            for size in (8, 8, 16, 16, 8, 24, 24, 8, 16):
                graphed(stream, source, result, (size,))
                assert len(cuda.executables) <= 2
            assert cuda.calls.count("graph_launch") == 5
        stream.synchronize()
    cuda.assert_clean()


@pytest.mark.parametrize("call", ["capture_begin", "capture_end", "graph_instantiate"])
def test_graphs_go_off_with_a_reason_where_recording_fails(call: str) -> None:
    cuda = FakeCuda(fail_call=call)
    with Stream(cuda) as stream, GraphCache(cuda) as cache:
        with DeviceBuffer(cuda, 64) as source, DeviceBuffer(cuda, 64) as result:
            stream.fill(source)
            for _ in range(4):
                GraphedCompute(cache, copying(cuda))(stream, source, result, (64,))
            stream.synchronize()
        assert cuda.calls.count(call) == 1
        assert cache.reason
    assert [op.name for op in cuda.operations] == ["fill"] + ["d2d"] * 4
    cuda.assert_clean()


def test_an_error_of_the_caller_while_recording_goes_through() -> None:
    cuda = FakeCuda()
    with Stream(cuda) as stream, GraphCache(cuda) as cache:
        key = GraphKey((1,), ())
        cache.run(stream, key, lambda: None)

        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cache.run(stream, key, interrupt)
        cache.run(stream, key, lambda: None)
        assert len(cache) == 1
    cuda.assert_clean()


# arrays of other libraries


class Foreign:
    def __init__(self, **facts: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": (2, 3, 4),
            "typestr": "|u1",
            "data": (4096, False),
            "version": 3,
        } | facts


@pytest.mark.parametrize(
    ("facts", "stream"),
    [
        ({}, None),
        ({"stream": None}, None),
        ({"stream": 1}, 1),
        ({"stream": 2}, 2),
        ({"stream": 0x5555}, 0x5555),
        ({"version": 2}, 1),
        ({"strides": (12, 4, 1)}, None),
        ({"shape": (1, 3, 4), "strides": (999, 4, 1)}, None),
        ({"typestr": "<f2", "strides": (24, 8, 2)}, None),
    ],
)
def test_a_foreign_array_is_viewed(facts: dict[str, Any], stream: int | None) -> None:
    foreign = Foreign(**facts)
    view = device_array(foreign)
    assert view.address == 4096
    assert view.stream == stream
    assert view.owner is foreign
    assert view.size == np.prod(view.shape) * view.dtype.itemsize
    assert device_array(foreign, stream=77).stream == 77
    assert device_array(foreign, stream=0).stream == 1


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"version": 1}, "version 1"),
        ({"shape": (0, 3, 4)}, "empty"),
        ({"mask": object()}, "mask"),
        ({"typestr": ">f4"}, ">f4"),
        ({"typestr": "<c8"}, "<c8"),
        ({"strides": (1, 2, 6)}, "not C-contiguous"),
        ({"strides": (4, 1)}, "not C-contiguous"),
        ({"stream": 0}, "stream 0"),
        ({"typestr": "nonsense"}, "Foreign"),
        ({"data": 5}, "Foreign"),
    ],
)
def test_a_foreign_array_that_cannot_be_used(facts: dict[str, Any], found: str) -> None:
    with pytest.raises(ImageError, match=found):
        device_array(Foreign(**facts))


def test_an_array_in_host_memory_is_refused() -> None:
    with pytest.raises(ImageError, match="no array in GPU memory"):
        device_array(np.zeros(3))


def test_what_is_given_out_can_be_taken_in() -> None:
    array = DeviceArray(512, (4, 5, 3), np.dtype(np.uint8), stream=9)
    assert device_array(array) == array


@pytest.mark.parametrize("caller", [None, "stream"])
def test_after_an_error_the_callers_memory_is_free(caller: str | None) -> None:
    cuda = FakeCuda()
    with Stream(cuda) as theirs, Stream(cuda) as ours, DeviceBuffer(cuda, 8) as buffer:
        handle = theirs.handle if caller else None
        with suppress(KeyError), between(cuda, handle, ours):
            ours.fill(buffer)
            raise KeyError
        cuda.assert_idle()
    cuda.assert_clean()


def test_the_fake_sees_a_callers_stream_that_is_not_honoured() -> None:
    cuda = FakeCuda()
    theirs, ours, buffer = Stream(cuda), Stream(cuda), DeviceBuffer(cuda, 8)
    theirs.fill(buffer)
    with pytest.raises(Hazard, match="not ordered"), between(cuda, None, ours):
        ours.fill(buffer)


# planning again


def plan_for(budget: int) -> int:
    """Plans are powers of two; the smallest is 64."""
    if budget < 64:
        raise OutOfMemoryError("too small", found=f"{budget} bytes", expected="64 bytes")
    return min(1 << (budget.bit_length() - 1), 4096)


@given(st.integers(64, 1 << 20), st.integers(0, 1 << 14))
@settings(deadline=None)
def test_the_image_starts_again_with_a_smaller_plan(budget: int, there: int) -> None:
    cuda = FakeCuda(memory=there)
    tried: list[int] = []

    def run(plan: int) -> int:
        tried.append(plan)
        with DeviceBuffer(cuda, plan):
            return plan

    if there < 64:
        with pytest.raises(OutOfMemoryError, match="even for the smallest plan") as caught:
            run_with_replan(plan_for, run, budget)
        assert caught.value.expected == "64 bytes"
        assert "cudaMalloc" in caught.value.found
        assert tried[-1] == 64
    else:
        result = run_with_replan(plan_for, run, budget)
        assert result <= there
        assert result == tried[-1]
    assert tried == sorted(set(tried), reverse=True), "no plan is tried twice"
    cuda.assert_clean()


def test_caches_are_freed_before_the_next_try_and_it_is_reported() -> None:
    events: list[str] = []

    def run(plan: int) -> int:
        events.append(f"run {plan}")
        if plan > 1024:
            raise OutOfMemoryError("no")
        return plan

    run_with_replan(
        plan_for, run, 4096, release=lambda: events.append("release"), report=events.append
    )
    again = "out of device memory with {}; again from the start with {}"
    assert events == [
        *("run 4096", "release", again.format(4096, 2048)),
        *("run 2048", "release", again.format(2048, 1024)),
        "run 1024",
    ]


def test_a_plan_that_cannot_shrink_ends_in_an_error() -> None:
    def run(plan: str) -> None:
        raise OutOfMemoryError("cudaMalloc failed", found="3 MiB free")

    with pytest.raises(OutOfMemoryError, match="no smaller plan") as caught:
        run_with_replan(lambda budget: "the whole image", run, 1 << 40)
    assert "3 MiB free" in caught.value.found


def test_the_memory_of_the_failed_run_is_not_held_by_its_error() -> None:
    import weakref

    class Held:
        pass

    alive: list[weakref.ref[Held]] = []

    def run(plan: int) -> int:
        assert not any(reference() for reference in alive)
        held = Held()
        alive.append(weakref.ref(held))
        if plan > 64:
            raise OutOfMemoryError("no")
        return plan

    assert run_with_replan(plan_for, run, 4096) == 64


def test_events_say_whether_they_are_done() -> None:
    cuda = FakeCuda()
    cuda.haste = 0
    with Stream(cuda) as stream, Event(cuda) as event, DeviceBuffer(cuda, 8) as buffer:
        assert event.done()
        stream.fill(buffer)
        stream.record(event)
        assert not event.done()
        event.synchronize()
        assert event.done()
    cuda.assert_clean()
