"""The bundle format: the only contract between export, engines and runtime.

A bundle is a folder ``NAME.pixelrt/`` with ``manifest.json``, ``graphs/`` and
``reference/``. ``docs/bundle-format.md`` is normative. Here is the bundle of one
image-to-image network; those of several networks are in ``pipeline_bundle``.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixelrt.bundle_files import (
    MANIFEST,
    bundle_root,
    decode_manifest,
    format_of,
    new_folder,
    read_manifest,
    unlisted,
)
from pixelrt.bundle_files import check_files as check_listed_files
from pixelrt.errors import BundleError
from pixelrt.manifest import FORMAT, PIPELINE_FORMAT, Component, FileEntry, Manifest, Reference
from pixelrt.spec import Tolerance

FOLDERS = ("graphs", "reference")


@dataclass(frozen=True)
class BundledNetwork:
    """One network of a bundle: what a backend has to know of it.

    ``sha256`` is that of the bundle's manifest, which holds those of all ``files``: it names
    the whole bundle.
    """

    root: Path
    sha256: str
    name: str
    component: Component
    tolerance: Tolerance
    files: Mapping[str, FileEntry]

    def path(self, file: str) -> Path:
        return self.root / file


class Bundle(BundledNetwork):
    """An opened bundle. Its files are as the manifest says when ``open_bundle`` returned."""

    manifest: Manifest

    def __init__(self, root: Path, manifest: Manifest, sha256: str) -> None:
        (component, *_) = manifest.components
        super().__init__(root, sha256, manifest.name, component, manifest.tolerance, manifest.files)
        object.__setattr__(self, "manifest", manifest)

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
    root = bundle_root(path)
    raw = read_manifest(root)
    manifest = _decode(raw, root)
    _check_references(manifest, root)
    check_listed_files(root, manifest.files, FOLDERS, contents=check_files)
    return Bundle(root, manifest, hashlib.sha256(raw).hexdigest())


def _decode(raw: bytes, root: Path) -> Manifest:
    version = format_of(raw, root)
    if version == PIPELINE_FORMAT:
        raise BundleError(
            f"{root} is a pipeline of several networks",
            expected="a bundle of one image-to-image network",
            hint="`pixelrt inspect` says which command runs it",
        )
    if version != FORMAT:
        raise BundleError(
            f"{root} has bundle format {version!r}",
            expected=f"format {FORMAT}",
            hint="export it again with this version of pixelrt, or use the version that made it",
        )
    return decode_manifest(raw, root, Manifest)


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
    used = {s.file for s in manifest.references}
    for component in manifest.components:
        for graph in component.all_graphs():
            used |= {graph.file, *graph.data}
    problems += unlisted(used, manifest.files)
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


def encode_reference(inputs: NDArray[np.uint8], outputs: NDArray[np.float32]) -> bytes:
    """A reference sample as the bytes of an npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, input=inputs, output=outputs)
    return buffer.getvalue()


def new_bundle(path: Path, *, overwrite: bool) -> AbstractContextManager[Path]:
    """Folder to write a bundle of one network into; see ``new_folder``."""
    return new_folder(path, FOLDERS, open_bundle, overwrite=overwrite)
