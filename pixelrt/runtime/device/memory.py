"""Host memory that a GPU can read in place, and device memory that contexts share."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import BackendError
from pixelrt.geometry import round_up
from pixelrt.runtime.closing import Closing, release_quietly
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.resources import DeviceBuffer, Event, Resource, Stream

IDLE_LIMIT = 256 * 2**20
"""Bytes of pinned memory that a pool keeps for reuse: it is memory the system cannot swap."""

Bytes = NDArray[np.uint8]


class PageableMemoryWarning(RuntimeWarning):
    """Host memory could not be pinned: results are the same, copies are slower."""


def free_on(cuda: Cuda) -> int:
    """Bytes of device memory that nobody holds."""
    cuda.activate()
    return cuda.memory_info()[0]


class HostBlock(Resource):
    """Host memory of a pool: ``array`` (size,) uint8 at ``address``, not initialised.

    ``pinned`` tells whether copies can run beside the host. Leaving a ``with`` block or
    ``close`` gives it back to the pool; the array must not be used afterwards.
    """

    def __init__(self, pool: HostPool, memory: _Memory, size: int) -> None:
        super().__init__(memory.address, lambda _: pool._take_back(memory))
        self.size = size
        self.pinned = memory.pinned
        self._memory = memory

    @property
    def address(self) -> int:
        return self.handle

    @property
    def array(self) -> Bytes:
        assert not self.closed, "host memory is used after it was given back"
        return self._memory.array[: self.size]


class HostPool(Closing):
    """Pinned host memory for reuse: pinning is slow, so blocks go round.

    Sizes are rounded up to a class (at most a quarter more); at most ``idle_limit`` bytes
    wait for reuse, the longest unused goes first. Where pinning fails, ordinary memory is
    used: ``note`` then says so and why, and a ``PageableMemoryWarning`` is given once.
    Safe to use from several threads. ``close`` after all blocks came back.
    """

    def __init__(self, cuda: Cuda, *, idle_limit: int = IDLE_LIMIT) -> None:
        self.note = ""
        self._cuda = cuda
        self._idle_limit = idle_limit
        self._idle: list[_Memory] = []
        self._lent = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> HostBlock:
        """At least ``size`` bytes, for a ``with`` block. Raises ``MemoryError``."""
        assert size > 0, "host memory needs a size"
        capacity = size_class(size)
        with self._lock:
            memory = self._reuse(capacity) or self._allocate(capacity)
            self._lent += 1
        return HostBlock(self, memory, size)

    @property
    def idle_bytes(self) -> int:
        return sum(memory.capacity for memory in self._idle)

    def trim(self, limit: int = 0) -> None:
        """Give memory back to the system until at most ``limit`` bytes wait for reuse."""
        with self._lock, ExitStack() as stack:
            while self.idle_bytes > limit:
                stack.enter_context(self._idle.pop(0))

    def close(self) -> None:
        assert self._lent == 0, f"{self._lent} host blocks were not given back"
        self.trim()

    def _reuse(self, capacity: int) -> _Memory | None:
        for index in reversed(range(len(self._idle))):
            if self._idle[index].capacity == capacity:
                return self._idle.pop(index)
        return None

    def _allocate(self, capacity: int) -> _Memory:
        if self.note:
            return _Memory.pageable(capacity)
        try:
            return _Memory.pinned_by(self._cuda, capacity)
        except BackendError as failure:
            memory = _Memory.pageable(capacity)
            self.note = f"host memory is not pinned, copies are slower: {failure.message}"
        warnings.warn(self.note, PageableMemoryWarning, stacklevel=3)
        return memory

    def _take_back(self, memory: _Memory) -> None:
        with self._lock:
            self._lent -= 1
            self._idle.append(memory)
        self.trim(self._idle_limit)


class _Memory(Resource):
    """A block behind the pool, pinned or pageable, as (capacity,) uint8."""

    def __init__(self, handle: int, capacity: int, array: Bytes, cuda: Cuda | None) -> None:
        super().__init__(handle, cuda.host_free if cuda else lambda _: None)
        self.address = handle
        self.capacity = capacity
        self.array = array
        self.pinned = cuda is not None

    @classmethod
    def pinned_by(cls, cuda: Cuda, capacity: int) -> _Memory:
        address = cuda.host_alloc(capacity)
        return cls(address, capacity, host_view(address, capacity), cuda)

    @classmethod
    def pageable(cls, capacity: int) -> _Memory:
        array = np.empty(capacity, np.uint8)
        return cls(array.ctypes.data, capacity, array, None)


class _HostMemory:
    """Tells numpy of memory that is not its own."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def host_view(address: int, size: int) -> Bytes:
    """(size,) uint8 over host memory at ``address``, which must outlive the view."""
    return np.asarray(_HostMemory(address, size))


def size_class(size: int) -> int:
    """``size`` rounded up to a class: steps of an eighth of the power of two above it."""
    return round_up(size, 1 << max(12, (size - 1).bit_length() - 3))


class Arena(Closing):
    """One block of device memory for activations that several contexts use in turn.

    Contexts that never run at the same moment need the memory only once. ``use`` puts them
    in order, whatever streams they run on. It grows when asked for more, which waits for
    the last user and moves it: addresses are good inside ``use`` only.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._buffer: DeviceBuffer | None = None
        self._last_use = Event(cuda)

    @property
    def size(self) -> int:
        return self._buffer.size if self._buffer else 0

    def reserve(self, size: int) -> DeviceBuffer:
        """Have at least ``size`` bytes. Raises ``OutOfMemoryError``, holding none then."""
        if self._buffer is None or self._buffer.size < size:
            self.release()
            self._buffer = DeviceBuffer(self._cuda, size)
        return self._buffer

    @contextmanager
    def use(self, stream: Stream, size: int) -> Iterator[DeviceBuffer]:
        """At least ``size`` bytes for the work that is queued on ``stream`` meanwhile.

        Not while ``stream`` is being recorded into a CUDA graph: put ``use`` around that.
        """
        buffer = self.reserve(size)
        stream.wait(self._last_use)
        try:
            yield buffer
        except BaseException as exc:
            release_quietly(lambda: self._mark(stream), exc)
            raise
        self._mark(stream)

    def release(self) -> None:
        """Free the memory once its last user is done; ``use`` takes it again."""
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            with buffer:
                self._last_use.synchronize()

    def close(self) -> None:
        with self._last_use:
            self.release()

    def _mark(self, stream: Stream) -> None:
        try:
            stream.record(self._last_use)
        except BackendError as exc:
            release_quietly(stream.synchronize, exc)
            raise
