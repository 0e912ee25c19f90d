"""A pipeline's network in an onnxruntime session on a CUDA provider.

Tensors come from and go to host memory; onnxruntime copies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pixelrt.errors import BackendError
from pixelrt.manifest import Graph
from pixelrt.plans.profiles import Profile
from pixelrt.runtime.backends.base import Array, BackendInfo, Sample
from pixelrt.runtime.backends.onnxruntime import run_ort
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.memory import free_on
from pixelrt.runtime.device.resources import Stream


class OrtNetwork(Closing):
    """A ``Session`` and ``DeviceMemory``. ``session`` is set by who makes it, to run on ``stream``;
    both are closed."""

    profiles: tuple[Profile, ...] = ()
    samples: tuple[Sample, ...] = ()

    def __init__(self, cuda: Cuda, graph: Graph, stream: Stream, info: BackendInfo) -> None:
        self.info = info
        self.inputs = tuple(graph.inputs)
        self.outputs = tuple(graph.outputs)
        self.session: Any = None
        self._cuda = cuda
        self._stream = stream
        self._kept = 0

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self.session is None:
            raise BackendError("this session is closed")
        free = free_on(self._cuda)
        try:
            return run_ort(self.session, self.outputs, feeds)
        finally:
            # onnxruntime's arena keeps what a run took, for the next one
            self._kept += max(0, free - free_on(self._cuda))

    def free_memory(self) -> int:
        """Bytes of device memory that a run could have: what is free and what runs left here."""
        return free_on(self._cuda) + self._kept

    def close(self) -> None:
        self.session = None  # before the stream that it runs on
        if not self._stream.closed:
            self._stream.close()
