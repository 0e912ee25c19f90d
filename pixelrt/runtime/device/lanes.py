"""What an engine has bound for a stream, found again by shape and addresses, and replayed."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack

from pixelrt.plans.profiles import Shape
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.engine import Bound, Engine, image_shape
from pixelrt.runtime.device.graphs import GraphCache, GraphKey
from pixelrt.runtime.device.resources import DeviceBuffer, Stream
from pixelrt.runtime.device.work import WorkMemory

CAPACITY = 16
"""Bound shapes and addresses that a lane keeps: each is an execution context."""


class _Ready:
    """Something bound, with the graph that was recorded of it."""

    def __init__(self, cuda: Cuda, bound: Bound) -> None:
        with ExitStack() as stack:
            stack.callback(bound.close)
            self.bound = bound
            self.graph = stack.enter_context(GraphCache(cuda, capacity=1))
            self.resources = stack.pop_all()


class EngineLane(Closing):
    """A ``Compute`` over one lane of an engine.

    Binds every shape and set of addresses once, keeps the ``CAPACITY`` last used, and has
    each replayed as a CUDA graph from its third run on, where the engine allows that and
    ``graphs`` is set. ``reason``: why graphs went off here, or empty.
    """

    def __init__(
        self,
        cuda: Cuda,
        engine: Engine,
        stream: Stream,
        work: WorkMemory,
        number: int,
        *,
        graphs: bool,
    ) -> None:
        self.reason = ""
        self.stream = stream
        self._cuda = cuda
        self._engine = engine
        self._work = work
        self._number = number
        self._graphs = graphs and engine.recordable
        self._ready: OrderedDict[GraphKey, _Ready] = OrderedDict()
        self._lane = engine.lane(stream)

    def __call__(
        self, stream: Stream, source: DeviceBuffer, result: DeviceBuffer, shape: tuple[int, ...]
    ) -> None:
        assert stream is self.stream, "a lane computes on its own stream"
        image = image_shape(self._engine.inputs[0], shape)
        size = self._engine.work_bytes(image)
        if not size:
            self._run(image, source, result, None)
            return
        with self._work.arena(self._number).use(stream, size) as work:
            self._run(image, source, result, work)

    def __len__(self) -> int:
        """How many shapes and sets of addresses are bound."""
        return len(self._ready)

    @property
    def recorded(self) -> int:
        """How many of them are replayed as CUDA graphs."""
        return sum(len(ready.graph) for ready in self._ready.values())

    def clear(self) -> None:
        """Release all that is bound, once its work is done: before memory that it uses is freed."""
        self._drop_to(0)

    def close(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._lane.close)
            stack.callback(self.clear)

    def _run(
        self, shape: Shape, source: DeviceBuffer, result: DeviceBuffer, work: DeviceBuffer | None
    ) -> None:
        buffers = (source, result) if work is None else (source, result, work)
        key = GraphKey.of((shape.batch, shape.height, shape.width), *buffers)
        if key not in self._ready:
            self._drop_to(CAPACITY - 1)
            bound = self._lane.bind(shape, source, result, work)
            self._ready[key] = _Ready(self._cuda, bound)
        self._ready.move_to_end(key)
        ready = self._ready[key]
        if not self._graphs:
            ready.bound.launch()
            return
        ready.graph.run(self.stream, key, ready.bound.launch)
        if ready.graph.reason:
            self._graphs, self.reason = False, ready.graph.reason

    def _drop_to(self, count: int) -> None:
        if len(self._ready) <= count:
            return
        with ExitStack() as stack:
            while len(self._ready) > count:
                stack.push(self._ready.popitem(last=False)[1].resources)
            stack.callback(self.stream.synchronize)
