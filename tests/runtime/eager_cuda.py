"""A fake of CUDA whose memory really is at its addresses, so that libraries can use it.

Work is done as soon as it is queued; whether it is ordered is checked all the same.
"""

from __future__ import annotations

import numpy as np

from pixelrt.errors import OutOfMemoryError
from tests.runtime.fake_cuda import Allocation, FakeCuda, Operation


class EagerCuda(FakeCuda):
    """``FakeCuda`` over host memory."""

    def malloc(self, size: int) -> int:
        with self._call("malloc", unsafe=True):
            if self.used("device") + size > self.memory:
                raise OutOfMemoryError("cudaMalloc failed: cudaErrorMemoryAllocation (2)")
            array = self.noise.integers(0, 256, size, np.uint8)
            address = int(array.ctypes.data)
            self.allocations[address] = Allocation(address, size, array, "device")
            return address

    def _enqueue(self, stream: int, operation: Operation) -> None:
        super()._enqueue(stream, operation)
        for waiting in self._waiting():
            self._do(waiting)
