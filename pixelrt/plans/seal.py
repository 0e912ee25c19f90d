"""Artefacts on disk with a seal: what was written is what is read, or it is called damaged.

An entry is a folder with ``artefact`` and ``seal.json``. The seal holds the entry's key, the
artefact's SHA-256 and length, the metadata, and a SHA-256 over all of that.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pixelrt.errors import InputError, OutputError
from pixelrt.files import sync_folder

ARTEFACT, SEAL = "artefact", "seal.json"

# What reading a damaged entry runs into; anything else (too many open files) is no damage.
_DAMAGE = {
    errno.ENOENT,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EIO,
    errno.ENXIO,
}


class DamagedError(Exception):
    """What is wrong with an entry; never leaves the cache."""


@dataclass(frozen=True)
class Artefact:
    """The bytes to keep, and a little metadata that JSON can hold."""

    data: bytes
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """An artefact of the cache that was compared with its seal just now; a context manager.

    ``path`` stays until ``close()``, whatever other processes collect; then it may go at any
    moment. ``made`` tells whether this call made it, ``notes`` what was damaged or too large.
    """

    path: Path
    sha256: str
    metadata: Mapping[str, Any]
    made: bool
    notes: tuple[str, ...]
    _close: Callable[[], None] = field(repr=False, compare=False)

    def read(self) -> bytes:
        """The artefact's bytes, compared with the seal once more: load these, not ``path``.

        Raises ``InputError`` if they changed or went away since the entry was handed out.
        """
        try:
            with open_file(self.path) as file:
                data = file.read()
        except (OSError, DamagedError) as exc:
            found = str(exc)
        else:
            if hashlib.sha256(data).hexdigest() == self.sha256:
                return data
            found = "other bytes"
        raise InputError(
            f"{self.path} is not what it was when it was checked",
            found=found,
            hint="ask the cache again: it will be rebuilt",
        )

    def close(self) -> None:
        """Let go of the artefact. Closing twice is allowed."""
        self._close()

    def __enter__(self) -> Entry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an entry claims to hold."""

    key: str
    sha256: str
    length: int
    metadata: dict[str, Any]

    @classmethod
    def of(cls, key: str, data: bytes, metadata: Mapping[str, Any]) -> Seal:
        """The metadata as a later reader will see it: a tuple becomes a list.

        Raises ``TypeError`` if JSON cannot hold it.
        """
        plain = msgspec.json.decode(msgspec.json.encode(dict(metadata)), type=dict[str, Any])
        return cls(key, hashlib.sha256(data).hexdigest(), len(data), plain)

    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seal: Seal
    digest: str


def write_entry(folder: Path, seal: Seal, data: bytes) -> None:
    """Make ``folder`` with the two files of an entry, all of it on the disk when this returns."""
    folder.mkdir(mode=0o700)
    _write(folder / ARTEFACT, data)
    _write(folder / SEAL, msgspec.json.encode(_Sealed(seal, seal.digest())))
    sync_folder(folder)


def verify(home: Path, key: str, *, artefact: bool = True) -> Seal:
    """The seal of an entry that holds what it says; ``DamagedError`` otherwise."""
    name = SEAL
    try:
        if not stat.S_ISDIR(home.lstat().st_mode):
            raise DamagedError("it is not a folder")
        with open_file(home / name) as file:
            sealed = msgspec.json.decode(file.read(), type=_Sealed)
        seal = sealed.seal
        if seal.digest() != sealed.digest or seal.key != key:
            raise DamagedError(f"{name} was altered")
        name = ARTEFACT
        with open_file(home / name) as file:
            length = os.fstat(file.fileno()).st_size
            if length != seal.length:
                raise DamagedError(f"{name} has {length} bytes, not {seal.length}")
            if artefact and hashlib.file_digest(file, "sha256").hexdigest() != seal.sha256:
                raise DamagedError(f"{name} was altered")
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise DamagedError(f"{name} is not a seal: {exc}") from exc
    except OSError as exc:
        if exc.errno not in _DAMAGE:
            raise
        raise DamagedError(f"{name}: {exc.strerror}") from exc
    return seal


@contextmanager
def open_file(path: Path) -> Iterator[io.BufferedReader]:
    """A regular file that nobody else may write to; never follows a link, never blocks."""
    extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | extra)) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode) or (os.name == "posix" and mode & 0o022):
            raise DamagedError(f"{path.name} is no file of ours (mode {mode:o})")
        yield file


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def delete(path: Path) -> None:
    """Remove a file, a link (not what it points to) or a folder, if it is there."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def private_folder(folder: Path, *, link: bool = False) -> None:
    """Make ``folder`` with mode 0700 unless it is there; with ``link`` it may be a link to one.

    Raises ``OutputError`` if it belongs to another user or others may write to it.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    state = folder.stat() if link else folder.lstat()
    found = ""
    if not stat.S_ISDIR(state.st_mode):
        found = "it is a symbolic link or a file"
    elif os.name == "posix" and state.st_uid != os.geteuid():
        found = f"it belongs to user {state.st_uid}, this is user {os.geteuid()}"
    elif os.name == "posix" and state.st_mode & 0o022:
        found = f"others may write to it (mode {stat.S_IMODE(state.st_mode):o})"
    if found:
        raise OutputError(
            f"{folder} cannot hold engine plans, which are executable code",
            found=found,
            expected="a folder of your own that nobody else may write to",
            hint=f"chmod go-w {folder}, or set PIXELRT_CACHE to another folder",
        )
