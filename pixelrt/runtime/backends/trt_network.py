"""A plan of a pipeline's network as a session: named tensors in and out, lengths of its profiles.

Inputs go through pinned host memory into buffers on the device that are kept for each set of
lengths, so that the steps of a diffusion run, which have one, are replayed as a CUDA graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

import numpy as np

from pixelrt.errors import OutOfMemoryError, UsageError
from pixelrt.plans.axis_profiles import Lengths, choose_axes, lengths_of
from pixelrt.plans.facts import PlanFacts
from pixelrt.plans.profiles import Profile, tensor_shape
from pixelrt.runtime.backends.base import Array, BackendInfo, Sample, TensorSample
from pixelrt.runtime.backends.trt_engine import BoundContext, Loaded, letting_go
from pixelrt.runtime.closing import quietly, release_quietly
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.graphs import GraphCache, GraphKey
from pixelrt.runtime.device.in_turn import InTurn
from pixelrt.runtime.device.memory import HostPool
from pixelrt.runtime.device.pieces import Pieces, pieces_of
from pixelrt.runtime.device.resources import DeviceBuffer, Stream, settled
from pixelrt.runtime.device.work import WorkMemory
from pixelrt.spec import TensorSpec

CAPACITY = 4
"""Sets of lengths whose buffers stay for the next run."""


@dataclass(frozen=True)
class _Tensor:
    """An input or output: ``array`` over pinned memory at ``address``, and device memory."""

    spec: TensorSpec
    address: int
    array: Array
    device: DeviceBuffer


@dataclass(frozen=True)
class _Ready:
    """A set of lengths with memory for its tensors, its context, and the graph recorded of it.

    ``resources``: what to close.
    """

    inputs: list[_Tensor]
    outputs: list[_Tensor]
    bound: BoundContext
    graph: GraphCache
    key: GraphKey
    resources: ExitStack


class TensorRTNetwork(InTurn):
    """A ``Session`` and ``PlannedSession`` over ``loaded``, which it closes.

    Runs of more pictures than a profile takes go through in several pieces. Calls from several
    threads take turns. ``graphs``: whether to record CUDA graphs.
    """

    profiles: tuple[Profile, ...] = ()
    samples: tuple[Sample, ...] = ()

    def __init__(
        self,
        loaded: Loaded,
        cuda: Cuda,
        facts: PlanFacts,
        info: BackendInfo,
        samples: tuple[TensorSample, ...],
        *,
        graphs: bool = True,
    ) -> None:
        super().__init__(cuda, info)
        self.inputs = tuple(facts.graph.inputs)
        self.outputs = tuple(facts.graph.outputs)
        self.tensor_samples = samples
        self._profiles = facts.axis_profiles()
        self._graphs = graphs and facts.options.get("dla_core") is None
        self._ready: OrderedDict[Lengths, _Ready] = OrderedDict()
        with ExitStack() as stack:
            stack.callback(loaded.close)
            self._loaded = loaded
            self._pool = stack.enter_context(HostPool(cuda))
            self._work = stack.enter_context(WorkMemory(cuda))
            self._stream = stack.enter_context(Stream(cuda))
            self._resources = stack.pop_all()

    def takes(self, feeds: Mapping[str, Array]) -> bool:
        try:
            self._pieces(feeds)
        except UsageError:
            return False
        return True

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """``Session.infer``. Raises ``UsageError`` for lengths outside every profile."""
        for spec in self.inputs:
            if spec.name in feeds:
                self._check_type(spec, feeds[spec.name])
        pieces = self._pieces(feeds)
        with self._using():
            parts = [
                self._run(pieces.lengths, pieces.cut(self.inputs, feeds, rows))
                for rows in pieces.rows
            ]
        return pieces.join(self.outputs, parts)

    def _let_go(self, stack: ExitStack) -> None:
        stack.push(quietly(self._forget))

    def _pieces(self, feeds: Mapping[str, Array]) -> Pieces:
        lengths = lengths_of(self.inputs, {name: value.shape for name, value in feeds.items()})
        return pieces_of(self._profiles, self.outputs, lengths)

    def _run(self, lengths: Lengths, feeds: Mapping[str, Array]) -> dict[str, Array]:
        ready = self._get_ready(lengths)
        try:
            self._queue(ready, feeds)
        except BaseException as exc:
            release_quietly(self._forget, exc)
            raise
        return {tensor.spec.name: tensor.array.copy() for tensor in ready.outputs}

    def _queue(self, ready: _Ready, feeds: Mapping[str, Array]) -> None:
        """Copy in, run, copy out; done when this returns."""
        stream = self._stream
        with settled(stream):
            for tensor in ready.inputs:
                np.copyto(tensor.array, feeds[tensor.spec.name])
                stream.copy_in(tensor.device, tensor.address, tensor.array.nbytes)
            if self._graphs:
                ready.graph.run(stream, ready.key, ready.bound.launch)
            else:
                ready.bound.launch()
            for tensor in ready.outputs:
                stream.copy_out(tensor.address, tensor.device, tensor.array.nbytes)

    def _get_ready(self, lengths: Lengths) -> _Ready:
        """What is kept for ``lengths``, or made; where memory is short, all else is given up."""
        if lengths not in self._ready:
            while len(self._ready) >= CAPACITY:
                self._ready.popitem(last=False)[1].resources.close()
            try:
                made = self._make(lengths)
            except OutOfMemoryError:
                self._give_back()
                try:
                    made = self._make(lengths)
                except BaseException as exc:
                    release_quietly(self._give_back, exc)
                    raise
            self._ready[lengths] = made
        self._ready.move_to_end(lengths)
        return self._ready[lengths]

    def _make(self, lengths: Lengths) -> _Ready:
        with letting_go():
            return self._bound(lengths)

    def _bound(self, lengths: Lengths) -> _Ready:
        loaded, stream = self._loaded, self._stream
        with ExitStack() as stack:
            inputs = [self._tensor(spec, lengths, stack) for spec in self.inputs]
            outputs = [self._tensor(spec, lengths, stack) for spec in self.outputs]
            context = loaded.context(choose_axes(self._profiles, lengths.lengths), stream)
            bound = BoundContext(loaded.trt, context, stream)
            stack.callback(bound.close)
            stack.push(quietly(stream.synchronize))
            memory = self._reserve(loaded.set_lengths(context, self.inputs, self.outputs, lengths))
            devices = {tensor.spec.name: tensor.device for tensor in (*inputs, *outputs)}
            loaded.bind(context, memory, devices.items())
            graph = stack.enter_context(GraphCache(self._cuda, capacity=1))
            buffers = [*devices.values(), *([memory] if memory else [])]
            key = GraphKey.of(tuple(lengths.lengths.values()), *buffers)
            return _Ready(inputs, outputs, bound, graph, key, stack.pop_all())

    def _tensor(self, spec: TensorSpec, lengths: Lengths, stack: ExitStack) -> _Tensor:
        dims = tensor_shape(spec, lengths)
        size = prod(dims) * np.dtype(spec.dtype).itemsize
        host = stack.enter_context(self._pool.take(size))
        device = stack.enter_context(DeviceBuffer(self._cuda, size))
        return _Tensor(spec, host.address, host.array.view(spec.dtype).reshape(dims), device)

    def _reserve(self, size: int) -> DeviceBuffer | None:
        """Memory to work in; what is bound to memory that would move is given up."""
        if not size:
            return None
        if self._work.size < size:
            self._forget()
            self._work.share(1, size)
        return self._work.arena(0).reserve(size)

    def _forget(self) -> None:
        with ExitStack() as stack:
            while self._ready:
                stack.enter_context(self._ready.popitem()[1].resources)

    def _give_back(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._pool.trim)
            stack.callback(self._work.release)
            stack.callback(self._forget)
