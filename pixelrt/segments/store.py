"""Where values wait between segments: in memory, and beyond a limit in temporary files."""

from __future__ import annotations

import os
import tempfile
from math import prod

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import OutOfMemoryError

Values = NDArray[np.float32]


class Store:
    """Hands out arrays, at most ``limit`` bytes of them in memory at a time.

    A file beyond that has no name from the moment it is made: the system frees it with the last
    array that uses it, however the process ends. ``spilled``: bytes that went to files.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.spilled = 0
        self._in_memory: dict[int, int] = {}

    def take(self, shape: tuple[int, ...]) -> Values:
        """A new array of ``shape``, not filled. Raises ``OutOfMemoryError`` where there is no
        room for its file."""
        size = prod(shape) * np.dtype(np.float32).itemsize
        if sum(self._in_memory.values()) + size <= self.limit:
            array: Values = np.empty(shape, np.float32)
            self._in_memory[id(array)] = size
            return array
        self.spilled += size
        return _mapped(shape, size)

    def release(self, array: Values) -> None:
        """``array``, which ``take`` gave, does not count any more."""
        self._in_memory.pop(id(array), None)


def _mapped(shape: tuple[int, ...], size: int) -> Values:
    try:
        with tempfile.TemporaryFile() as file:
            # Without room a write to mapped memory ends the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float32, "w+", shape=shape)
    except OSError as exc:
        raise OutOfMemoryError(
            "there is no room for the values between two parts of a network",
            found=f"{size / 2**30:.1f} GiB for {tempfile.gettempdir()}: {exc}",
            hint="raise --max-memory, or name a larger folder in the environment as TMPDIR",
        ) from exc
