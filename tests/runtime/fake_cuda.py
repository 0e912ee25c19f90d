"""A fake of the CUDA calls that runs work late, in a random legal order, and checks ordering.

Queued work waits until a synchronisation needs it (or until chance runs it early). What
happens before what is known exactly: every operation holds the set of operations that
streams, events and host synchronisation put before it, as a bit mask. ``Hazard`` is raised

- when two operations touch the same bytes, one of them writing, and neither comes before
  the other, whatever order they would have run in;
- when the host changes memory that a queued copy still reads or writes;
- when memory is freed, or a stream or graph destroyed, before the host knows its work done;
- for a double free, an unknown handle, a copy out of bounds or onto itself, a graph on freed
  memory.

Rows of strided copies count exactly: two that interleave have no byte in common.

Results that the host reads too early, and memory read before it was written, hold noise.
``assert_clean`` finds what was not released. ``fail_at`` makes one call fail (releases and
synchronisations take effect and report the error, as CUDA does for earlier work);
``lose_device`` makes all calls after it fail as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from pixelrt.errors import BackendError, OutOfMemoryError
from pixelrt.geometry import round_up
from pixelrt.runtime.device.cuda import CopyKind, Rows
from pixelrt.runtime.device.memory import host_view

LEGACY, PER_THREAD = 1, 2
"""Stream handles that are always there: ``cudaStreamLegacy``, ``cudaStreamPerThread``."""


class Hazard(AssertionError):  # noqa: N818 - it is what it is called
    """Work that is not ordered as it must be, or a handle that is used wrongly."""


@dataclass(eq=False)
class Allocation:
    address: int
    size: int
    array: np.ndarray[Any, Any]
    kind: str
    users: list[Operation] = field(default_factory=list)


@dataclass(frozen=True)
class Span:
    """``height`` rows of ``width`` bytes of an allocation, the first at ``start``.

    Each row begins ``pitch`` bytes after the one before; what lies between is not touched.
    """

    allocation: Allocation
    start: int
    width: int
    pitch: int = 0
    height: int = 1

    @property
    def stop(self) -> int:
        return self.start + (self.height - 1) * self.pitch + self.width

    @property
    def view(self) -> np.ndarray[Any, Any]:
        """(width,) or (height, width)."""
        return as_rows(self.allocation.array[self.start : self.stop], self)

    def meets(self, other: Span) -> bool:
        """Whether a byte belongs to both."""
        if self.allocation is not other.allocation:
            return False
        if self.stop <= other.start or other.stop <= self.start:
            return False
        first = self.start + np.arange(self.height) * self.pitch
        # The last row of the other one that begins before a row of ours ends: those before
        # it end earlier still.
        step = max(1, other.pitch)
        near = np.minimum((first + self.width - 1 - other.start) // step, other.height - 1)
        ends = other.start + near * other.pitch + other.width
        return bool(np.any((near >= 0) & (ends > first)))


def as_rows(flat: np.ndarray[Any, Any], rows: Span | Rows) -> np.ndarray[Any, Any]:
    """A view of ``flat``, which begins where the rows begin."""
    if rows.height == 1:
        return flat[: rows.width]
    return as_strided(flat, (rows.height, rows.width), (rows.pitch, 1))


@dataclass(eq=False)
class Operation:
    name: str
    reads: tuple[Span, ...]
    writes: tuple[Span, ...]
    run: Callable[[], None]
    index: int = -1
    before: int = 0

    @property
    def spans(self) -> tuple[Span, ...]:
        return self.reads + self.writes

    def conflicts(self, other: Operation) -> bool:
        pairs = [(a, b) for a in self.writes for b in other.spans]
        pairs += [(a, b) for a in self.reads for b in other.writes]
        return any(a.meets(b) for a, b in pairs)


@dataclass(eq=False)
class FakeStream:
    after: int = 0
    capture: list[Operation] | None = None
    invalidated: bool = False


@dataclass(eq=False)
class FakeEvent:
    timing: bool
    after: int = 0
    recorded: bool = False


@dataclass(eq=False)
class FakeExecutable:
    operations: list[Operation]
    last: int = 0


class FakeCuda:
    """``pixelrt.runtime.device.cuda.Cuda`` without a device. ``memory``: bytes of device memory."""

    def __init__(
        self,
        seed: int = 0,
        *,
        memory: int = 1 << 30,
        pinnable: int = 1 << 30,
        fail_at: int | None = None,
        fail_call: str = "",
        lose_device: bool = False,
        out_of_memory: bool = False,
    ) -> None:
        self.random = random.Random(seed)
        self.haste = self.random.choice([0.0, 0.2, 0.6])
        self.noise = np.random.default_rng(seed)
        self.memory, self.pinnable = memory, pinnable
        self.fail_at, self.fail_call = fail_at, fail_call
        self.lose_device, self.out_of_memory = lose_device, out_of_memory
        self.lost = False
        self.calls: list[str] = []
        self.operations: list[Operation] = []
        self.done = 0
        self.host = 0
        self.allocations: dict[int, Allocation] = {}
        self.streams: dict[int, FakeStream] = {LEGACY: FakeStream(), PER_THREAD: FakeStream()}
        self.events: dict[int, FakeEvent] = {}
        self.graphs: dict[int, list[Operation]] = {}
        self.executables: dict[int, FakeExecutable] = {}
        self._graveyard: list[Allocation] = []
        self._reusable: dict[int, list[int]] = {}
        self._next_address = 0x7F00_0000_0000
        self._next_handle = 0x1000
        self.peak = 0
        self.current = 0

    # the device

    device = 0

    def activate(self, device: int | None = None) -> None:
        with self._call("activate"):
            self.current = self.device if device is None else device

    def current_device(self) -> int:
        with self._call("current_device"):
            return self.current

    def synchronize(self) -> None:
        with self._call("synchronize", unsafe=True, takes_effect=True):
            if self.current == self.device:
                self._reach((1 << len(self.operations)) - 1)

    def device_count(self) -> int:
        return 1

    def device_name(self) -> str:
        return "fake"

    def compute_capability(self) -> tuple[int, int]:
        return 0, 0

    def memory_info(self) -> tuple[int, int]:
        return self.memory - self.used("device"), self.memory

    def used(self, kind: str) -> int:
        return sum(item.size for item in self.allocations.values() if item.kind == kind)

    # memory

    def malloc(self, size: int) -> int:
        with self._call("malloc", unsafe=True):
            if self.used("device") + size > self.memory:
                raise OutOfMemoryError("cudaMalloc failed: cudaErrorMemoryAllocation (2)")
            reusable = self._reusable.get(size)
            if reusable:
                address = reusable.pop()
            else:
                address = self._next_address
                # 256 bytes apart and aligned to 256, as CUDA's are
                self._next_address += round_up(size, 256) + 256
            array = self.noise.integers(0, 256, size, np.uint8)
            self.allocations[address] = Allocation(address, size, array, "device")
            self.peak = max(self.peak, self.used("device"))
            return address

    def free(self, address: int) -> None:
        with self._call("free", unsafe=True, takes_effect=True):
            allocation = self._remove(address, "device")
            self._reusable.setdefault(allocation.size, []).append(address)

    def host_alloc(self, size: int) -> int:
        with self._call("host_alloc", unsafe=True):
            if self.used("host") + size > self.pinnable:
                raise OutOfMemoryError("cudaHostAlloc failed: cudaErrorMemoryAllocation (2)")
            array = self.noise.integers(0, 256, size, np.uint8)
            address = int(array.ctypes.data)
            self.allocations[address] = Allocation(address, size, array, "host")
            return address

    def host_free(self, address: int) -> None:
        with self._call("host_free", unsafe=True, takes_effect=True):
            allocation = self._remove(address, "host")
            allocation.array[:] = self.noise.integers(0, 256, allocation.size, np.uint8)

    # streams and events

    def stream_create(self) -> int:
        with self._call("stream_create"):
            return self._add(self.streams, FakeStream())

    def stream_destroy(self, stream: int) -> None:
        with self._call("stream_destroy", takes_effect=True):
            found = self._find(self.streams, stream, "stream")
            self._require_known(found.after, "a stream is destroyed")
            del self.streams[stream]

    def stream_synchronize(self, stream: int) -> None:
        with self._call("stream_synchronize", unsafe=True, takes_effect=True):
            self._reach(self._find(self.streams, stream, "stream").after)

    def stream_wait_event(self, stream: int, event: int) -> None:
        with self._call("stream_wait_event"):
            target = self._find(self.streams, stream, "stream")
            source = self._find(self.events, event, "event")
            if target.capture is not None and source.recorded:
                target.invalidated = True
                raise BackendError("cudaErrorStreamCaptureIsolation (905)")
            target.after |= source.after

    def event_create(self, timing: bool) -> int:
        with self._call("event_create"):
            return self._add(self.events, FakeEvent(timing))

    def event_destroy(self, event: int) -> None:
        with self._call("event_destroy", takes_effect=True):
            self._find(self.events, event, "event")
            del self.events[event]

    def event_record(self, event: int, stream: int) -> None:
        with self._call("event_record"):
            source = self._find(self.streams, stream, "stream")
            target = self._find(self.events, event, "event")
            if source.capture is not None:
                source.invalidated = True
                raise BackendError("cudaErrorCapturedEvent (907)")
            target.after, target.recorded = source.after | self.host, True

    def event_query(self, event: int) -> bool:
        with self._call("event_query", unsafe=True):
            after = self._find(self.events, event, "event").after
            if after & ~self.done:
                return False
            self.host |= after
            return True

    def event_synchronize(self, event: int) -> None:
        with self._call("event_synchronize", unsafe=True, takes_effect=True):
            self._reach(self._find(self.events, event, "event").after)

    def event_elapsed(self, start: int, end: int) -> float:
        with self._call("event_elapsed"):
            pair = [self._find(self.events, event, "event") for event in (start, end)]
            if not all(event.timing and event.recorded for event in pair):
                raise Hazard("elapsed time of events that were not recorded with timing")
            return float(pair[1].after.bit_count() - pair[0].after.bit_count())

    # work

    def copy(self, destination: int, source: int, size: int, kind: CopyKind, stream: int) -> None:
        with self._call("copy"):
            target, origin = Rows(destination, size, size, 1), Rows(source, size, size, 1)
            self._copy(target, origin, kind, stream)

    def copy_2d(self, target: Rows, source: Rows, kind: CopyKind, stream: int) -> None:
        with self._call("copy_2d"):
            if (target.width, target.height) != (source.width, source.height):
                raise Hazard(f"{source} does not fit {target}")
            self._copy(target, source, kind, stream)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        with self._call("fill"):
            target = self._device(address, size)
            self._enqueue(stream, Operation("fill", (), (target,), lambda: target.view.fill(value)))

    def kernel(
        self,
        stream: int,
        reads: Sequence[tuple[int, int]],
        writes: Sequence[tuple[int, int]],
        function: Callable[..., None],
        *,
        capturable: bool = True,
    ) -> None:
        """Queue ``function(*read arrays, *written arrays)``; spans are (address, size)."""
        with self._call("kernel"):
            sources = tuple(self._device(*span) for span in reads)
            targets = tuple(self._device(*span) for span in writes)
            found = self._find(self.streams, stream, "stream")
            if found.capture is not None and not capturable:
                found.invalidated = True
                raise BackendError("cudaErrorStreamCaptureUnsupported (900)")
            self._enqueue(
                stream,
                Operation(
                    "kernel",
                    sources,
                    targets,
                    lambda: function(*(span.view for span in (*sources, *targets))),
                ),
            )

    # graphs

    def capture_begin(self, stream: int) -> None:
        with self._call("capture_begin"):
            found = self._find(self.streams, stream, "stream")
            if found.capture is not None or stream == LEGACY:
                raise BackendError("cudaErrorStreamCaptureUnsupported (900)")
            found.capture, found.invalidated = [], False

    def capture_end(self, stream: int) -> int:
        with self._call("capture_end", takes_effect=True):
            found = self._find(self.streams, stream, "stream")
            operations, found.capture = found.capture, None
            if operations is None:
                raise Hazard("the end of a capture that was not begun")
            if found.invalidated or self._fails():
                found.invalidated = False
                raise BackendError("cudaErrorStreamCaptureInvalidated (901)")
            return self._add(self.graphs, operations)

    def graph_instantiate(self, graph: int) -> int:
        with self._call("graph_instantiate"):
            operations = self._find(self.graphs, graph, "graph")
            return self._add(self.executables, FakeExecutable(list(operations)))

    def graph_launch(self, executable: int, stream: int) -> None:
        with self._call("graph_launch"):
            found = self._find(self.executables, executable, "executable graph")
            operations = found.operations
            spans = [span for operation in operations for span in operation.spans]
            for span in spans:
                if self.allocations.get(span.allocation.address) is not span.allocation:
                    raise Hazard("a graph is replayed on memory that was freed")

            def run() -> None:
                for operation in operations:
                    operation.run()

            reads = tuple(span for operation in operations for span in operation.reads)
            writes = tuple(span for operation in operations for span in operation.writes)
            launched = Operation("graph", reads, writes, run, before=found.last)
            self._enqueue(stream, launched)
            found.last = launched.before | 1 << launched.index

    def graph_destroy(self, graph: int) -> None:
        with self._call("graph_destroy", takes_effect=True):
            self._find(self.graphs, graph, "graph")
            del self.graphs[graph]

    def executable_destroy(self, executable: int) -> None:
        with self._call("executable_destroy", takes_effect=True):
            found = self._find(self.executables, executable, "executable graph")
            self._require_known(found.last, "a graph is destroyed")
            del self.executables[executable]

    # what tests ask

    def assert_clean(self) -> None:
        """Nothing is held, and the host knows that all work is done."""
        held = {
            "memory": [item.kind for item in self.allocations.values()],
            "streams": [key for key in self.streams if key not in (LEGACY, PER_THREAD)],
            "events": list(self.events),
            "graphs": list(self.graphs),
            "executables": list(self.executables),
            "captures": [key for key, item in self.streams.items() if item.capture is not None],
        }
        leaks = {name: items for name, items in held.items() if items}
        if leaks:
            raise Hazard(f"not released: {leaks}")
        self.assert_idle()

    def assert_idle(self) -> None:
        """The host knows that all work is done."""
        self._require_known((1 << len(self.operations)) - 1, "everything ends")

    def finish(self) -> None:
        """Do all queued work, as the end of the process would."""
        self._reach((1 << len(self.operations)) - 1)

    # the machinery

    @contextmanager
    def _call(
        self, name: str, *, unsafe: bool = False, takes_effect: bool = False
    ) -> Iterator[None]:
        self.calls.append(name)
        self._drift()
        fails = self._fails()
        if fails and self.lose_device:
            self.lost = True
        if fails and not takes_effect:
            raise self._failure(name)
        if unsafe and not fails:
            capturing = [item for item in self.streams.values() if item.capture is not None]
            for stream in capturing:
                stream.invalidated = True
            if capturing:
                raise BackendError(f"{name}: cudaErrorStreamCaptureUnsupported (900)")
        yield
        if fails:
            raise self._failure(name)

    def _fails(self) -> bool:
        index, name = len(self.calls) - 1, self.calls[-1]
        return self.lost or index == self.fail_at or name == self.fail_call

    def _failure(self, name: str) -> BackendError:
        kind = OutOfMemoryError if self.out_of_memory else BackendError
        return kind(f"planted failure of {name}, call {len(self.calls) - 1}")

    def _drift(self) -> None:
        while self.random.random() < self.haste:
            ready = [op for op in self._waiting() if not op.before & ~self.done]
            if not ready:
                return
            self._do(self.random.choice(ready))

    def _waiting(self, among: int = -1) -> list[Operation]:
        mask = among & ~self.done
        return [op for op in self.operations if mask >> op.index & 1]

    def _do(self, operation: Operation) -> None:
        self.done |= 1 << operation.index
        operation.run()

    def _reach(self, mask: int) -> None:
        """Run what is in ``mask``, in a random legal order; the host knows it done then."""
        while waiting := self._waiting(mask):
            self._do(self.random.choice([op for op in waiting if not op.before & ~self.done]))
        self.host |= mask

    def _enqueue(self, stream: int, operation: Operation) -> None:
        found = self._find(self.streams, stream, "stream")
        if found.capture is not None:
            found.capture.append(operation)
            return
        operation.index = len(self.operations)
        operation.before |= found.after | self.host
        for allocation in {
            id(span.allocation): span.allocation for span in operation.spans
        }.values():
            for other in allocation.users:
                if not operation.before >> other.index & 1 and operation.conflicts(other):
                    raise Hazard(f"{operation.name} is not ordered after {other.name}")
            allocation.users.append(operation)
        found.after |= operation.before | 1 << operation.index
        self.operations.append(operation)

    def _copy(self, destination: Rows, source: Rows, kind: CopyKind, stream: int) -> None:
        target = self._span(destination, "host" if kind == "d2h" else "device")
        origin = self._span(source, "host" if kind == "h2d" else "device")
        if target is None:
            self._copy_to_pageable(destination, origin, stream)
        elif origin is None:
            staged = pageable(source).copy()
            self._enqueue(stream, self._copy_operation(kind, target, None, staged))
        elif target.meets(origin):
            raise Hazard("a copy between rows that overlap")
        else:
            snapshot = self._watch(target, origin, kind)
            self._enqueue(stream, self._copy_operation(kind, target, origin, snapshot))

    def _copy_operation(
        self,
        kind: str,
        target: Span,
        origin: Span | None,
        snapshot: np.ndarray[Any, Any] | None,
    ) -> Operation:
        def run() -> None:
            host = {"h2d": origin, "d2h": target}.get(kind)
            if host and snapshot is not None and not np.array_equal(host.view, snapshot):
                raise Hazard(f"the host changed memory of a queued {kind} copy")
            target.view[:] = snapshot if origin is None else origin.view

        return Operation(kind, (origin,) if origin else (), (target,), run)

    def _watch(self, target: Span, origin: Span, kind: str) -> np.ndarray[Any, Any] | None:
        """What the host side of a copy holds until it runs; noise where it will be written."""
        if kind == "d2d":
            return None
        host = target if kind == "d2h" else origin
        if any(not self.done >> op.index & 1 for op in host.allocation.users):
            return None
        if kind == "d2h":
            host.view[:] = self.noise.integers(0, 256, host.view.shape, np.uint8)
        return host.view.copy()

    def _copy_to_pageable(self, destination: Rows, origin: Span | None, stream: int) -> None:
        """CUDA returns from such a copy once it is complete."""
        if origin is None:
            raise Hazard("a copy within host memory")
        operation = Operation("d2h to pageable memory", (origin,), (), lambda: None)
        self._enqueue(stream, operation)
        self._reach(self.streams[stream].after)
        pageable(destination)[:] = origin.view

    def _span(self, rows: Rows, kind: str) -> Span | None:
        """The span of an address; ``None`` for host memory that is not pinned."""
        size = (rows.height - 1) * rows.pitch + rows.width
        for item in self.allocations.values():
            if item.address <= rows.address < item.address + item.size:
                start = rows.address - item.address
                if item.kind != kind or start + size > item.size:
                    raise Hazard(f"{size} bytes at {start} of {item.size} bytes of {item.kind}")
                return Span(item, start, rows.width, rows.pitch, rows.height)
        if kind == "device":
            raise Hazard("device memory that was never allocated or is freed")
        return None

    def _device(self, address: int, size: int) -> Span:
        span = self._span(Rows(address, size, size, 1), "device")
        assert span is not None
        return span

    def _remove(self, address: int, kind: str) -> Allocation:
        allocation = self.allocations.get(address)
        if allocation is None or allocation.kind != kind:
            raise Hazard(f"free of {kind} memory that is not allocated: a double free?")
        for user in allocation.users:
            self._require_known(1 << user.index, f"{kind} memory is freed")
        del self.allocations[address]
        self._graveyard.append(allocation)
        return allocation

    def _require_known(self, mask: int, what: str) -> None:
        for operation in self.operations:
            if mask >> operation.index & 1 and not self.host >> operation.index & 1:
                raise Hazard(f"{what} before {operation.name} is known to be done")

    def _add(self, table: dict[int, Any], item: Any) -> int:
        self._next_handle += 1
        table[self._next_handle] = item
        return self._next_handle

    def _find(self, table: dict[int, Any], handle: int, what: str) -> Any:
        if handle not in table:
            raise Hazard(f"no such {what}: never made, or destroyed")
        return table[handle]


def pageable(rows: Rows) -> np.ndarray[Any, Any]:
    """Host memory that the fake did not allocate."""
    size = (rows.height - 1) * rows.pitch + rows.width
    return as_rows(host_view(rows.address, size), rows)
