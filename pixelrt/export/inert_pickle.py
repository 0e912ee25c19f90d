"""Reads PyTorch's pickled checkpoints, whole modules too, without importing or calling
anything that they name.

Three forms, facts of the first two from ``torch/serialization.py``:

- zip (torch >= 1.6): ``<root>/data.pkl``, ``<root>/data/<key>``, ``<root>/byteorder``;
- stream (before, ``_legacy_load``): the pickles of a magic number, a protocol version,
  system facts, the object and a list of storage keys, then for each key an int64 count and
  the raw little-endian values;
- plain: ``pickle.dump`` alone, as in the network pickles of NVlabs/stylegan2-ada-pytorch. Each
  storage is a call with the bytes of a stream, each module a call with its source code, which
  is not looked at, and its state.

But for the plain form, tensors stay on disk until ``TensorRecord.tensor`` is called, so the
states of optimizers are never read.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TypeGuard

import torch

from pixelrt.errors import CheckpointError
from pixelrt.export.pickle_machine import Call, Name, PickleMachine, Record, hashable, malformed
from pixelrt.export.tensor_record import (
    TENSOR_CALLS,
    Storage,
    StoragePart,
    naturals,
    rebuild_from_type,
    unsupported,
)

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


@contextmanager
def damage_as_checkpoint_error() -> Iterator[None]:
    """Turns what reading a damaged file raises into ``CheckpointError``."""
    try:
        yield
    except OSError as exc:
        raise CheckpointError("the checkpoint cannot be read", found=str(exc)) from exc
    except _DAMAGE as exc:
        raise malformed(f"{type(exc).__name__}: {exc!s:.300}") from exc


# -- the calls that are known -----------------------------------------------------------
# Each is ours and only makes plain data; a pickle that reduces anything else is refused.


def _mapping(pairs: object = (), *_rest: object) -> dict[object, object]:
    if isinstance(pairs, dict):
        return dict(pairs)
    if not isinstance(pairs, (list, tuple)):
        raise malformed(f"a mapping made from a {type(pairs).__name__}")
    return {hashable(key): value for key, value in pairs}


def _default_dict(_factory: object = None, pairs: object = ()) -> dict[object, object]:
    # Without its factory: nothing may be called when a key is missing.
    return _mapping(pairs)


def _set(items: object = ()) -> set[object]:
    if not isinstance(items, (list, tuple)):
        raise malformed(f"a set made from a {type(items).__name__}")
    return {hashable(item) for item in items}


def _frozen_set(items: object = ()) -> frozenset[object]:
    return frozenset(_set(items))


def _encode(text: object, encoding: object = "latin1") -> bytes:
    # How protocol 2 writes bytes.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise malformed("bytes in an unknown encoding", "latin1")
    return text.encode("latin1")


def _size(values: object = ()) -> tuple[int, ...]:
    return naturals(values)


def _reconstruct(cls: object, _base: object, _state: object) -> Record:
    if not isinstance(cls, Name):
        raise malformed(f"an instance of a {type(cls).__name__}", "an instance of a class")
    return Record(cls)


def _persistent_object(meta: object) -> Record:
    """What ``torch_utils/persistence.py`` of NVIDIA's projects pickles a module as."""
    match meta:
        case {"type": "class", "class_name": str(name), "state": dict(state)}:
            return Record(Name("torch_utils.persistence", name), state=dict(state))
    raise malformed("a persistent object of unknown form", "its class name and state")


def _inert(module: str, name: str) -> tuple[Name, Call]:
    """A class whose instances are often found in checkpoints: kept as their arguments."""
    cls = Name(module, name)
    return cls, lambda *args: Record(cls, args)


_CALLS: Mapping[Name, Call] = {
    **TENSOR_CALLS,
    Name("torch._tensor", "_rebuild_from_type"): rebuild_from_type,
    Name("torch._tensor", "_rebuild_from_type_v2"): rebuild_from_type,
    Name("torch", "Size"): _size,
    Name("collections", "OrderedDict"): _mapping,
    Name("collections", "Counter"): _mapping,
    Name("collections", "defaultdict"): _default_dict,
    Name("builtins", "set"): _set,
    Name("builtins", "frozenset"): _frozen_set,
    Name("_codecs", "encode"): _encode,
    Name("copyreg", "_reconstructor"): _reconstruct,
    Name("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    **dict(
        [
            _inert("torch", "device"),
            _inert("torch.serialization", "_get_layout"),
            _inert("torch.nn.backends.thnn", "_get_thnn_function_backend"),  # modules, torch < 1.4
            _inert("builtins", "slice"),
            _inert("builtins", "range"),
            _inert("numpy", "dtype"),
            _inert("numpy.core.multiarray", "scalar"),
            _inert("numpy._core.multiarray", "scalar"),
            _inert("pathlib", "PosixPath"),
            _inert("pathlib", "WindowsPath"),
            _inert("pathlib._local", "PosixPath"),
            _inert("pathlib._local", "WindowsPath"),
        ]
    ),
}

_STORAGE_DTYPES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")


# -- the three forms ------------------------------------------------------------------------


def read_inert(path: Path) -> object:
    """The object that a PyTorch checkpoint holds, as plain data: dicts, lists, numbers,
    text, ``Name``, ``Record`` and ``TensorRecord``.

    Nothing that the file names is imported or called. Raises ``UnsafeCheckpointError`` where
    it asks for a call, ``CheckpointError`` where it cannot be read.
    """
    with damage_as_checkpoint_error():
        archive = open_archive(path)
        if archive is not None:
            return _read_archive(archive)
        with path.open("rb") as file:
            if _starts_with_a_number(file):
                return _read_stream(path, file, _CALLS)
            return _read_plain(file)


class _Storages:
    """The storages that a pickle names, by key."""

    def __init__(self, source: Path | bytes) -> None:
        self.source = source
        self.by_key: dict[str, Storage] = {}

    def resolve(self, pid: object) -> object:
        """What a persistent id stands for: a part of a storage, or the name of a class."""
        match pid:
            case ("storage", Name() as kind, str(key), _, int(numel), *view) if len(view) < 2:
                storage = self._storage(kind, key, numel)
                return _part(storage, view[0] if view else None)
            case ("module", Name() as cls, _, _):
                return cls
        raise malformed("a persistent id of unknown form", "('storage', type, key, place, count)")

    def _storage(self, kind: Name, key: str, numel: int) -> Storage:
        if kind.module not in _STORAGE_MODULES or kind.name not in _STORAGE_DTYPES:
            raise unsupported(f"a storage of type {kind}")
        dtype = _STORAGE_DTYPES[kind.name]
        storage = self.by_key.setdefault(key, Storage(self.source, dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel) or numel < 0:
            raise malformed(f"storage {key:.40} described in two ways")
        return storage


def _part(storage: Storage, view: object) -> StoragePart:
    if view is None:
        return StoragePart(storage, 0, storage.numel)
    if not isinstance(view, tuple):
        raise malformed("a view of a storage of unknown form")
    start, numel = naturals(view[1:3])
    if start + numel > storage.numel:
        raise malformed("a view that is larger than its storage")
    return StoragePart(storage, start, numel)


@dataclass(frozen=True)
class Archive:
    """The members of a checkpoint in zip form, by name below its root folder."""

    path: Path
    members: Mapping[str, zipfile.ZipInfo]

    def place(self, name: str) -> tuple[int, int]:
        """Offset and length in bytes of a member's content in the file."""
        if name not in self.members:
            raise malformed(f"no member {name:.80} in the archive")
        info = self.members[name]
        with self.path.open("rb") as file:
            return _content_offset(file, info), info.file_size

    def read(self, name: str) -> bytes:
        """The content of a member."""
        offset, length = self.place(name)
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


def open_archive(path: Path) -> Archive | None:
    """The archive of a checkpoint in zip form; ``None`` where the file is no zip archive.

    Raises ``CheckpointError`` for an archive that is damaged, TorchScript, compressed
    (``torch.save`` never does: a small file could claim to hold any amount) or holds no
    PyTorch checkpoint.
    """
    with damage_as_checkpoint_error():
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return None
        with zipfile.ZipFile(path) as opened:
            infos = opened.infolist()
        archive = _archive(path, {info.filename: info for info in infos})
        _check_sizes(infos, path.stat().st_size)
        return archive


def _check_sizes(infos: list[zipfile.ZipInfo], file_size: int) -> None:
    if len({info.filename for info in infos}) != len(infos):
        raise malformed("two members of the same name in the archive")
    if any(info.compress_type or info.file_size != info.compress_size for info in infos):
        raise malformed("compressed members", "an archive as torch.save writes it, uncompressed")
    claimed = sum(info.file_size for info in infos)
    if claimed > file_size:
        raise malformed(f"members of {claimed} bytes in a file of {file_size}")


def _archive(path: Path, infos: Mapping[str, zipfile.ZipInfo]) -> Archive:
    roots = [name.removesuffix("/data.pkl") for name in infos if name.endswith("/data.pkl")]
    if len(roots) != 1:
        names = ", ".join(ascii(name)[1:60] for name in list(infos)[:5])
        raise CheckpointError(
            "the file is a zip archive but not a PyTorch checkpoint",
            found=f"members {names}" if names else "no members",
            expected="one member NAME/data.pkl",
            hint="if the checkpoint lies within the archive, unpack it first",
        )
    prefix = roots[0] + "/"
    members = {n.removeprefix(prefix): i for n, i in infos.items() if n.startswith(prefix)}
    if "constants.pkl" in members:
        raise CheckpointError(
            "the file is a TorchScript program, not a checkpoint",
            found="constants.pkl in the archive, as torch.jit.save writes it",
            expected="the weights alone: a state dict or a module saved with torch.save",
            hint="save torch.jit.load(FILE).state_dict() with torch.save and give that file",
        )
    return Archive(path, members)


def _content_offset(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    # A member's local header: 30 bytes, then its name and extra field, then the content.
    file.seek(info.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise malformed("a zip member without its header")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name_length) + int(extra_length)


def _read_archive(archive: Archive) -> object:
    if "byteorder" in archive.members and archive.read("byteorder") != b"little":
        raise unsupported("tensors of byte order 'big'")
    storages = _Storages(archive.path)
    machine = PickleMachine(_CALLS, storages.resolve)
    root = machine.run(BytesIO(archive.read("data.pkl")))
    for key, storage in storages.by_key.items():
        offset, length = archive.place(f"data/{key}")
        _place(storage, offset, length)
    return root


def _starts_with_a_number(file: IO[bytes]) -> bool:
    """Whether the first pickle is a number, as in the stream form; the position stays."""
    for opcode, _, _ in pickletools.genops(file):
        if opcode.name not in ("PROTO", "FRAME"):
            break
    file.seek(0)
    return opcode.name.startswith(("INT", "BININT", "LONG"))


def _read_stream(source: Path | bytes, file: IO[bytes], calls: Mapping[Name, Call]) -> object:
    _check_stream_header(file)
    storages = _Storages(source)
    root = PickleMachine(calls, storages.resolve).run(file)
    keys = _run_plain(file)
    if not _same_keys(keys, storages):
        raise malformed("a list of storages that is not that of the tensors")
    for key in keys:
        _place_in_stream(storages.by_key[key], file)
    return root


def _read_plain(file: IO[bytes]) -> object:
    head = file.read(4096)
    file.seek(0)
    if b"dnnlib.tflib.network" in head:
        raise CheckpointError(
            "the file is a network pickle of TensorFlow",
            found="a dnnlib.tflib.network.Network",
            expected="a network pickle of PyTorch",
            hint="convert it with legacy.py of NVlabs/stylegan2-ada-pytorch",
        )
    calls = {**_CALLS, Name("torch.storage", "_load_from_bytes"): _load_from_bytes}
    return PickleMachine(calls, _no_persistent_id).run(file)


def _no_persistent_id(_pid: object) -> object:
    raise malformed("a persistent id in a plain pickle", "tensors with their values")


def _load_from_bytes(content: object) -> StoragePart:
    if not isinstance(content, bytes):
        raise malformed(f"a storage made from a {type(content).__name__}", "bytes")
    part = _read_stream(content, BytesIO(content), {})
    if not isinstance(part, StoragePart):
        raise malformed(f"a {type(part).__name__} as the storage of a tensor")
    return part


def _same_keys(keys: object, storages: _Storages) -> TypeGuard[list[str]]:
    return (
        isinstance(keys, list)
        and all(isinstance(key, str) for key in keys)
        and sorted(keys) == sorted(storages.by_key)
    )


def _run_plain(file: IO[bytes]) -> object:
    """The next pickle of a stream, which may hold plain values only."""
    return PickleMachine({}, _Storages(Path()).resolve).run(file)


def _check_stream_header(file: IO[bytes]) -> None:
    if _run_plain(file) != MAGIC_NUMBER:
        raise CheckpointError(
            "the file is a pickle but not a PyTorch checkpoint",
            found="another value in place of the magic number",
            expected="a file that torch.save wrote",
            hint="load it where it was made and save its state dict with torch.save",
        )
    version = _run_plain(file)
    if version != PROTOCOL_VERSION:
        raise malformed("an unknown protocol version", str(PROTOCOL_VERSION))
    _run_plain(file)  # facts of the saving machine; the values are little-endian on any


def _place_in_stream(storage: Storage, file: IO[bytes]) -> None:
    (count,) = struct.unpack("<q", file.read(8))
    if count != storage.numel:
        raise malformed(f"a storage of {count} values", f"{storage.numel} values")
    start = file.tell()
    file.seek(0, 2)
    _place(storage, start, min(file.tell() - start, storage.nbytes))
    file.seek(start + storage.nbytes)


def _place(storage: Storage, offset: int, available: int) -> None:
    if available < storage.nbytes:
        raise malformed(f"a storage of {available} bytes", f"{storage.nbytes} bytes")
    storage.offset = offset
