"""Tiles through a GPU: copy in, compute and copy out at the same time, on streams of their own.

Every slot has its own host and device memory, in and out, and three events. Batch ``i``
uses slot ``i mod slots`` again, so each piece of memory waits for its last user. With several
lanes, batches are computed beside each other: a slot always uses the same lane.

===========  ==========================  =========================================
memory       is written by               after
===========  ==========================  =========================================
host in      the host                    ``copied_in`` of the batch before (host waits)
device in    copy in                     ``computed`` of the batch before
device out   compute                     ``copied_out`` of the batch before
host out     copy out                    the host kept the batch before
===========  ==========================  =========================================
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from math import prod
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pixelrt.runtime.closing import Closing
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.memory import HostBlock, HostPool
from pixelrt.runtime.device.resources import DeviceBuffer, Event, Stream, settled

Array = NDArray[Any]
Job = TypeVar("Job")


class Compute(Protocol):
    """Queues the network on ``stream``, from ``source`` to ``result``, and returns.

    ``shape``: the batch and ``FlowShape.tile_in``, contiguous; the result is contiguous too,
    both in the flow's types. It must queue work on no other stream without ordering it, and
    must not wait for the device.
    """

    def __call__(
        self,
        stream: Stream,
        source: DeviceBuffer,
        result: DeviceBuffer,
        shape: tuple[int, ...],
    ) -> None: ...


@dataclass(frozen=True)
class Lane:
    """A stream, which outlives the flow, and what computes on it."""

    stream: Stream
    compute: Compute


@dataclass(frozen=True)
class FlowShape:
    """``tile_in`` and ``tile_out``: the dimensions of one tile, such as (H, W, C), of types
    ``dtype_in`` and ``dtype_out`` (numpy's names); ``batch``: tiles per call at most;
    ``slots``: batches in flight. ``fixed_batch``: always compute ``batch`` tiles, for plans
    of one batch size; what is left over from before fills a last, shorter batch."""

    tile_in: tuple[int, ...]
    tile_out: tuple[int, ...]
    batch: int = 1
    slots: int = 2
    fixed_batch: bool = False
    dtype_in: str = "uint8"
    dtype_out: str = "uint8"

    @property
    def tile_bytes_in(self) -> int:
        return prod(self.tile_in) * np.dtype(self.dtype_in).itemsize

    @property
    def tile_bytes_out(self) -> int:
        return prod(self.tile_out) * np.dtype(self.dtype_out).itemsize

    @property
    def bytes_in(self) -> int:
        return self.batch * self.tile_bytes_in

    @property
    def bytes_out(self) -> int:
        return self.batch * self.tile_bytes_out

    @property
    def device_bytes(self) -> int:
        """Device memory that a flow of this shape takes, apart from the network's own."""
        return self.slots * (self.bytes_in + self.bytes_out)


class _Slot:
    def __init__(
        self, cuda: Cuda, pool: HostPool, shape: FlowShape, lane: Lane, stack: ExitStack
    ) -> None:
        enter = stack.enter_context
        self.lane = lane
        self.copied_in: Event = enter(Event(cuda))
        self.computed: Event = enter(Event(cuda))
        self.copied_out: Event = enter(Event(cuda))
        self.host_in: HostBlock = enter(pool.take(shape.bytes_in))
        self.host_out: HostBlock = enter(pool.take(shape.bytes_out))
        self.device_in: DeviceBuffer = enter(DeviceBuffer(cuda, shape.bytes_in))
        self.device_out: DeviceBuffer = enter(DeviceBuffer(cuda, shape.bytes_out))
        self.pending: list[Any] = []
        """The jobs whose results are on their way to ``host_out``."""


class TileFlow(Closing):
    """Streams and memory for tiles of one shape, kept for any number of images.

    ``compute``: on a stream of the flow's own, or the lanes that share the work.
    Raises ``OutOfMemoryError`` where the device holds too little; nothing is left behind.
    A context manager. One ``run`` at a time; others wait.
    """

    def __init__(
        self,
        cuda: Cuda,
        pool: HostPool,
        compute: Compute | tuple[Lane, ...],
        shape: FlowShape,
    ) -> None:
        assert shape.slots >= 1, "a flow needs a slot"
        assert shape.batch >= 1, "a flow needs a batch"
        assert compute, "a flow needs a lane"
        self.shape = shape
        self._cuda = cuda
        self._lock = threading.Lock()
        with ExitStack() as stack:
            self._copy_in = stack.enter_context(Stream(cuda))
            lanes = (
                compute
                if isinstance(compute, tuple)
                else (Lane(stack.enter_context(Stream(cuda)), compute),)
            )
            self._copy_out = stack.enter_context(Stream(cuda))
            self._slots = [
                _Slot(cuda, pool, shape, lanes[number % len(lanes)], stack)
                for number in range(shape.slots)
            ]
            self._streams = (self._copy_in, *(lane.stream for lane in lanes), self._copy_out)
            stack.enter_context(settled(*self._streams))
            if shape.fixed_batch:
                for slot in self._slots:
                    self._copy_in.fill(slot.device_in)
            self._resources = stack.pop_all()

    def run(
        self,
        jobs: Iterable[Job],
        read: Callable[[Job, Array], None],
        keep: Callable[[Job, Array], None],
    ) -> None:
        """Put every job through the network.

        ``read(job, tile)`` fills ``tile``, of ``tile_in``. ``keep(job, result)`` is called
        once per job, in the order of ``jobs``, with one of ``tile_out`` that is valid during
        the call only. Whatever raises, the device is idle before the error goes on; the
        flow can be used again unless the device was lost.
        """
        with self._lock:
            self._cuda.activate()
            try:
                with settled(*self._streams):
                    self._run(iter(jobs), read, keep)
            finally:
                for slot in self._slots:
                    slot.pending = []

    def close(self) -> None:
        """Wait for the device and release everything."""
        self._resources.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Handed on: the failure of every stream becomes a note of it, not the first one alone.
        self._resources.__exit__(kind, exc, trace)

    def _run(
        self,
        jobs: Iterator[Job],
        read: Callable[[Job, Array], None],
        keep: Callable[[Job, Array], None],
    ) -> None:
        number = 0
        while group := list(islice(jobs, self.shape.batch)):
            self._submit(self._slots[number % len(self._slots)], group, read, keep)
            number += 1
        for offset in range(len(self._slots)):
            self._finish(self._slots[(number + offset) % len(self._slots)], keep)

    def _submit(
        self,
        slot: _Slot,
        group: list[Job],
        read: Callable[[Job, Array], None],
        keep: Callable[[Job, Array], None],
    ) -> None:
        shape, count = self.shape, len(group)
        copy_in, stream, copy_out = self._copy_in, slot.lane.stream, self._copy_out
        slot.copied_in.synchronize()
        tiles = _tiles(slot.host_in, count, shape.tile_in, shape.dtype_in)
        for job, tile in zip(group, tiles, strict=True):
            read(job, tile)
        copy_in.wait(slot.computed)
        copy_in.copy_in(slot.device_in, slot.host_in.address, count * shape.tile_bytes_in)
        copy_in.record(slot.copied_in)

        stream.wait(slot.copied_in)
        stream.wait(slot.copied_out)
        computed = shape.batch if shape.fixed_batch else count
        slot.lane.compute(stream, slot.device_in, slot.device_out, (computed, *shape.tile_in))
        stream.record(slot.computed)

        self._finish(slot, keep)
        copy_out.wait(slot.computed)
        copy_out.copy_out(slot.host_out.address, slot.device_out, count * shape.tile_bytes_out)
        copy_out.record(slot.copied_out)
        slot.pending = group

    def _finish(self, slot: _Slot, keep: Callable[[Any, Array], None]) -> None:
        """Hand over the results of the batch that used the slot before, if one did."""
        if not slot.pending:
            return
        slot.copied_out.synchronize()
        jobs, slot.pending = slot.pending, []
        results = _tiles(slot.host_out, len(jobs), self.shape.tile_out, self.shape.dtype_out)
        results.flags.writeable = False
        for job, result in zip(jobs, results, strict=True):
            keep(job, result)


def _tiles(block: HostBlock, count: int, shape: tuple[int, ...], dtype: str) -> Array:
    size = count * prod(shape) * np.dtype(dtype).itemsize
    return block.array[:size].view(dtype).reshape(count, *shape)
