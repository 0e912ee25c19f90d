"""CUDA handles as context managers: made once, released once, on every way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from types import TracebackType

from pixelrt.runtime.closing import Closing, quietly
from pixelrt.runtime.device.cuda import Cuda

_serials = count()


class Resource(Closing):
    """A handle that is released exactly once.

    Use after release and a second ``close`` are bugs of ours and trip an ``assert``. On
    leaving a ``with`` block because of an error, a failure to release is added to that
    error as a note instead of taking its place.
    """

    def __init__(self, handle: int, release: Callable[[int], None]) -> None:
        self._handle = handle
        self._release = release
        self.closed = False

    @property
    def handle(self) -> int:
        assert not self.closed, f"{type(self).__name__} is used after its release"
        return self._handle

    def close(self) -> None:
        assert not self.closed, f"{type(self).__name__} is released twice"
        self.closed = True
        self._release(self._handle)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.closed:
            super().__exit__(kind, exc, trace)


class DeviceBuffer(Resource):
    """``size`` bytes of device memory, not initialised.

    Raises ``OutOfMemoryError``. ``identity`` names this very allocation: a later one at
    the same address has another.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        assert size > 0, "a device buffer needs a size"
        super().__init__(cuda.malloc(size), cuda.free)
        self.size = size
        self.serial = next(_serials)

    @property
    def address(self) -> int:
        return self.handle

    @property
    def identity(self) -> tuple[int, int]:
        return self.handle, self.serial


class Event(Resource):
    """A point in a stream's work. Not recorded yet, it counts as reached."""

    def __init__(self, cuda: Cuda, *, timing: bool = False) -> None:
        super().__init__(cuda.event_create(timing), cuda.event_destroy)
        self._cuda = cuda

    def synchronize(self) -> None:
        """Wait on the host for the last record."""
        self._cuda.event_synchronize(self.handle)

    def done(self) -> bool:
        return self._cuda.event_query(self.handle)

    def milliseconds_since(self, start: Event) -> float:
        return self._cuda.event_elapsed(start.handle, self.handle)


class Stream(Resource):
    """Work in order. ``Stream(cuda, handle)`` stands for a caller's and is not destroyed."""

    def __init__(self, cuda: Cuda, handle: int | None = None) -> None:
        if handle is None:
            super().__init__(cuda.stream_create(), cuda.stream_destroy)
        else:
            super().__init__(handle, lambda _: None)
        self._cuda = cuda

    def synchronize(self) -> None:
        """Wait on the host for everything queued so far; raises the error of that work."""
        self._cuda.stream_synchronize(self.handle)

    def record(self, event: Event) -> None:
        self._cuda.event_record(event.handle, self.handle)

    def wait(self, event: Event) -> None:
        """Work queued from now on waits for the last record of ``event``."""
        self._cuda.stream_wait_event(self.handle, event.handle)

    def wait_for(self, other: Stream) -> None:
        """Work queued from now on waits for all that ``other`` holds now."""
        with Event(self._cuda) as event:
            other.record(event)
            self.wait(event)

    def copy_in(self, target: DeviceBuffer, address: int, size: int) -> None:
        """Host to device. The host memory stays untouched until this work is done."""
        assert size <= target.size, "the copy is larger than the device buffer"
        self._cuda.copy(target.address, address, size, "h2d", self.handle)

    def copy_out(self, address: int, source: DeviceBuffer, size: int) -> None:
        """Device to host. The host memory is not valid before this work is done."""
        assert size <= source.size, "the copy is larger than the device buffer"
        self._cuda.copy(address, source.address, size, "d2h", self.handle)

    def fill(self, target: DeviceBuffer, value: int = 0) -> None:
        self._cuda.fill(target.address, value, target.size, self.handle)


@contextmanager
def settled(*streams: Stream) -> Iterator[None]:
    """However the block is left, the host then waits for every one of ``streams``.

    To be entered after the memory that their work uses, so that it is freed afterwards. A
    failure of queued work is raised here, or is a note of the error that is under way.
    """
    with ExitStack() as stack:
        for stream in streams:
            stack.push(quietly(stream.synchronize))
        yield
