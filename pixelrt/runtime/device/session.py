"""A session on a device: host memory, streams, tiles and CUDA graphs around an engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from pixelrt.errors import OutOfMemoryError
from pixelrt.plans.profiles import Shape, tensor_shape
from pixelrt.runtime.backends.base import Array
from pixelrt.runtime.closing import quietly, release_quietly
from pixelrt.runtime.device.array_flow import DeviceFlow, on_device
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.dlpack import foreign_array
from pixelrt.runtime.device.engine import Engine, image_shape
from pixelrt.runtime.device.fitting import Batch, DevicePlan, fit_batch
from pixelrt.runtime.device.flow_plan import Layout, Maps, flow_plan
from pixelrt.runtime.device.in_turn import InTurn
from pixelrt.runtime.device.interop import DeviceArray
from pixelrt.runtime.device.lanes import EngineLane
from pixelrt.runtime.device.memory import HostPool
from pixelrt.runtime.device.resources import Stream
from pixelrt.runtime.device.stages import FlowShape, Lane, TileFlow
from pixelrt.runtime.device.work import WorkMemory
from pixelrt.runtime.tiling import Progress
from pixelrt.spec import ImageSpec

FLOWS = 4
"""Shapes whose buffers stay for the next image."""
SLOTS = 2
"""Batches in flight for each stream."""


class DeviceSession(InTurn):
    """A ``Session`` over an engine, which it closes; a ``TileSession`` and ``ArraySession`` too.

    Buffers, bound shapes and recorded graphs are kept from image to image and given up,
    least used first, when memory is short. Calls from several threads are safe; they take
    turns. ``graphs``: whether to record CUDA graphs where the engine allows it.
    """

    def __init__(self, cuda: Cuda, engine: Engine, *, graphs: bool = True) -> None:
        super().__init__(cuda, engine.info)
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self.profiles = engine.profiles
        self.samples = engine.samples
        self._engine = engine
        self._graphs = graphs
        self._lanes: list[EngineLane] = []
        self._flows: OrderedDict[tuple[FlowShape, int], TileFlow] = OrderedDict()
        self._device_flows: OrderedDict[FlowShape, DeviceFlow] = OrderedDict()
        with ExitStack() as stack:
            stack.callback(engine.close)
            self._pool = stack.enter_context(HostPool(cuda))
            self._work = stack.enter_context(WorkMemory(cuda))
            self._resources = stack.pop_all()

    @property
    def notes(self) -> tuple[str, ...]:
        """What does not work as it should, in words: pinned memory, CUDA graphs."""
        said = [self._pool.note, *(lane.reason for lane in self._lanes)]
        return tuple(dict.fromkeys(note for note in said if note))

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """``Session.infer``; more images than a profile takes go through in several runs."""
        (spec,), (output,) = self.inputs, self.outputs
        array = feeds[spec.name]
        self._check_type(spec, array)
        with self._using():
            image = image_shape(spec, array.shape)
            batch = fit_batch(self.profiles, image)
            result = np.empty(self._engine.result_shape(image), output.dtype)
            flow = self._ready(Shape(batch.size, image.height, image.width), batch, 1, slots=1)
            flow.run(
                range(image.batch),
                lambda job, tile: np.copyto(tile, array[job]),
                lambda job, values: np.copyto(result[job], values),
            )
        return {output.name: result}

    def run_tiles(
        self,
        images: Array,
        plan: DevicePlan,
        out: Array,
        *,
        scale: int,
        maps: Maps | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Fill ``out`` (B, H', W', C') from ``images`` (B, H, W, C) as ``tiling.run_plan`` does.

        ``maps`` turn pixels into what the network takes, and back. Raises ``UsageError`` for
        a shape outside every profile, ``OutOfMemoryError`` with the device's words; nothing
        of that image is then on the device.
        """
        layout: Layout = "NCHW" if self.inputs[0].shape[1] != "H" else "NHWC"
        with self._using():
            flow = self._ready(plan.shape, plan.batch, plan.streams, slots=SLOTS)
            flow_plan(
                flow,
                images,
                plan.tiles,
                out,
                scale=scale,
                maps=maps,
                layout=layout,
                progress=progress,
            )

    def view(self, value: Any, stream: int | None) -> DeviceArray:
        """An array of another library; see ``ArraySession.view``."""
        with on_device(self._cuda), self._using():
            return foreign_array(value, self._lanes_for(1)[0].stream, stream)

    def run_device(
        self, images: DeviceArray, plan: DevicePlan, out: DeviceArray | None, spec: ImageSpec
    ) -> DeviceArray:
        """Queue the network over images in device memory; see ``DeviceFlow.run``."""
        with on_device(self._cuda), self._using():
            try:
                return self._device_flow(plan, spec).run(images, plan.tiles, out)
            except OutOfMemoryError:
                self._give_back()
            return self._device_flow(plan, spec).run(images, plan.tiles, out)

    def work_bytes(self, shape: Shape) -> int | None:
        """Bytes of device memory for the network at ``shape``; ``None`` where nobody can tell.

        Raises ``UsageError`` for a shape outside every profile.
        """
        with self._using():
            return self._engine.work_bytes(shape)

    def buffer_bytes(self, shape: Shape, streams: int) -> int:
        """Bytes of device memory for the tiles in flight."""
        with self._using():
            flow = self._flow_shape(shape, Batch(shape.batch), streams * SLOTS)
            return flow.device_bytes

    def free_memory(self) -> int:
        """Bytes of device memory that a run could have: what is free and what is kept here."""
        with self._using():
            kept = sum(flow.shape.device_bytes for flow in self._flows.values())
            kept += sum(flow.device_bytes for flow in self._device_flows.values())
            return self._cuda.memory_info()[0] + kept + self._work.size

    def trim(self) -> None:
        """Give back what is kept between images."""
        with self._using():
            self._give_back()

    def _let_go(self, stack: ExitStack) -> None:
        stack.callback(self._lanes.clear)
        for lane in self._lanes:
            stack.enter_context(lane.stream)
            stack.enter_context(lane)
        stack.push(quietly(self._give_back))

    def _ready(self, shape: Shape, batch: Batch, streams: int, *, slots: int) -> TileFlow:
        """A flow for ``shape``, and memory for the network to work in.

        What is kept for other shapes is given up where the device would have too little.
        """
        work = self._engine.work_bytes(shape)
        limit = self._engine.max_lanes
        lanes = self._lanes_for(min(streams, limit) if limit else streams)
        key = self._flow_shape(shape, batch, slots * len(lanes)), len(lanes)
        try:
            return self._make(key, lanes, work or 0)
        except OutOfMemoryError:
            self._give_back()
        try:
            return self._make(key, lanes, work or 0)
        except BaseException as exc:
            release_quietly(self._give_back, exc)
            raise

    def _make(
        self, key: tuple[FlowShape, int], lanes: tuple[EngineLane, ...], work: int
    ) -> TileFlow:
        if key not in self._flows:
            while len(self._flows) >= FLOWS:
                self._forget()
                self._flows.popitem(last=False)[1].close()
            computes = tuple(Lane(lane.stream, lane) for lane in lanes)
            self._flows[key] = TileFlow(self._cuda, self._pool, computes, key[0])
        self._flows.move_to_end(key)
        if work and self._work.share(len(lanes), work):
            self._forget()
        return self._flows[key]

    def _device_flow(self, plan: DevicePlan, spec: ImageSpec) -> DeviceFlow:
        work = self._engine.work_bytes(plan.shape)
        (lane,) = self._lanes_for(1)
        shape = self._flow_shape(plan.shape, plan.batch, 1)
        if shape not in self._device_flows:
            while len(self._device_flows) >= FLOWS:
                self._forget()
                self._device_flows.popitem(last=False)[1].close()
            self._device_flows[shape] = DeviceFlow(self._cuda, lane.stream, lane, shape, spec)
        self._device_flows.move_to_end(shape)
        if work and self._work.share(1, work):
            self._forget()
        return self._device_flows[shape]

    def _lanes_for(self, count: int) -> tuple[EngineLane, ...]:
        while len(self._lanes) < count:
            with ExitStack() as stack:
                stream = stack.enter_context(Stream(self._cuda))
                number = len(self._lanes)
                lane = EngineLane(
                    self._cuda, self._engine, stream, self._work, number, graphs=self._graphs
                )
                self._lanes.append(lane)
                stack.pop_all()
        return tuple(self._lanes[:count])

    def _flow_shape(self, shape: Shape, batch: Batch, slots: int) -> FlowShape:
        (source,), (result,) = self.inputs, self.outputs
        return FlowShape(
            tensor_shape(source, shape)[1:],
            self._engine.result_shape(shape)[1:],
            batch.size,
            slots,
            batch.fixed,
            source.dtype,
            result.dtype,
        )

    def _forget(self) -> None:
        """Release what is bound to memory that is about to go, or that went."""
        with ExitStack() as stack:
            for lane in self._lanes:
                stack.callback(lane.clear)

    def _give_back(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._pool.trim)
            stack.callback(self._work.release)
            while self._flows:
                stack.enter_context(self._flows.popitem()[1])
            while self._device_flows:
                stack.enter_context(self._device_flows.popitem()[1])
            stack.callback(self._forget)
