"""Device memory that networks work in, shared by the lanes of a session."""

from __future__ import annotations

from contextlib import ExitStack

from pixelrt.errors import OutOfMemoryError
from pixelrt.runtime.cuda import Cuda
from pixelrt.runtime.memory import Arena
from pixelrt.runtime.resources import Closing


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
        if self._arenas and all(arena.size >= size for arena in self._arenas[:lanes]):
            moved, first = False, len(self._arenas)
        else:
            moved, first = True, 0
        for index in range(first, lanes):
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

    def _part(self, index: int) -> Arena:
        if index == len(self._arenas):
            self._arenas.append(Arena(self._cuda))
        return self._arenas[index]

    def _drop(self, first: int) -> None:
        with ExitStack() as stack:
            while len(self._arenas) > first:
                stack.enter_context(self._arenas.pop())
