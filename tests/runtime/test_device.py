"""Device sessions over a TensorRT plan, on the fakes: right results, no hazard, nothing left."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrt.errors import BackendError, OutOfMemoryError, UsageError
from pixelrt.geometry import Size, plan_tiles
from pixelrt.plans.profiles import Profile, Shape
from pixelrt.runtime.backends.base import Sample, TileSession
from pixelrt.runtime.device.engine import output_shape
from pixelrt.runtime.device.fitting import Batch, DevicePlan
from pixelrt.runtime.device.flow_plan import Maps
from pixelrt.runtime.device.lanes import CAPACITY, EngineLane
from pixelrt.runtime.device.memory import Arena, PageableMemoryWarning
from pixelrt.runtime.device.planning import device_budget, device_planner
from pixelrt.runtime.device.resources import DeviceBuffer, Stream, settled
from pixelrt.runtime.device.session import FLOWS, DeviceSession
from pixelrt.runtime.device.work import WorkMemory
from pixelrt.runtime.planning import RunOptions
from pixelrt.runtime.tiling import run_plan
from pixelrt.spec import ReceptiveField, TensorSpec
from tests.bundles import write_bundle
from tests.runtime.fake_cuda import FakeCuda, Hazard
from tests.runtime.fake_tensorrt import Array, FakeTensorRT
from tests.runtime.plan_cases import (
    FUNCTIONS,
    INFO,
    blurred,
    core,
    core_net,
    engine_of,
    image_net,
    session_of,
)

ANY = "1x1x1,1x16x16,4x64x64"


def picture(height: int, width: int, count: int = 1) -> Array:
    return np.random.default_rng(height).integers(0, 256, (count, height, width, 3), np.uint8)


def tiled(session: DeviceSession, images: Array, plan: DevicePlan, **more: Any) -> Array:
    count, height, width = images.shape[:3]
    out = np.zeros((count, 2 * height, 2 * width, 3), images.dtype)
    session.run_tiles(images, plan, out, scale=2, **more)
    return out


def on_host(images: Array, plan: DevicePlan) -> Array:
    count, height, width = images.shape[:3]
    out = np.zeros((count, 2 * height, 2 * width, 3), np.uint8)
    run_plan(blurred, images, plan.tiles, out, scale=2)
    return out


RUNS = st.fixed_dictionaries(
    {
        "size": st.tuples(st.integers(6, 30), st.integers(6, 30)),
        "tile": st.integers(5, 12),
        "batch": st.integers(1, 4),
        "streams": st.integers(1, 3),
        "fixed": st.booleans(),
        "graphs": st.booleans(),
        "work": st.sampled_from([0, 40]),
        "flavour": st.sampled_from(["tensorrt", "tensorrt-rtx"]),
        "seed": st.integers(0, 1 << 16),
    }
)


def run_case(cuda: FakeCuda, case: dict[str, Any], images: Array, runs: int = 3) -> list[Array]:
    low = case["batch"] if case["fixed"] else 1
    profile = f"{low}x1x1,{case['batch']}x8x8,{case['batch']}x64x64"
    # the second profile: every context has to switch to it
    net = image_net("blurred", "9x64x64", profile, work_per_pixel=case["work"])
    plan = plan_of(case)
    session, _ = session_of(
        cuda,
        net,
        graphs=case["graphs"],
        flavour=case["flavour"],
        version="11.4.0" if case["flavour"] == "tensorrt" else "1.7.1",
    )
    with session:
        return [tiled(session, images, plan) for _ in range(runs)]


def plan_of(case: dict[str, Any]) -> DevicePlan:
    tiles = plan_tiles(Size(*case["size"]), Size(case["tile"], case["tile"]), 1)
    return DevicePlan(tiles, Batch(case["batch"], case["fixed"]), case["streams"])


@given(RUNS)
@settings(deadline=None, max_examples=80)
def test_images_are_those_of_run_plan_bit_for_bit(case: dict[str, Any]) -> None:
    images = picture(*case["size"], count=2)
    cuda = FakeCuda(case["seed"])
    results = run_case(cuda, case, images)
    cuda.assert_clean()
    for result in results:
        np.testing.assert_array_equal(result, on_host(images, plan_of(case)))
    np.testing.assert_array_equal(results[0], blurred(images))


@given(RUNS, st.floats(0, 1), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=150)
def test_whatever_call_fails_there_is_no_hazard_and_nothing_left(
    case: dict[str, Any], place: float, lose_device: bool, out_of_memory: bool
) -> None:
    images = picture(*case["size"])
    whole = FakeCuda(case["seed"])
    run_case(whole, case, images)
    k = int(place * (len(whole.calls) - 1))
    cuda = FakeCuda(case["seed"], fail_at=k, lose_device=lose_device, out_of_memory=out_of_memory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PageableMemoryWarning)
        try:
            results = run_case(cuda, case, images)
        except BackendError as exc:
            assert "planted failure" in str(exc)  # noqa: PT017 - other ways out are right too
        else:
            for result in results:
                np.testing.assert_array_equal(result, on_host(images, plan_of(case)))
    if lose_device:
        cuda.finish()
    cuda.assert_clean()


@pytest.mark.parametrize("lose_device", [False, True])
def test_every_single_call_that_fails_is_heard_of_or_made_good(lose_device: bool) -> None:
    case = {
        "size": (11, 9),
        "tile": 6,
        "batch": 2,
        "streams": 2,
        "fixed": True,
        "graphs": True,
        "work": 40,
        "flavour": "tensorrt",
        "seed": 3,
    }
    images = picture(11, 9)
    whole = FakeCuda(3)
    run_case(whole, case, images)
    for k, call in enumerate(whole.calls):
        cuda = FakeCuda(3, fail_at=k, lose_device=lose_device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PageableMemoryWarning)
            try:
                results = run_case(cuda, case, images)
            except BackendError as exc:
                assert f"planted failure of {call}" in str(exc) or lose_device  # noqa: PT017
            else:
                assert call in {"host_alloc", *RECORDING}
                np.testing.assert_array_equal(results[-1], on_host(images, plan_of(case)))
        if lose_device:
            cuda.finish()
        cuda.assert_clean()


RECORDING = ("capture_begin", "capture_end", "graph_instantiate", "graph_destroy")
RECORDING += ("event_create", "kernel")


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("profile", ["1x8x8", "2x8x8", "1x4x4,2x8x8,3x16x16"])
def test_infer_takes_any_number_of_images(batch: int, profile: str) -> None:
    cuda = FakeCuda(batch)
    static = profile in ("1x8x8", "2x8x8")
    session, _ = session_of(cuda, image_net("blurred", profile, static=static))
    images = picture(8, 8, batch)
    with session:
        for _ in range(2):
            result = session.infer({"image": images})["result"]
            np.testing.assert_array_equal(result, blurred(images))
    cuda.assert_clean()


def test_float_planes_first() -> None:
    cuda = FakeCuda()
    session, _ = session_of(cuda, core_net("core", "1x1x1,2x8x8,4x64x64"))
    values = np.random.default_rng(0).random((3, 3, 8, 9), np.float32)
    images = picture(20, 17).astype(np.uint16) * 257
    plan = DevicePlan(plan_tiles(Size(20, 17), Size(8, 8), 1), Batch(2))
    peak = np.float32(65535)
    maps = Maps(
        lambda tile: tile.astype(np.float32) / peak,
        lambda tile: np.rint(np.clip(tile, 0, 1) * peak).astype(np.uint16),
    )
    with session:
        np.testing.assert_array_equal(session.infer({"pixels": values})["output"], core(values))
        result = tiled(session, images, plan, maps=maps)
        with pytest.raises(BackendError, match="another type"):
            session.infer({"pixels": values.astype(np.float64)})
    np.testing.assert_array_equal(result, images.repeat(2, axis=1).repeat(2, axis=2))
    cuda.assert_clean()


def test_the_profile_whose_optimum_is_closest_is_used() -> None:
    cuda = FakeCuda()
    net = image_net("blurred", "8x8,8x8,64x64", "16x16,32x32,64x64")
    session, world = session_of(cuda, net)
    used: list[int] = []
    engine = session._engine.loaded  # type: ignore[attr-defined]
    context = engine.context
    engine.context = lambda index, stream: used.append(index) or context(index, stream)
    with session:
        for side, index in ((8, 0), (12, 0), (32, 1), (60, 1)):
            used.clear()
            session.infer({"image": picture(side, side)})
            assert set(used) == {index}
        with pytest.raises(UsageError, match="the nearest shape is 1x64x8"):
            session.infer({"image": picture(80, 8)})
    cuda.assert_clean()
    assert world.contexts


def test_graphs_are_recorded_once_a_slot_and_replayed_on_no_other_address() -> None:
    cuda = FakeCuda()
    session, world = session_of(cuda, image_net("blurred", ANY))
    images, other = picture(32, 32), picture(40, 24)
    plan = DevicePlan(plan_tiles(Size(32, 32), Size(10, 10), 1), Batch(1), streams=2)
    with session:
        for _ in range(3):
            np.testing.assert_array_equal(tiled(session, images, plan), blurred(images))
        lanes = session._lanes
        assert [lane.recorded for lane in lanes] == [2, 2]
        assert len(world.executed) == 8, "each of four slots runs once plainly, is recorded once"
        # larger tiles move the memory that the network works in: nothing may be replayed there
        large = DevicePlan(plan_tiles(Size(40, 24), Size(20, 20), 1), Batch(1), streams=2)
        np.testing.assert_array_equal(tiled(session, other, large), blurred(other))
        np.testing.assert_array_equal(tiled(session, images, plan), blurred(images))
        assert not session.notes
    cuda.assert_clean()


def test_graphs_off_and_on_give_the_same_and_capture_may_fail() -> None:
    images = picture(30, 30)
    plan = DevicePlan(plan_tiles(Size(30, 30), Size(8, 8), 1), Batch(2))
    for graphs, capturable in ((False, True), (True, True), (True, False)):
        cuda = FakeCuda()
        session, _ = session_of(
            cuda, image_net("blurred", ANY), graphs=graphs, capturable=capturable
        )
        with session:
            np.testing.assert_array_equal(tiled(session, images, plan), blurred(images))
            recorded = sum(lane.recorded for lane in session._lanes)
            assert bool(recorded) == (graphs and capturable)
            assert bool(session.notes) == (graphs and not capturable)
        if session.notes:
            assert "CUDA graphs are off" in session.notes[0]
        cuda.assert_clean()


def test_lanes_work_beside_each_other_where_there_is_memory_for_two() -> None:
    """The first kernels of two lanes are not ordered; with one part of memory they are."""
    images = picture(16, 16)
    plan = DevicePlan(plan_tiles(Size(16, 16), Size(10, 10), 1), Batch(1), streams=2)
    work = 40 * 100
    for memory, together in ((1 << 20, True), (19_000, False)):
        cuda = FakeCuda(memory=memory)
        session, world = session_of(cuda, image_net("blurred", ANY), graphs=False)
        with session:
            np.testing.assert_array_equal(tiled(session, images, plan), blurred(images))
            assert session._work.parts == (2 if together else 1)
            assert session._work.size >= work
        kernels = [op for op in cuda.operations if op.name == "kernel"]
        ordered = bool(kernels[1].before >> kernels[0].index & 1)
        assert ordered != together
        assert len(world.executed) == len(plan.tiles)
        cuda.assert_clean()


def test_two_lanes_in_one_part_without_its_order_are_seen() -> None:
    """The fake finds what the arena's event is there for."""
    cuda = FakeCuda(memory=19_000)
    session, _ = session_of(cuda, image_net("blurred", ANY), graphs=False)
    plan = DevicePlan(plan_tiles(Size(16, 16), Size(10, 10), 1), Batch(1), streams=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arena, "_mark", lambda self, stream: None)
        with pytest.raises(Hazard, match="not ordered"):
            tiled(session, picture(16, 16), plan)


def test_flows_of_other_shapes_go_when_there_are_many_or_memory_is_short() -> None:
    cuda = FakeCuda()
    session, _ = session_of(cuda, image_net("blurred", ANY))
    with session:
        for side in range(8 + 2 * FLOWS, 8, -1):
            images = picture(side, side)
            np.testing.assert_array_equal(
                session.infer({"image": images})["result"], blurred(images)
            )
            assert len(session._flows) <= FLOWS
            assert len(session._lanes[0]) <= FLOWS, "what is bound goes with its buffers"
        assert all(len(lane) <= CAPACITY for lane in session._lanes)
        held = cuda.used("device")
        assert session.free_memory() > cuda.memory - held
        session.trim()
        assert cuda.used("device") < held
        assert not session._flows
        assert not session._work.size
        tight = cuda.used("device")
    cuda.assert_clean()
    images = picture(24, 24)
    need = 40 * 24 * 24 + 15 * 24 * 24
    cuda = FakeCuda(memory=tight + need + 2000)
    session, _ = session_of(cuda, image_net("blurred", ANY))
    with session:
        for one in (picture(20, 20), images, picture(22, 22)):
            np.testing.assert_array_equal(session.infer({"image": one})["result"], blurred(one))
        with pytest.raises(OutOfMemoryError):
            session.infer({"image": picture(40, 40)})
        assert not session._flows, "what did not fit holds nothing"
        np.testing.assert_array_equal(session.infer({"image": images})["result"], blurred(images))
    cuda.assert_clean()


def test_many_addresses_do_not_pile_up_contexts() -> None:
    cuda = FakeCuda()
    session, world = session_of(cuda, image_net("blurred", "1x1x1,1x8x8,40x64x64"))
    with session:
        for batch in range(1, 2 * CAPACITY):
            images = picture(6, 6, batch)
            session.infer({"image": images})
        assert len(session._lanes[0]) <= CAPACITY
    assert world.contexts >= 2 * CAPACITY - 1
    cuda.assert_clean()


@pytest.mark.parametrize(
    "refuse",
    [
        "create_execution_context",
        "set_optimization_profile_async",
        "set_input_shape",
        "update_device_memory_size_for_shapes",
        "set_tensor_address",
        "execute_async_v3",
    ],
)
def test_what_tensorrt_refuses_comes_in_its_words_and_leaves_nothing(refuse: str) -> None:
    cuda = FakeCuda()
    session, world = session_of(cuda, image_net("blurred", "64x64", ANY))
    with session:
        world.refuse = refuse
        with pytest.raises(BackendError) as caught:
            session.infer({"image": picture(8, 8)})
        assert "11.4.0" in caught.value.message
        assert f"planted refusal of {refuse}" in caught.value.found
        world.refuse = ""
        np.testing.assert_array_equal(
            session.infer({"image": picture(8, 8)})["result"], blurred(picture(8, 8))
        )
    cuda.assert_clean()


def test_errors_keep_nothing_on_the_device_alive() -> None:
    """While the error is still held by whoever reports it."""
    cuda = FakeCuda()
    session, world = session_of(cuda, image_net("blurred", ANY))
    world.refuse = "set_input_shape"
    with session, pytest.raises(BackendError) as caught:
        session.infer({"image": picture(8, 8)})
    assert caught.value.__traceback__ is not None
    cuda.assert_clean()


def test_a_closed_session_says_so_and_closes_twice() -> None:
    cuda = FakeCuda()
    session, _ = session_of(cuda, image_net("blurred", ANY))
    session.infer({"image": picture(8, 8)})
    session.close()
    session.close()
    cuda.assert_clean()
    with pytest.raises(BackendError, match="closed"):
        session.infer({"image": picture(8, 8)})
    with pytest.raises(BackendError, match="closed"):
        session.work_bytes(Shape(1, 8, 8))


def test_threads_take_turns() -> None:
    cuda = FakeCuda()
    session, _ = session_of(cuda, image_net("blurred", ANY))
    plan = DevicePlan(plan_tiles(Size(24, 24), Size(8, 8), 1), Batch(2), 2)
    wrong: list[str] = []

    def work(seed: int) -> None:
        images = picture(24, 24 + 0 * seed)
        if not np.array_equal(tiled(session, images, plan), blurred(images)):
            wrong.append(f"thread {seed}")

    with session:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    cuda.assert_clean()


def test_an_error_in_the_middle_is_not_hidden_by_the_release() -> None:
    cuda = FakeCuda()
    session, _ = session_of(cuda, image_net("blurred", ANY))
    session.infer({"image": picture(8, 8)})
    cuda.fail_at, cuda.lose_device = len(cuda.calls) + 5, True
    with pytest.raises(BackendError, match="planted failure") as caught, session:
        session.infer({"image": picture(8, 8)})
    assert any("while releasing" in note for note in caught.value.__notes__)
    cuda.finish()
    cuda.assert_clean()


# --- a lane by itself -----------------------------------------------------------------------


@contextmanager
def lane_of(cuda: FakeCuda) -> Iterator[tuple[EngineLane, WorkMemory, FakeTensorRT]]:
    world = FakeTensorRT(cuda, FUNCTIONS)
    engine = engine_of(world, image_net("blurred", ANY))
    with ExitStack() as stack:
        stack.callback(engine.close)
        work = stack.enter_context(WorkMemory(cuda))
        stream = stack.enter_context(Stream(cuda))
        lane = stack.enter_context(EngineLane(cuda, engine, stream, work, 0, graphs=True))
        yield lane, work, world


def test_a_graph_is_not_replayed_once_the_memory_behind_it_moved() -> None:
    cuda = FakeCuda()
    images = picture(8, 8)
    with ExitStack() as stack:
        lane, work, world = stack.enter_context(lane_of(cuda))
        source = stack.enter_context(DeviceBuffer(cuda, images.size))
        result = stack.enter_context(DeviceBuffer(cuda, 4 * images.size))
        back = np.empty(4 * images.size, np.uint8)
        stack.enter_context(settled(lane.stream))
        lane.stream.copy_in(source, images.ctypes.data, images.size)
        for size, runs in ((40 * 64, 4), (40 * 640, 3)):
            work.share(1, size)
            executed = len(world.executed)
            for _ in range(runs):
                lane.stream.fill(result)
                lane(lane.stream, source, result, images.shape)
            assert len(world.executed) == executed + 2, "once plainly, once recorded"
            lane.stream.copy_out(back.ctypes.data, result, back.size)
            np.testing.assert_array_equal(back, blurred(images).reshape(-1))
        assert lane.recorded == 2
    cuda.assert_clean()


def test_what_is_dropped_is_done_before() -> None:
    """More addresses than a lane keeps, with nothing that waits in between."""
    cuda = FakeCuda()
    images = picture(8, 8)
    with ExitStack() as stack:
        lane, work, _ = stack.enter_context(lane_of(cuda))
        work.share(1, 40 * 64)
        source = stack.enter_context(DeviceBuffer(cuda, images.size))
        results = [
            stack.enter_context(DeviceBuffer(cuda, 4 * images.size)) for _ in range(CAPACITY + 3)
        ]
        stack.enter_context(settled(lane.stream))
        lane.stream.fill(source)
        for result in results:
            lane(lane.stream, source, result, images.shape)
        assert len(lane) == CAPACITY
    cuda.assert_clean()


# --- an engine that looks after its own memory -----------------------------------------------


class PlainEngine:
    """As a library without profiles, with memory of its own and one stream at a time."""

    info = INFO
    inputs = (TensorSpec("image", "uint8", ("N", "H", "W", 3)),)
    outputs = (TensorSpec("result", "uint8", ("N", "2*H", "2*W", 3)),)
    profiles: tuple[Profile, ...] = ()
    samples: tuple[Sample, ...] = ()
    recordable = False
    max_lanes = 1

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.open = 0
        self.bound: list[Shape] = []

    def work_bytes(self, shape: Shape) -> None:
        return None

    def result_shape(self, shape: Shape) -> tuple[int, ...]:
        return output_shape(self.outputs[0], shape)

    def lane(self, stream: Stream) -> PlainLane:
        self.open += 1
        assert self.open <= self.max_lanes
        return PlainLane(self, stream)

    def close(self) -> None:
        assert not self.open


class PlainLane:
    def __init__(self, engine: PlainEngine, stream: Stream) -> None:
        self.engine, self.stream = engine, stream

    def bind(
        self, shape: Shape, source: DeviceBuffer, result: DeviceBuffer, work: DeviceBuffer | None
    ) -> PlainBound:
        assert work is None
        self.engine.bound.append(shape)
        return PlainBound(self, shape, source, result)

    def close(self) -> None:
        self.engine.open -= 1


@dataclass
class PlainBound:
    lane: PlainLane
    shape: Shape
    source: DeviceBuffer
    result: DeviceBuffer

    def launch(self) -> None:
        dims = (self.shape.batch, self.shape.height, self.shape.width, 3)
        size = prod(dims)

        def run(values: Array, out: Array) -> None:
            out[:] = blurred(values.reshape(dims)).reshape(-1)

        reads, writes = [(self.source.address, size)], [(self.result.address, 4 * size)]
        self.lane.engine.cuda.kernel(self.lane.stream.handle, reads, writes, run)

    def close(self) -> None:
        self.lane = None  # type: ignore[assignment]


@pytest.mark.parametrize("streams", [1, 3])
def test_an_engine_with_memory_of_its_own(tmp_path: Path, streams: int) -> None:
    """Tiles are planned by the manifest's estimate; several streams become the one there is."""
    field = ReceptiveField(1, 1)
    manifest = write_bundle(tmp_path / "x.pixelrt", field=field, per_pixel=500).manifest
    cuda = FakeCuda(memory=1_000_000)
    engine = PlainEngine(cuda)
    with DeviceSession(cuda, engine) as session:
        assert isinstance(session, TileSession)
        options = RunOptions(streams=streams)
        images = picture(70, 60)
        planner = device_planner(Size(70, 60), 1, manifest, options, session)
        plan = planner(device_budget(session, options))
        assert len(plan.tiles) > 1
        per_pixel = 500 + 15 * 2 * streams
        assert plan.batch.size * plan.tiles.tile.pixels * per_pixel < 900_000
        np.testing.assert_array_equal(tiled(session, images, plan), blurred(images))
        assert not session.notes
    assert not engine.open
    assert engine.bound
    cuda.assert_clean()


def test_an_output_of_unknown_size_is_refused() -> None:
    with pytest.raises(BackendError, match="cannot be told"):
        output_shape(TensorSpec("y", "uint8", ("N", "H+1", "W", 3)), Shape(1, 8, 8))
