"""What threads use in turn on a device, until it is closed."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pixelrt.errors import BackendError
from pixelrt.runtime.backends.base import Array, BackendInfo
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.spec import TensorSpec


class InTurn(Closing):
    """What sessions on ``cuda`` share. Who derives from it sets ``_resources``, which are closed
    last."""

    def __init__(self, cuda: Cuda, info: BackendInfo) -> None:
        self.info = info
        self._cuda = cuda
        self._lock = threading.RLock()
        self._resources: ExitStack | None = None

    def close(self) -> None:
        """Wait for the device and release everything. A second call does nothing."""
        with self._lock:
            resources, self._resources = self._resources, None
            if resources is None:
                return
            with resources, ExitStack() as stack:
                self._let_go(stack)
                self._cuda.activate()

    @abstractmethod
    def _let_go(self, stack: ExitStack) -> None:
        """Put what uses ``_resources`` onto ``stack``, which is closed on the device."""

    @contextmanager
    def _using(self) -> Iterator[None]:
        """The caller's turn. Raises ``BackendError`` once it is closed."""
        with self._lock:
            if self._resources is None:
                raise BackendError("this session is closed")
            self._cuda.activate()
            yield

    def _check_type(self, spec: TensorSpec, array: Array) -> None:
        if array.dtype != spec.dtype:
            raise BackendError(
                f"{self.info.name} was given another type than {spec}", found=str(array.dtype)
            )
