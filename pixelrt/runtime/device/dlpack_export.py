"""Our device arrays for others, by DLPack: ``torch.from_dlpack(result)`` and the like.

The hand-over is that of https://data-apis.org/array-api/latest/API_specification/generated/
array_api.array.__dlpack__.html, the structures those of ``dlpack.h``. A capsule holds the
array until its consumer calls the deleter, or until it is collected unused.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from pixelrt.errors import BackendError
from pixelrt.runtime.device import dlpack_layout
from pixelrt.runtime.device.cuda import LEGACY_STREAM
from pixelrt.runtime.device.dlpack_layout import (
    FRESH,
    FRESH_VERSIONED,
    KINDS,
    READ_ONLY,
    Device,
    Managed,
    ManagedVersioned,
    Tensor,
    Type,
)
from pixelrt.runtime.device.resources import Stream

if TYPE_CHECKING:
    from pixelrt.runtime.device.interop import DeviceArray

VERSION = (1, 0)
"""The oldest version with a versioned structure; later minor ones only add flags."""

NO_ORDER = -1
CODES = {kind: code for code, kind in KINDS.items()}


_held: dict[int, tuple[Any, ...]] = {}
"""What a structure at an address needs: itself, its dimensions, and the array."""


def _delete(address: int) -> None:
    # A null pointer is allowed and means nothing.
    _held.pop(address, None)


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete)


def device_of(array: DeviceArray) -> tuple[int, int]:
    """``__dlpack_device__``: the kind of device and its number."""
    if array.cuda is None:
        raise BufferError("the device of this array is not known: only results can be handed over")
    return dlpack_layout.CUDA_DEVICE, array.cuda.device


def export(
    array: DeviceArray,
    stream: int | None,
    max_version: tuple[int, int] | None,
    dl_device: tuple[int, int] | None,
    copy: bool | None,
) -> object:
    """``__dlpack__``. Raises ``BufferError`` for what this array cannot be handed over as.

    ``stream``: the consumer's, made to wait for what the array waits for; ``None`` stands for
    the legacy default stream, -1 for no order at all. ``max_version``: from (1, 0) on the
    capsule is a versioned one. The data stays where it is.
    """
    device = device_of(array)
    if dl_device is not None and tuple(map(int, dl_device)) != device:
        raise BufferError(f"the array is on DLPack device {device}, not on {dl_device}")
    if copy:
        raise BufferError("the array is handed over in place; copy it afterwards")
    versioned = max_version is not None and tuple(max_version) >= VERSION
    if array.readonly and not versioned:
        raise BufferError("a read-only array needs a consumer of DLPack 1.0 or later")
    if array.dtype.kind not in CODES:
        raise BufferError(f"DLPack has no {array.dtype}")
    _order(array, stream)
    return _capsule(array, device, versioned=versioned)


def _order(array: DeviceArray, stream: int | None) -> None:
    """Make the consumer's stream wait for the work that fills the array."""
    if stream == 0 or (stream is not None and stream < NO_ORDER):
        raise BufferError(f"stream {stream}: use 1 for the legacy default stream, or a handle")
    consumer = LEGACY_STREAM if stream is None else stream
    if array.stream is None or consumer in (NO_ORDER, array.stream):
        return
    assert array.cuda is not None, "the device was asked for before"
    try:
        with Stream(array.cuda, consumer) as theirs, Stream(array.cuda, array.stream) as made:
            theirs.wait_for(made)
    except BackendError as exc:
        raise BufferError(f"stream {consumer} cannot wait for the array: {exc}") from exc


def _capsule(array: DeviceArray, device: tuple[int, int], *, versioned: bool) -> object:
    count = len(array.shape)
    dims = ctypes.c_int64 * count
    steps = [stride // array.dtype.itemsize for stride in array.strides]
    shape, strides = dims(*array.shape), dims(*steps)
    tensor = Tensor(
        array.address,
        Device(*device),
        count,
        Type(CODES[array.dtype.kind], array.dtype.itemsize * 8, 1),
        ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)),
        ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64)),
        0,
    )
    deleter = ctypes.cast(_DELETER, ctypes.c_void_p)
    managed: ctypes.Structure
    if versioned:
        flags = READ_ONLY if array.readonly else 0
        managed = ManagedVersioned(*VERSION, None, deleter, flags, tensor)
    else:
        managed = Managed(tensor, None, deleter)
    address = ctypes.addressof(managed)
    capsule = _new_capsule(address, FRESH_VERSIONED if versioned else FRESH, _DESTRUCTOR)
    _held[address] = (managed, shape, strides, array)
    return capsule


# Capsules are passed as addresses here: the destructor gets one that is being destroyed, of
# which no reference may be taken.
_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _destroy(capsule: int) -> None:
    """A consumer renames the capsule that it takes; under its own name nobody took it."""
    for name in (FRESH, FRESH_VERSIONED):
        if _is_valid(capsule, name):
            _delete(_pointer_of(capsule, name))


_DESTRUCTOR_FUNCTION = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_destroy)
_DESTRUCTOR = ctypes.cast(_DESTRUCTOR_FUNCTION, ctypes.c_void_p)
