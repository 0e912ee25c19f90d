"""Tensors of a pickled checkpoint that have not been read yet, and the calls that make them.

The functions stand for those of ``torch/_utils.py`` that a pickle names; they check what
they are given and only make records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import torch

from pixelrt.errors import CheckpointError
from pixelrt.export.pickle_machine import Call, Name, malformed, refuse_call

_MOST_ELEMENTS = 2**40
_MOST_DIMENSIONS = 64


@dataclass(eq=False)
class Storage:
    """A run of ``numel`` values in a file or in bytes, read once when first asked for.

    ``offset`` is where it starts in bytes; ``-1`` until the place is known. ``dtype`` is
    ``torch.uint8`` for an untyped storage.
    """

    source: Path | bytes
    dtype: torch.dtype
    numel: int
    offset: int = -1
    _bytes: torch.Tensor | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def bytes(self) -> torch.Tensor:
        """The content, ``(nbytes,)`` uint8 on the CPU."""
        if self._bytes is None:
            self._bytes = _read_bytes(self.source, self.offset, self.nbytes)
        return self._bytes


@dataclass(frozen=True, eq=False)
class StoragePart:
    """``numel`` values of a storage from ``start`` on: what a persistent id stands for."""

    storage: Storage
    start: int
    numel: int


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A strided tensor that has not been read yet; its extent lies within its storage.

    ``offset`` and ``stride`` count elements of ``dtype`` from the start of the storage.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> torch.Tensor:
        """The tensor on the CPU, without gradient. Tensors that shared a storage still do."""
        if 0 in self.size:
            return torch.empty(self.size, dtype=self.dtype)
        content = self.storage.bytes()
        whole = content[: len(content) // self.dtype.itemsize * self.dtype.itemsize]
        return whole.view(self.dtype).as_strided(self.size, self.stride, self.offset)


def _read_bytes(source: Path | bytes, offset: int, nbytes: int) -> torch.Tensor:
    content = bytearray(nbytes)
    with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        file.seek(offset)
        if file.readinto(content) != nbytes:
            raise malformed(f"fewer than {nbytes} bytes of a tensor")
    # frombuffer refuses an empty buffer.
    empty = torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(content, dtype=torch.uint8) if content else empty


def _rebuild_tensor(
    part: object, offset: object, size: object, stride: object, *_rest: object
) -> TensorRecord:
    if not isinstance(part, StoragePart):
        raise malformed(f"a tensor over a {type(part).__name__}", "a tensor over a storage")
    return _tensor_record(part, part.storage.dtype, offset, size, stride)


def _rebuild_tensor_v3(  # as many parameters as the function of torch that it stands for
    part: object, offset: object, size: object, stride: object,
    _grad: object, _hooks: object, dtype: object, *_rest: object,
) -> TensorRecord:  # fmt: skip
    if not isinstance(part, StoragePart) or part.start or not isinstance(dtype, Name):
        raise malformed("an untyped tensor without a whole storage and a dtype")
    if dtype not in _DTYPES:
        raise unsupported(f"a tensor of {dtype}")
    return _tensor_record(part, _DTYPES[dtype], offset, size, stride)


def _tensor_record(
    part: StoragePart, dtype: torch.dtype, offset: object, size: object, stride: object
) -> TensorRecord:
    sizes, strides = naturals(size), naturals(stride)
    (start,) = naturals((offset,))
    _check_extent(start, sizes, strides, part.numel * part.storage.dtype.itemsize // dtype.itemsize)
    return TensorRecord(part.storage, dtype, part.start + start, sizes, strides)


def naturals(values: object) -> tuple[int, ...]:
    """``values`` as a tuple, if each is an int of 0 to 2**63 - 1; else ``CheckpointError``."""
    if not isinstance(values, (tuple, list)):
        raise malformed(f"a {type(values).__name__} as the shape of a tensor")
    if any(type(value) is not int or not 0 <= value < 2**63 for value in values):
        raise malformed("a shape, stride or offset that is no index", "whole numbers >= 0")
    return tuple(values)


def _check_extent(offset: int, size: tuple[int, ...], stride: tuple[int, ...], limit: int) -> None:
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise malformed(f"a tensor of {len(size)} sizes and {len(stride)} strides")
    if math.prod(size) > _MOST_ELEMENTS:  # strides of 0 need no storage
        raise malformed(f"a tensor of {math.prod(size)} elements", f"at most {_MOST_ELEMENTS}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= limit:
        raise malformed(f"a tensor that reaches element {last} of its storage of {limit}")


def _rebuild_parameter(data: object, *_rest: object) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        raise malformed(f"a parameter that is a {type(data).__name__}", "a tensor")
    return data


def rebuild_from_type(func: object, _cls: object, args: object, *_rest: object) -> object:
    """A tensor with Python attributes: saved as the call that rebuilds it, plus those."""
    if not isinstance(func, Name) or func not in TENSOR_CALLS or not isinstance(args, tuple):
        refuse_call(func)
    return TENSOR_CALLS[func](*args)


def _refused_kind(kind: str) -> Call:
    def refuse(*_args: object) -> object:
        raise unsupported(kind)

    return refuse


def unsupported(kind: str) -> CheckpointError:
    """The error for tensors that other checkpoints rightly hold but that are not read here."""
    return CheckpointError(
        "the checkpoint holds tensors of a kind that is not read",
        found=kind,
        expected="dense tensors with their values, not quantised",
        hint="convert them where the checkpoint was made (dequantize(), to_dense()) and save again",
    )


_DTYPES: Mapping[Name, torch.dtype] = {
    Name("torch", str(dtype).removeprefix("torch.")): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128,
        torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
    )
}  # fmt: skip

TENSOR_CALLS: Mapping[Name, Call] = {
    Name("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    Name("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    Name("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    Name("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    Name("torch.nn.parameter", "Parameter"): _rebuild_parameter,  # torch < 1.0
    Name("torch._utils", "_rebuild_qtensor"): _refused_kind("a quantised tensor"),
    Name("torch._utils", "_rebuild_sparse_tensor"): _refused_kind("a sparse tensor"),
    Name("torch._utils", "_rebuild_sparse_csr_tensor"): _refused_kind("a sparse CSR tensor"),
    Name("torch._utils", "_rebuild_nested_tensor"): _refused_kind("a nested tensor"),
    Name("torch._utils", "_rebuild_meta_tensor_no_storage"): _refused_kind(
        "a tensor without data (device meta)"
    ),
    Name("torch._utils", "_rebuild_wrapper_subclass"): _refused_kind("a wrapped tensor"),
}
