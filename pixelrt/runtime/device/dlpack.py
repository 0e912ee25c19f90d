"""Arrays handed over by DLPack, for libraries without ``__cuda_array_interface__``.

The hand-over is that of https://dmlc.github.io/dlpack/latest/python_spec.html: the producer
makes our stream wait, we rename the capsule and call the deleter once the array is no longer
in use.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import replace
from typing import Any

import numpy as np

from pixelrt.errors import ImageError
from pixelrt.runtime.device import dlpack_layout
from pixelrt.runtime.device.cuda import LEGACY_STREAM
from pixelrt.runtime.device.dlpack_layout import FRESH, KINDS, USED, Managed, Tensor
from pixelrt.runtime.device.interop import COPY_HINT, DeviceArray, contiguous, device_array
from pixelrt.runtime.device.resources import Stream


class _Owner:
    """Keeps a producer's memory; the deleter runs when this is collected."""

    def __init__(self, managed: int, deleter: int | None) -> None:
        if deleter:
            weakref.finalize(self, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(deleter), managed)


def foreign_array(value: Any, ours: Stream, stream: int | None = None) -> DeviceArray:
    """A view of another library's array, by ``__cuda_array_interface__`` or else by DLPack.

    Work on ``ours`` may use it after the present work of its ``stream``. Raises ``ImageError``.
    """
    if not _has_interface(value) and hasattr(value, "__dlpack__"):
        array = dlpack_array(value, ours)
        return array if stream is None else replace(array, stream=stream or LEGACY_STREAM)
    return device_array(value, stream=stream)


def _has_interface(value: Any) -> bool:
    try:
        return hasattr(value, "__cuda_array_interface__")
    # torch where gradients are wanted, and on the CPU in some versions
    except (RuntimeError, TypeError):
        return True


def dlpack_array(value: Any, ours: Stream) -> DeviceArray:
    """A view of ``value`` that work on ``ours`` may use from now on.

    DLPack names no stream that could wait for us: before the producer may write again, the
    host has to wait for ``ours`` (``interop.between`` with ``None``). Raises ``ImageError``
    for what is not on a CUDA device, is empty, not C-contiguous or of an unknown type.
    """
    try:
        kind = int(value.__dlpack_device__()[0])
        if kind != dlpack_layout.CUDA_DEVICE:
            raise ImageError(
                "this array is not in GPU memory",
                found=f"{type(value).__name__} on DLPack device {kind}",
                expected=f"device {dlpack_layout.CUDA_DEVICE} (CUDA)",
            )
        capsule = value.__dlpack__(stream=ours.handle)
    except (AttributeError, BufferError, RuntimeError, TypeError) as exc:
        raise ImageError(
            "this array does not come by DLPack", found=f"{type(value).__name__}: {exc}"
        ) from exc
    return _view(*_take(capsule))


def _take(capsule: object) -> tuple[Tensor, _Owner]:
    """The tensor of a fresh capsule, which is ours from now on."""
    api = ctypes.pythonapi
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", api)
    )
    rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_SetName", api)
    )
    try:
        address = pointer(capsule, FRESH)
    except ValueError as exc:
        raise ImageError("this is no fresh DLPack capsule", found=str(exc)) from exc
    managed = Managed.from_address(address)
    rename(capsule, USED)
    return managed.tensor, _Owner(address, managed.deleter)


def _view(tensor: Tensor, owner: _Owner) -> DeviceArray:
    shape = tuple(tensor.shape[: tensor.ndim])
    kind = KINDS.get(tensor.dtype.code, "")
    bits = tensor.dtype.bits
    if not kind or tensor.dtype.lanes != 1 or bits not in (8, 16, 32, 64):
        problem = f"type code {tensor.dtype.code}, {bits} bits, {tensor.dtype.lanes} lanes"
        raise ImageError("this GPU array cannot be used", found=problem)
    dtype = np.dtype(f"{kind}{bits // 8}")
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    if 0 in shape or (strides is not None and not contiguous(shape, strides, 1)):
        raise ImageError(
            "this GPU array cannot be used",
            found=f"shape {shape}, strides {strides}",
            expected="C-contiguous, at least one pixel",
            hint=COPY_HINT,
        )
    return DeviceArray(int(tensor.data) + tensor.byte_offset, shape, dtype, owner=owner)
