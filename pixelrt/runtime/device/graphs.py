"""CUDA graphs: a recorded launch, replayed for the very shape and memory it was made with."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from pixelrt.errors import BackendError
from pixelrt.runtime.closing import Closing, quietly, release_quietly
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.resources import DeviceBuffer, Event, Resource, Stream
from pixelrt.runtime.device.stages import Compute


@dataclass(frozen=True)
class GraphKey:
    """What a graph was recorded for: the shape, and every allocation that it touches."""

    shape: tuple[int, ...]
    buffers: tuple[tuple[int, int], ...]
    """``DeviceBuffer.identity`` of each: address and serial number, so that new memory at
    an old address is another key."""

    @classmethod
    def of(cls, shape: tuple[int, ...], *buffers: DeviceBuffer) -> GraphKey:
        return cls(shape, tuple(buffer.identity for buffer in buffers))


class _Graph:
    """A graph ready to launch, and the event of its last launch.

    ``resources`` is what to close: it waits for the last launch first.
    """

    def __init__(self, cuda: Cuda, graph: int) -> None:
        self._cuda = cuda
        with ExitStack() as stack:
            executable = Resource(cuda.graph_instantiate(graph), cuda.executable_destroy)
            self._executable = stack.enter_context(executable)
            self._launched = stack.enter_context(Event(cuda))
            stack.push(quietly(self._launched.synchronize))
            self.resources = stack.pop_all()

    def launch(self, stream: Stream) -> None:
        self._cuda.graph_launch(self._executable.handle, stream.handle)
        stream.record(self._launched)


class GraphCache(Closing):
    """Recorded launches of one execution context, at most ``capacity``, least used dropped.

    A key runs plainly the first time (libraries allocate then), is recorded the second time
    and replayed from there on, on any stream. Where recording fails, graphs are switched
    off: ``reason`` says why, and everything runs plainly. Not for use by several threads
    at once. A context manager.
    """

    def __init__(self, cuda: Cuda, *, capacity: int = 8) -> None:
        self.reason = ""
        self._cuda = cuda
        self._capacity = capacity
        self._graphs: OrderedDict[GraphKey, _Graph | None] = OrderedDict()

    def run(self, stream: Stream, key: GraphKey, launch: Callable[[], None]) -> None:
        """Have the work that ``launch`` queues on ``stream`` done, by replay where possible.

        ``launch`` must queue on ``stream`` only, and the same work every time for one key.
        """
        if self.reason:
            launch()
            return
        if key not in self._graphs:
            self._make_room()
            launch()
            self._graphs[key] = None
            return
        self._graphs.move_to_end(key)
        graph = self._graphs[key] or self._record(stream, key, launch)
        if graph is None:
            launch()
        else:
            graph.launch(stream)

    def __len__(self) -> int:
        """How many graphs are recorded."""
        return sum(graph is not None for graph in self._graphs.values())

    def close(self) -> None:
        """Destroy all graphs, each after its last launch; before the memory they use."""
        with ExitStack() as stack:
            while self._graphs:
                graph = self._graphs.popitem()[1]
                if graph is not None:
                    stack.enter_context(graph.resources)

    def _make_room(self) -> None:
        while len(self._graphs) >= self._capacity:
            graph = self._graphs.popitem(last=False)[1]
            if graph is not None:
                graph.resources.close()

    def _record(self, stream: Stream, key: GraphKey, launch: Callable[[], None]) -> _Graph | None:
        try:
            self._graphs[key] = graph = self._capture(stream, launch)
        except BackendError as exc:
            self.reason = f"CUDA graphs are off: {exc.message}"
            self.close()
            return None
        return graph

    def _capture(self, stream: Stream, launch: Callable[[], None]) -> _Graph:
        self._cuda.capture_begin(stream.handle)
        try:
            launch()
        except BaseException as exc:
            release_quietly(lambda: self._abandon(stream), exc)
            raise
        graph = self._cuda.capture_end(stream.handle)
        with ExitStack() as stack:
            with Resource(graph, self._cuda.graph_destroy):
                recorded = _Graph(self._cuda, graph)
                stack.enter_context(recorded.resources)
            stack.pop_all()
        return recorded

    def _abandon(self, stream: Stream) -> None:
        graph = self._cuda.capture_end(stream.handle)
        if graph:
            self._cuda.graph_destroy(graph)


class GraphedCompute:
    """A ``Compute`` that replays another one from a cache.

    ``shared`` gives the further device memory that the network works in (weights aside),
    such as the arena: it is part of the key. TensorRT wants one execution context per
    recorded graph: ``compute`` chooses it by ``shape`` and the address of ``source``.
    """

    def __init__(
        self,
        cache: GraphCache,
        compute: Compute,
        shared: Callable[[], tuple[DeviceBuffer, ...]] = tuple,
    ) -> None:
        self._cache = cache
        self._compute = compute
        self._shared = shared

    def __call__(
        self, stream: Stream, source: DeviceBuffer, result: DeviceBuffer, shape: tuple[int, ...]
    ) -> None:
        key = GraphKey.of(shape, source, result, *self._shared())
        self._cache.run(stream, key, lambda: self._compute(stream, source, result, shape))
