"""Writing files and folders so that nobody ever sees half of one.

Both writers work under a temporary name next to the target and rename at the end. The
temporary name tells which process of which machine made it, so that what a killed
process left behind is cleared by the next one that writes into the same folder.
Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from pixelrt.errors import OutputError

_TEMPORARY = re.compile(r"\.pixelrt-(?P<place>[0-9a-f]{12})-(?P<pid>\d+)-[0-9a-f]{8}")

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space or write elsewhere"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or write elsewhere"),
    errno.EFBIG: ("the file is larger than allowed here", "raise the limit or write elsewhere"),
    errno.EACCES: ("permission was denied", "choose a folder that you may write to"),
    errno.EPERM: ("permission was denied", "choose a folder that you may write to"),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
    errno.ENOENT: ("its folder does not exist", "create the folder first"),
    errno.ENOTDIR: ("a part of the path is not a folder", "check the path"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter name"),
    errno.EEXIST: ("it exists already", "choose another name or allow overwriting"),
    errno.ENOTEMPTY: ("it exists already", "choose another name or allow overwriting"),
    errno.EIO: ("the device reported an input/output error", "check the disk"),
}


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file (readable, seekable) that becomes ``path`` if the block succeeds.

    If the block is left by any exception, ``KeyboardInterrupt`` included, the temporary
    file is removed and what was at ``path`` stays. Permissions are those ``open()`` would
    give: the umask for a new file, the old file's mode for a replaced one. A symbolic link
    is kept and its target replaced.

    Raises ``OutputError`` where ``path`` cannot be written, or exists and ``overwrite`` is
    false. An ``OSError`` of the block that names a file elsewhere is passed on unchanged.
    """
    with _reported(path) as ours:
        target = path.resolve() if path.is_symlink() else path
        old_mode = _check_file_target(target, overwrite)
        temporary = ours(_temporary_name(target.parent))
        try:
            with temporary.open("x+b") as file:
                yield cast("BinaryIO", file)
                file.flush()
                if old_mode is not None:
                    temporary.chmod(old_mode)
                os.fsync(file.fileno())
            _publish(temporary, target, overwrite)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` if the block succeeds.

    Like ``atomic_write``. With ``overwrite`` an old folder is moved aside first and deleted
    after, and put back if the renaming fails; whether the old folder may be deleted (is
    it a bundle?) is for the caller to know. Between the two renames ``path`` does not exist
    for a moment; a process killed right then leaves it to the next writer to put it back.
    """
    with _reported(path) as ours:
        target = path.resolve() if path.is_symlink() else path
        _check_folder_target(target, overwrite)
        root = ours(_temporary_name(target.parent))
        try:
            new = root / "new"
            new.mkdir(parents=True)
            yield new
            _sync_tree(new)
            _swap(new, target, root / "old" / target.name, overwrite)
        finally:
            _discard(root)
        sync_folder(target.parent)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes. An ``OSError`` is passed on unchanged."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- what a failure is called ---------------------------------------------------------


class _Ours:
    """Remembers which paths belong to a write, to tell its failures from the caller's."""

    def __init__(self, path: Path) -> None:
        self.paths = {path, path.parent, path.resolve(), path.resolve().parent}

    def __call__(self, path: Path) -> Path:
        self.paths.add(path)
        return path

    def __contains__(self, name: object) -> bool:
        if name is None:
            return True
        if not isinstance(name, str | bytes | os.PathLike):
            return False
        path = Path(os.fsdecode(name))
        return path in self.paths or any(parent in self.paths for parent in path.parents)


@contextmanager
def _reported(path: Path) -> Iterator[_Ours]:
    """Turn an ``OSError`` about ``path`` or its temporary files into an ``OutputError``."""
    try:
        ours = _Ours(path)
    except (OSError, RuntimeError, ValueError) as exc:  # a loop of links, a zero byte
        raise OutputError(f"{path} could not be written: {exc}") from exc
    try:
        yield ours
    except OSError as exc:
        if exc.filename in ours:
            raise output_error(path, exc) from exc
        raise


def output_error(path: Path, exc: OSError) -> OutputError:
    """The ``OutputError`` that says in plain words why ``path`` could not be written."""
    text = exc.strerror or str(exc) or type(exc).__name__
    reason, hint = _REASONS.get(exc.errno or 0, (text, ""))
    return OutputError(f"{path} could not be written: {reason}", found=str(exc), hint=hint)


# --- checks before any work -----------------------------------------------------------


def _check_file_target(path: Path, overwrite: bool) -> int | None:
    """Mode of the file to be replaced, ``None`` for a new one; raises what can be known early."""
    _clear_leftovers(path.parent)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path} could not be written: it is a folder", hint="name a file")
    if not stat.S_ISREG(mode):  # replacing /dev/null or a pipe by a file is never wanted
        raise OutputError(f"{path} could not be written: it is not a regular file")
    if not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return stat.S_IMODE(mode)


def _check_folder_target(path: Path, overwrite: bool) -> None:
    _clear_leftovers(path.parent)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} could not be written: it is a file", hint="name a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


# --- renaming -------------------------------------------------------------------------


def _publish(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the finished file its name; without ``overwrite`` never over another file."""
    if overwrite:
        temporary.replace(target)
        return
    try:
        target.hardlink_to(temporary)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        # FAT and some network shares have no hard links: reserve the name, then replace.
        target.touch(exist_ok=False)
        try:
            temporary.replace(target)
        except BaseException:
            target.unlink()
            raise


def _swap(new: Path, target: Path, aside: Path, overwrite: bool) -> None:
    if overwrite and target.exists():
        aside.parent.mkdir()
        target.rename(aside)
    elif target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    try:
        new.rename(target)
    except BaseException:
        if aside.exists():
            aside.rename(target)
        raise


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can do that for folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- temporary names ------------------------------------------------------------------


def _place() -> str:
    """Where our process number means something: this host and this process namespace."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (not a path)
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:12]


def _temporary_name(folder: Path) -> Path:
    """Short and independent of the target's name, which may be as long as is allowed."""
    return folder / f".pixelrt-{_place()}-{os.getpid()}-{secrets.token_hex(4)}"


def _clear_leftovers(folder: Path) -> None:
    """Remove what dead processes of this machine left in ``folder``."""
    if os.name != "posix":  # os.kill(pid, 0) is no harmless question elsewhere
        return
    place = _place()
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            match = _TEMPORARY.fullmatch(entry.name)
            if match and match["place"] == place and not _alive(int(match["pid"])):
                _discard(entry)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it exists and belongs to somebody else
        return True
    return True


def _discard(leftover: Path) -> None:
    """Delete a temporary file or folder; an old folder that it holds goes back first."""
    if not leftover.is_dir() or leftover.is_symlink():
        leftover.unlink(missing_ok=True)
        return
    for aside in leftover.glob("old/*"):
        home = leftover.parent / aside.name
        if not home.exists():
            aside.rename(home)
    shutil.rmtree(leftover, ignore_errors=True)
