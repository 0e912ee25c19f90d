"""Tiles through a GPU: copy in, compute and copy out at the same time, on three streams.

Every slot has its own host and device memory, in and out, and three events. Batch ``i``
uses slot ``i mod slots`` again, so each piece of memory waits for its last user:

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
from itertools import islice, product
from math import prod
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pixelrt.geometry import TilePlan
from pixelrt.runtime.cuda import Cuda
from pixelrt.runtime.memory import HostBlock, HostPool
from pixelrt.runtime.resources import DeviceBuffer, Event, Stream, settled
from pixelrt.runtime.tiling import Progress, keep_core

Pixels = NDArray[np.uint8]
Job = TypeVar("Job")


class Compute(Protocol):
    """Queues the network on ``stream``, from ``source`` to ``result``, and returns.

    ``shape`` is (N, H, W, C) of the input, uint8; the result is contiguous uint8. It must
    queue work on no other stream without ordering it, and must not wait for the device.
    """

    def __call__(
        self,
        stream: Stream,
        source: DeviceBuffer,
        result: DeviceBuffer,
        shape: tuple[int, ...],
    ) -> None: ...


@dataclass(frozen=True)
class FlowShape:
    """``tile_in`` and ``tile_out``: (H, W, C) of one tile; ``batch``: tiles per call at most;
    ``slots``: batches in flight. ``fixed_batch``: always compute ``batch`` tiles, for plans
    of one batch size; what is left over from before fills a last, shorter batch."""

    tile_in: tuple[int, int, int]
    tile_out: tuple[int, int, int]
    batch: int = 1
    slots: int = 2
    fixed_batch: bool = False

    @property
    def bytes_in(self) -> int:
        return self.batch * prod(self.tile_in)

    @property
    def bytes_out(self) -> int:
        return self.batch * prod(self.tile_out)

    @property
    def device_bytes(self) -> int:
        """Device memory that a flow of this shape takes, apart from the network's own."""
        return self.slots * (self.bytes_in + self.bytes_out)


class _Slot:
    def __init__(self, cuda: Cuda, pool: HostPool, shape: FlowShape, stack: ExitStack) -> None:
        enter = stack.enter_context
        self.copied_in: Event = enter(Event(cuda))
        self.computed: Event = enter(Event(cuda))
        self.copied_out: Event = enter(Event(cuda))
        self.host_in: HostBlock = enter(pool.take(shape.bytes_in))
        self.host_out: HostBlock = enter(pool.take(shape.bytes_out))
        self.device_in: DeviceBuffer = enter(DeviceBuffer(cuda, shape.bytes_in))
        self.device_out: DeviceBuffer = enter(DeviceBuffer(cuda, shape.bytes_out))
        self.pending: list[Any] = []
        """The jobs whose results are on their way to ``host_out``."""


class TileFlow:
    """Streams and memory for tiles of one shape, kept for any number of images.

    Raises ``OutOfMemoryError`` where the device holds too little; nothing is left behind.
    A context manager. One ``run`` at a time; others wait.
    """

    def __init__(self, cuda: Cuda, pool: HostPool, compute: Compute, shape: FlowShape) -> None:
        assert shape.slots >= 1, "a flow needs a slot"
        assert shape.batch >= 1, "a flow needs a batch"
        self.shape = shape
        self._cuda = cuda
        self._compute = compute
        self._lock = threading.Lock()
        with ExitStack() as stack:
            self._streams = tuple(stack.enter_context(Stream(cuda)) for _ in range(3))
            self._slots = [_Slot(cuda, pool, shape, stack) for _ in range(shape.slots)]
            stack.enter_context(settled(*self._streams))
            if shape.fixed_batch:
                for slot in self._slots:
                    self._streams[0].fill(slot.device_in)
            self._resources = stack.pop_all()

    def run(
        self,
        jobs: Iterable[Job],
        read: Callable[[Job, Pixels], None],
        keep: Callable[[Job, Pixels], None],
    ) -> None:
        """Put every job through the network.

        ``read(job, tile)`` fills ``tile``, (H, W, C) uint8. ``keep(job, result)`` is called
        once per job, in the order of ``jobs``, with (H', W', C') uint8 that is valid during
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.__exit__(kind, exc, trace)

    def _run(
        self,
        jobs: Iterator[Job],
        read: Callable[[Job, Pixels], None],
        keep: Callable[[Job, Pixels], None],
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
        read: Callable[[Job, Pixels], None],
        keep: Callable[[Job, Pixels], None],
    ) -> None:
        copy_in, compute, copy_out = self._streams
        count = len(group)
        slot.copied_in.synchronize()
        for job, tile in zip(group, _tiles(slot.host_in, count, self.shape.tile_in), strict=True):
            read(job, tile)
        copy_in.wait(slot.computed)
        copy_in.copy_in(slot.device_in, slot.host_in.address, count * prod(self.shape.tile_in))
        copy_in.record(slot.copied_in)

        compute.wait(slot.copied_in)
        compute.wait(slot.copied_out)
        computed = self.shape.batch if self.shape.fixed_batch else count
        self._compute(compute, slot.device_in, slot.device_out, (computed, *self.shape.tile_in))
        compute.record(slot.computed)

        self._finish(slot, keep)
        copy_out.wait(slot.computed)
        size = count * prod(self.shape.tile_out)
        copy_out.copy_out(slot.host_out.address, slot.device_out, size)
        copy_out.record(slot.copied_out)
        slot.pending = group

    def _finish(self, slot: _Slot, keep: Callable[[Any, Pixels], None]) -> None:
        """Hand over the results of the batch that used the slot before, if one did."""
        if not slot.pending:
            return
        slot.copied_out.synchronize()
        jobs, slot.pending = slot.pending, []
        results = _tiles(slot.host_out, len(jobs), self.shape.tile_out)
        results.flags.writeable = False
        for job, result in zip(jobs, results, strict=True):
            keep(job, result)


def _tiles(block: HostBlock, count: int, shape: tuple[int, int, int]) -> Pixels:
    return block.array[: count * prod(shape)].reshape(count, *shape)


def flow_plan(
    flow: TileFlow,
    images: Pixels,
    plan: TilePlan,
    out: Pixels,
    *,
    scale: int,
    progress: Progress | None = None,
) -> None:
    """Like ``tiling.run_plan``, through a flow for tiles of the plan's shape.

    ``images``: (B, H, W, C) of the plan's size; ``out``: (B, H', W', C'), at most ``scale``
    times the plan's size; what lies beyond is cropped.
    """
    jobs = list(product(range(len(images)), plan))
    done = 0
    if progress:
        progress(0, len(jobs))

    def read(job: tuple[int, Any], target: Pixels) -> None:
        target[...] = images[job[0], *job[1].read.slices]

    def keep(job: tuple[int, Any], values: Pixels) -> None:
        nonlocal done
        keep_core(job[1], values, out[job[0]], scale)
        done += 1
        if progress:
            progress(done, len(jobs))

    flow.run(jobs, read, keep)
