"""Files of latents: ``.npy``, and ``.npz`` with one array, as NVIDIA's projector writes them.

The header is checked before any value is read; nothing in a file is executed.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from pixelrt.errors import InputError, UsageError
from pixelrt.files import atomic_write
from pixelrt.runtime.stylegan.latents import Array, broadcast, checked

KEY = "w"
"""The array of an ``.npz`` that is meant where it holds several."""

MOST_VALUES = 2**28
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_DAMAGE = (
    ValueError,
    EOFError,
    OSError,
    KeyError,
    RuntimeError,  # an encrypted archive, an unknown compression
    SyntaxError,
    OverflowError,
    tokenize.TokenError,  # numpy tokenizes headers that do not parse
    zipfile.BadZipFile,
    zlib.error,
)


def load_ws(path: Path, num_ws: int, w_dim: int) -> Array:
    """The ws of a file, ``(N, num_ws, w_dim)`` float32.

    It holds ws as ``(N, num_ws, w_dim)`` or ``(num_ws, w_dim)``, or w as ``(N, w_dim)`` or
    ``(w_dim,)``, which is for every layer. Raises ``InputError`` for other shapes, values that
    are not finite, and files that cannot be read.
    """
    values = load_array(path)
    if values.ndim == 1:
        values = values[None]
    if values.ndim == 2 and values.shape == (num_ws, w_dim):
        values = values[None]
    where = f"the array in {path.name}"
    if values.ndim == 2:
        return broadcast(checked(values, where, (None, w_dim)), num_ws)
    return checked(values, where, (None, num_ws, w_dim))


def load_array(path: Path) -> Array:
    """The array of an ``.npy`` or ``.npz`` file, such as a direction, in float32."""
    try:
        with ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(path.open("rb"))
            if zipfile.is_zipfile(file):
                archive = stack.enter_context(zipfile.ZipFile(file))
                file = stack.enter_context(archive.open(_member(archive, path)))
            else:
                file.seek(0)
            return _read_array(file, path)
    except _DAMAGE as exc:
        raise InputError(
            f"{path} cannot be read as an array",
            found=f"{type(exc).__name__}: {exc!s:.200}",
            expected="an .npy or .npz file as numpy.save and numpy.savez write them",
        ) from exc


def save_ws(path: Path, ws: Array) -> None:
    """Writes ws ``(N, num_ws, w_dim)``: by its suffix as ``.npy``, or as ``.npz`` with the key
    ``w``. Raises ``UsageError`` for another suffix, ``OutputError`` where it cannot be written."""
    values = checked(ws, "ws", (None, None, None))
    if path.suffix not in (".npy", ".npz"):
        raise UsageError(
            "latents are written to .npy or .npz files", found=path.name, expected=".npy or .npz"
        )
    with atomic_write(path) as file:
        if path.suffix == ".npy":
            np.save(file, values, allow_pickle=False)
        else:
            np.savez(file, w=values)


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if len(names) != 1 and f"{KEY}.npy" not in names:
        raise InputError(
            f"{path} does not say which array is meant",
            found=", ".join(name.removesuffix(".npy") for name in names[:10]) or "no arrays",
            expected=f"one array, or one named {KEY}",
        )
    return names[0] if len(names) == 1 else f"{KEY}.npy"


def _read_array(file: IO[bytes], path: Path) -> Array:
    read_header = _HEADERS.get(np.lib.format.read_magic(file))
    if read_header is None:
        raise ValueError("an unknown version of the .npy format")
    shape, by_column, dtype = read_header(file)
    if dtype.kind != "f" or not 0 <= math.prod(shape) <= MOST_VALUES or min(shape, default=0) < 0:
        raise InputError(
            f"{path} holds no latents",
            found=f"{dtype} {shape}",
            expected=f"at most {MOST_VALUES} floating-point numbers",
        )
    nbytes = math.prod(shape) * dtype.itemsize
    content = file.read(nbytes)
    if len(content) != nbytes:
        raise ValueError(f"{len(content)} bytes of values where {nbytes} should be")
    values = np.frombuffer(content, dtype).reshape(shape, order="F" if by_column else "C")
    return values.astype(np.float32)
