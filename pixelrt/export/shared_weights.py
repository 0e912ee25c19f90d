"""Store what a graph variant shares with the plain graph once.

onnxruntime refuses external data that leaves the folder of a graph, so all weight files of a
component lie beside each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

SMALL = 256
"""Tensors up to this many bytes stay inside the graph's file, as in ``onnx_ir.save``."""

PARTS = (1, 3)
"""A tensor of the variant may be a whole one of the plain graph, or a third of one (of the
joint query, key and value)."""

ALIGNMENT = 64

Place = tuple[str, int]
"""Name of a weight file, and offset in it in bytes."""


def save_sharing(model: ir.Model, path: Path, plain: Path, data: str) -> list[str]:
    """Write ``model`` to ``path``; large weights refer to files beside it.

    ``plain``: a graph saved in the same folder; weights whose bytes stand in its weight file
    are read from there, the others are written to a new file ``data``. Gives the names of the
    files that the graph refers to.
    """
    return save_with(model, path, stored(plain), data)


def save_with(model: ir.Model, path: Path, places: dict[bytes, Place], data: str) -> list[str]:
    """As ``save_sharing``, with what ``stored`` gave; what is written to ``data`` is added."""
    used = set()
    own = bytearray()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        content = tensor.tobytes()
        if len(content) <= SMALL:
            continue
        key = _digest(content)
        if key not in places:
            own += b"\0" * (-len(own) % ALIGNMENT)
            places[key] = (data, len(own))
            own += content
        file, offset = places[key]
        used.add(file)
        value.const_value = ir.ExternalTensor(
            file,
            offset,
            len(content),
            tensor.dtype,
            shape=ir.Shape(tensor.shape),
            name=value.name or "",
            base_dir=path.parent,
        )
    if own:
        (path.parent / data).write_bytes(own)
    ir.save(model, path)
    return sorted(used)


def stored(plain: Path) -> dict[bytes, Place]:
    """Where the bytes of which digest stand in the weight file of a saved graph."""
    places: dict[bytes, Place] = {}
    for value in ir.load(plain).graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            for offset, content in _parts(tensor):
                places.setdefault(_digest(content), (str(tensor.location), offset))
    return places


def _parts(tensor: ir.ExternalTensor) -> Iterator[tuple[int, bytes]]:
    content = np.ascontiguousarray(tensor.numpy()).tobytes()
    for parts in PARTS:
        length, rest = divmod(len(content), parts)
        if rest == 0:
            for offset in range(0, len(content), length):
                yield (tensor.offset or 0) + offset, content[offset : offset + length]


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
