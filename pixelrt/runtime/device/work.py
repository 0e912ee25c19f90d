"""Device memory that networks work in, shared by the lanes of a session."""

from __future__ import annotations

from contextlib import ExitStack

from pixelrt.errors import OutOfMemoryError
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.memory import Arena

HEADROOM = 1 / 16
"""Share of the device's memory that parts beyond the first leave free for what comes later."""


class WorkMemory(Closing):
    """A part for each lane where the device has that much, else parts that go round.

    Lanes with a part of their own run at the same time; lanes that share one run in turn,
    whatever streams they are on (see ``Arena``).
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._arenas: list[Arena] = []

    @property
    def size(self) -> int:
        """Bytes held, of all parts."""
        return sum(arena.size for arena in self._arenas)

    @property
    def parts(self) -> int:
        return len(self._arenas)

    def share(self, lanes: int, size: int) -> bool:
        """Have a part of ``size`` bytes for each of ``lanes``, or as many as there is memory for.

        Tells whether memory moved. Raises ``OutOfMemoryError`` where not even one fits. Not
        while work is queued that uses a part.
        """
        moved = False
        for index in range(lanes):
            if index < len(self._arenas) and self._arenas[index].size >= size:
                continue
            if index and not self._affords(index, size):
                moved = moved or index < len(self._arenas)
                self._drop(index)
                break
            moved = True
            try:
                self._part(index).reserve(size)
            except OutOfMemoryError:
                self._drop(index)
                if index == 0:
                    raise
                break
        return moved

    def arena(self, lane: int) -> Arena:
        """The part that a lane works in, after ``share``."""
        return self._arenas[lane % len(self._arenas)]

    def release(self) -> None:
        """Free all parts once their users are done."""
        self._drop(0)

    def close(self) -> None:
        self.release()

    def _affords(self, index: int, size: int) -> bool:
        free, total = self._cuda.memory_info()
        held = self._arenas[index].size if index < len(self._arenas) else 0
        return free + held >= size + total * HEADROOM

    def _part(self, index: int) -> Arena:
        if index == len(self._arenas):
            self._arenas.append(Arena(self._cuda))
        return self._arenas[index]

    def _drop(self, first: int) -> None:
        with ExitStack() as stack:
            while len(self._arenas) > first:
                stack.enter_context(self._arenas.pop())
