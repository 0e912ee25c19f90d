"""Device memory of other libraries, used in place: torch, CuPy, numba and pycuda arrays.

The protocol is ``__cuda_array_interface__``, versions 2 and 3
(https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from pixelrt.errors import ImageError
from pixelrt.runtime.closing import release_quietly
from pixelrt.runtime.device import dlpack_export
from pixelrt.runtime.device.cuda import LEGACY_STREAM, Cuda
from pixelrt.runtime.device.resources import Stream

VERSIONS = (2, 3)
COPY_HINT = "make a copy first: tensor.contiguous(), cupy.ascontiguousarray(array)"


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in device memory, which it does not own but keeps alive.

    ``stream``: the handle of the stream after whose present work the array may be used;
    ``None`` where there is nothing to wait for. ``owner`` keeps the memory. ``cuda``: the
    device, known for results. Other libraries can take those in place, through
    ``__cuda_array_interface__`` or DLPack.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None = None
    readonly: bool = False
    owner: object = field(default=None, repr=False, compare=False)
    cuda: Cuda | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one index to the next, axis by axis."""
        return tuple(
            prod(self.shape[axis + 1 :]) * self.dtype.itemsize for axis in range(len(self.shape))
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, self.readonly),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """The kind of device (2: CUDA) and its number; ``BufferError`` where it is not known."""
        return dlpack_export.device_of(self)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A capsule, as the array API standard has it; see ``dlpack_export.export``."""
        return dlpack_export.export(self, stream, max_version, dl_device, copy)


def device_array(value: Any, *, stream: int | None = None) -> DeviceArray:
    """A view of ``value`` through ``__cuda_array_interface__``.

    ``stream``: the handle of the caller's stream (0 is the legacy default stream, as torch
    has it); it takes the place of what the array says.
    Version 2 arrays (torch's) say nothing: the legacy default stream is waited for then.
    Raises ``ImageError`` for what has no such interface, is empty, masked, not
    C-contiguous, or of an unknown version or type.
    """
    try:
        facts = value.__cuda_array_interface__
        version, shape = int(facts["version"]), tuple(int(side) for side in facts["shape"])
        address, readonly = facts["data"]
        dtype = np.dtype(facts["typestr"])
    # torch: AttributeError or TypeError on the CPU, RuntimeError where gradients are wanted
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as exc:
        raise ImageError(
            "this is no array in GPU memory",
            found=f"{type(value).__name__}: {exc}",
            expected="an object with __cuda_array_interface__, such as a torch or CuPy array",
        ) from exc
    problem = _problem(version, shape, dtype, facts)
    if problem:
        raise ImageError("this GPU array cannot be used", found=problem, hint=COPY_HINT)
    said = facts.get("stream") if version >= 3 else LEGACY_STREAM
    if said == 0:
        raise ImageError(
            "this GPU array names stream 0, which the interface forbids",
            expected="1 for the legacy default stream, 2 for the per-thread one, or a handle",
        )
    chosen = said if stream is None else stream or LEGACY_STREAM
    return DeviceArray(int(address), shape, dtype, chosen, bool(readonly), value)


def _problem(
    version: int, shape: tuple[int, ...], dtype: np.dtype[Any], facts: dict[str, Any]
) -> str:
    if version not in VERSIONS:
        return f"version {version} of the interface, not one of {VERSIONS}"
    if 0 in shape:
        return f"shape {shape}: it is empty"
    if facts.get("mask") is not None:
        return "a mask"
    if dtype.kind not in "buif" or not dtype.isnative:
        return f"type {facts['typestr']}"
    strides = facts.get("strides")
    if strides is not None and not contiguous(shape, tuple(strides), dtype.itemsize):
        return f"strides {tuple(strides)} for shape {shape}: it is not C-contiguous"
    return ""


def contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether ``strides``, in the unit of ``itemsize``, are those of a C-contiguous array."""
    if len(strides) != len(shape):
        return False
    step = itemsize
    for side, stride in zip(reversed(shape), reversed(strides), strict=True):
        if side != 1 and stride != step:
            return False
        step *= side
    return True


@contextmanager
def between(cuda: Cuda, caller: int | None, ours: Stream) -> Iterator[None]:
    """Work queued on ``ours`` meanwhile runs after the caller's so far, and before its next.

    ``caller`` is a stream handle (1 and 2: CUDA's default streams). With ``None`` there is
    no stream that could wait for us, so the host waits. After an error the host waits too:
    the caller may free its memory at once.
    """
    with Stream(cuda, caller or LEGACY_STREAM) as theirs:
        if caller is not None:
            ours.wait_for(theirs)
        try:
            yield
            if caller is not None:
                theirs.wait_for(ours)
        except BaseException as exc:
            release_quietly(ours.synchronize, exc)
            raise
        if caller is None:
            ours.synchronize()
