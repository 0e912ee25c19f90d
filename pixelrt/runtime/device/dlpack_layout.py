"""The structures of ``dlpack.h`` (github.com/dmlc/dlpack), and its numbers."""

from __future__ import annotations

import ctypes

CUDA_DEVICE = 2
"""``kDLCUDA``."""

KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}
"""``DLDataTypeCode`` to numpy's kinds; bfloat16, complex and the like are not taken."""

FRESH, USED, FRESH_VERSIONED = b"dltensor", b"used_dltensor", b"dltensor_versioned"
"""Names of capsules: what a producer gives, and what a consumer makes of it."""

READ_ONLY = 1
"""``DLPACK_FLAG_BITMASK_READ_ONLY``."""


class Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("number", ctypes.c_int32))


class Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (
        ("tensor", Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )
