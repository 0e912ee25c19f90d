"""The files of a bundle: which there may be, and whether they are what the manifest says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from pixelrt.errors import BundleError
from pixelrt.files import atomic_folder, sha256_file
from pixelrt.manifest import FileEntry

Kind = TypeVar("Kind", bound=msgspec.Struct)

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024


def bundle_root(path: Path) -> Path:
    """``path`` if it is a folder. Raises ``BundleError``."""
    if not path.exists():
        raise BundleError(
            f"there is no bundle at {path}",
            expected="a folder that `pixelrt export` wrote, or the name of a shipped bundle: demo",
        )
    if not path.is_dir():
        raise BundleError(
            f"{path} is not a bundle",
            found="a file",
            expected=f"a folder with {MANIFEST}",
            hint="checkpoints become bundles with `pixelrt export`",
        )
    return path


def read_manifest(root: Path) -> bytes:
    """The manifest as it lies there. Raises ``BundleError``."""
    path = root / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise BundleError(
            f"{root} is not a bundle",
            found="a link" if path.is_symlink() else f"no {MANIFEST}",
            expected=f"a regular file {MANIFEST}",
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{path} is too large for a manifest", found=f"{path.stat().st_size} bytes"
        )
    return path.read_bytes()


def format_of(raw: bytes, root: Path) -> object:
    """What a manifest gives as its format. Raises ``BundleError`` where it is no manifest."""
    try:
        return json.loads(raw)["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BundleError(f"{root / MANIFEST} is no manifest", found=str(exc)) from exc


def decode_manifest(raw: bytes, root: Path, kind: type[Kind]) -> Kind:
    """A manifest as ``kind``. Raises ``BundleError`` naming the field that is wrong."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise BundleError(f"{root / MANIFEST} is malformed", found=str(exc)) from exc


def unlisted(used: Iterable[str], files: Mapping[str, FileEntry]) -> list[str]:
    """In words, the files that a manifest uses and does not list."""
    return [f"{name} is used but not listed under files" for name in sorted(set(used) - set(files))]


def check_files(
    root: Path, files: Mapping[str, FileEntry], folders: tuple[str, ...], *, contents: bool
) -> None:
    """Every listed file may be in a bundle, every file there is listed; with ``contents``, each
    has its length and sha256. Raises ``BundleError`` naming the file."""
    for name in files:
        parts = PurePosixPath(name).parts
        if (
            name != str(PurePosixPath(name))
            or len(parts) < 2
            or parts[0] not in folders
            or ".." in parts
            or "\\" in name
            or ":" in name
            or "\0" in name
        ):
            raise BundleError(
                f"{root / MANIFEST} names a file that may not be in a bundle",
                found=repr(name),
                expected="a relative path under " + " or ".join(f"{f}/" for f in folders),
            )
    for path in walk(root, folders):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            raise BundleError(
                f"{root} holds a link", found=name, expected="regular files and folders only"
            )
        if path.is_file() and name not in files:
            raise BundleError(
                f"{root} holds a file that its manifest does not list",
                found=name,
                hint="remove it; a graph could read it",
            )
    if contents:
        for name, entry in files.items():
            _check_file(root, name, entry)


def walk(root: Path, folders: tuple[str, ...]) -> Iterator[Path]:
    """Everything under the folders of a bundle, links too."""
    for folder in folders:
        top = root / folder
        if top.is_symlink():
            yield top
        else:
            yield from sorted(top.rglob("*"))


def _check_file(root: Path, name: str, entry: FileEntry) -> None:
    path = root / name
    if not path.is_file():
        raise BundleError(f"{root} is incomplete", found=f"no {name}", hint="export it again")
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleError(
            f"{path} was altered or cut off", found=f"{size} bytes", expected=f"{entry.bytes} bytes"
        )
    digest = sha256_file(path)
    if digest != entry.sha256:
        raise BundleError(
            f"{path} was altered",
            found=f"sha256 {digest}",
            expected=f"sha256 {entry.sha256}",
            hint="export it again or fetch it from where you trust it",
        )


@contextmanager
def new_folder(
    path: Path,
    folders: tuple[str, ...],
    opened: Callable[[Path], object],
    *,
    overwrite: bool,
) -> Iterator[Path]:
    """Folder with ``folders`` to write a bundle into; it appears at ``path`` when the block ends
    well and ``opened`` has validated it.

    Raises ``OutputError`` where ``path`` exists and ``overwrite`` is false.
    """
    with atomic_folder(path, overwrite=overwrite) as folder:
        for name in folders:
            (folder / name).mkdir()
        yield folder
        opened(folder)


def describe_files(root: Path, folders: tuple[str, ...]) -> dict[str, FileEntry]:
    """Entries for all files under the folders of a bundle being written."""
    return {
        path.relative_to(root).as_posix(): FileEntry(sha256_file(path), path.stat().st_size)
        for path in walk(root, folders)
        if path.is_file()
    }
