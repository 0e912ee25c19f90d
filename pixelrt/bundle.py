"""The bundle format: the only contract between export, engines and runtime.

A bundle is a folder ``NAME.pixelrt/`` with ``manifest.json``, ``graphs/`` and
``reference/``. ``docs/bundle-format.md`` is normative.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import BundleError
from pixelrt.files import atomic_folder, sha256_file
from pixelrt.manifest import FORMAT, Component, FileEntry, Manifest, Reference

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
FOLDERS = ("graphs", "reference")


class Bundle:
    """An opened bundle. Its files are as the manifest says when ``open_bundle`` returned.

    ``sha256`` is that of the manifest, which holds those of all files: it names the whole
    bundle.
    """

    def __init__(self, root: Path, manifest: Manifest, sha256: str) -> None:
        self.root = root
        self.manifest = manifest
        self.sha256 = sha256

    @property
    def component(self) -> Component:
        """The only network of an image bundle."""
        return self.manifest.components[0]

    def path(self, file: str) -> Path:
        return self.root / file

    def reference(self, sample: Reference) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Input (1, H, W, C) uint8 and expected output (1, C, H', W') float32 of a sample."""
        path = self.path(sample.file)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                inputs, outputs = arrays["input"], arrays["output"]
        except (OSError, ValueError, KeyError) as exc:
            raise BundleError(f"{path} is no reference sample", found=str(exc)) from exc
        return inputs, outputs


def open_bundle(path: Path, *, check_files: bool = True) -> Bundle:
    """Open and validate a bundle folder.

    ``check_files``: also compare every file's length and sha256 with the manifest.
    Raises ``BundleError`` naming the file or field that is wrong.
    """
    root = _bundle_root(path)
    raw = _read_manifest(root)
    manifest = _decode(raw, root)
    _check_references(manifest, root)
    _check_paths(manifest, root)
    if check_files:
        for name, entry in manifest.files.items():
            _check_file(root, name, entry)
    return Bundle(root, manifest, hashlib.sha256(raw).hexdigest())


def _bundle_root(path: Path) -> Path:
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


def _read_manifest(root: Path) -> bytes:
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


def _decode(raw: bytes, root: Path) -> Manifest:
    try:
        version = json.loads(raw)["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BundleError(f"{root / MANIFEST} is no manifest", found=str(exc)) from exc
    if version != FORMAT:
        raise BundleError(
            f"{root} has bundle format {version!r}",
            expected=f"format {FORMAT}",
            hint="export it again with this version of pixelrt, or use the version that made it",
        )
    try:
        return msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise BundleError(f"{root / MANIFEST} is malformed", found=str(exc)) from exc


def _check_references(manifest: Manifest, root: Path) -> None:
    """Facts that the types alone do not say."""
    problems = []
    image = manifest.image
    if image.scale < 1 or image.multiple < 1 or image.minimum < 1:
        problems.append("scale, multiple and minimum must be at least 1")
    if image.minimum % max(image.multiple, 1):
        problems.append("minimum is not a multiple of multiple")
    if {image.channels_in, image.channels_out} - {1, 3}:
        problems.append("channels must be 1 or 3")
    field = manifest.receptive_field
    if field.alignment < 1 or (field.halo is not None and field.halo < 0):
        problems.append("receptive_field is out of range")
    if not manifest.components or not manifest.references:
        problems.append("a bundle has at least one component and one reference")
    problems += [
        f"component {component.name} has not one image and one core graph"
        for component in manifest.components
        if sorted(graph.role for graph in component.graphs) != ["core", "image"]
    ]
    problems += [p for component in manifest.components for p in _variant_problems(component)]
    listed = set(manifest.files)
    used = {s.file for s in manifest.references}
    for component in manifest.components:
        for graph in component.all_graphs():
            used |= {graph.file, *graph.data}
    problems += [f"{name} is used but not listed under files" for name in sorted(used - listed)]
    if problems:
        raise BundleError(f"{root / MANIFEST} is malformed", found="; ".join(problems))


def _variant_problems(component: Component) -> Iterator[str]:
    """A variant stands in for the plain graphs, so it has to look like them from outside."""
    backends = [variant.backend for variant in component.variants]
    if len(set(backends)) != len(backends) or "" in backends:
        yield f"component {component.name} has variants without a backend of their own"
    plain = {graph.role: (graph.inputs, graph.outputs) for graph in component.graphs}
    for variant in component.variants:
        title = f"variant {variant.backend} of component {component.name}"
        if sorted(graph.role for graph in variant.graphs) != ["core", "image"]:
            yield f"{title} has not one image and one core graph"
        elif any((g.inputs, g.outputs) != plain.get(g.role) for g in variant.graphs):
            yield f"{title} has other inputs or outputs than the plain graphs"


def _check_paths(manifest: Manifest, root: Path) -> None:
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if (
            name != str(PurePosixPath(name))
            or len(parts) < 2
            or parts[0] not in FOLDERS
            or ".." in parts
            or "\\" in name
            or ":" in name
            or "\0" in name
        ):
            raise BundleError(
                f"{root / MANIFEST} names a file that may not be in a bundle",
                found=repr(name),
                expected="a relative path under " + " or ".join(f"{f}/" for f in FOLDERS),
            )
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            raise BundleError(
                f"{root} holds a link", found=name, expected="regular files and folders only"
            )
        if path.is_file() and name not in manifest.files:
            raise BundleError(
                f"{root} holds a file that its manifest does not list",
                found=name,
                hint="remove it; a graph could read it",
            )


def _walk(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
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


def encode_reference(inputs: NDArray[np.uint8], outputs: NDArray[np.float32]) -> bytes:
    """A reference sample as the bytes of an npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, input=inputs, output=outputs)
    return buffer.getvalue()


def describe_files(root: Path) -> dict[str, FileEntry]:
    """Entries for all files under the folders of a bundle being written."""
    return {
        path.relative_to(root).as_posix(): FileEntry(sha256_file(path), path.stat().st_size)
        for path in _walk(root)
        if path.is_file()
    }


@contextmanager
def new_bundle(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Folder to write a bundle into; it appears at ``path`` when the block ends well.

    The finished bundle is opened and validated before it appears. Raises ``OutputError``
    where ``path`` exists and ``overwrite`` is false.
    """
    with atomic_folder(path, overwrite=overwrite) as folder:
        for name in FOLDERS:
            (folder / name).mkdir()
        yield folder
        open_bundle(folder)
