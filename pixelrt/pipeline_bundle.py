"""Bundles of several networks: diffusion pipelines, StyleGAN2.

A folder as that of one network (``pixelrt.bundle``), with ``assets/`` for what is neither
graph nor sample. ``docs/bundle-format.md`` is normative.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pixelrt.bundle import BundledNetwork
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
from pixelrt.manifest import PIPELINE_FORMAT, Network, PipelineManifest, PipelineReference
from pixelrt.segments import problems_of
from pixelrt.whole_run import WholeRun, read_run

FOLDERS = ("graphs", "reference", "assets")
INPUT, OUTPUT = "in.", "out."

T = TypeVar("T")


@dataclass(frozen=True)
class PipelineNetwork(BundledNetwork):
    """One network of a pipeline, as a backend sees it."""

    network: Network

    def samples(self) -> Iterator[tuple[str, dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
        """(name, inputs, expected outputs) of each sample, read as it is asked for, smallest
        file first. Raises ``BundleError``."""
        for sample in sorted(self.network.samples, key=lambda one: self.files[one.file].bytes):
            path = self.path(sample.file)
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    values = {name: arrays[name] for name in arrays.files}
            except (OSError, ValueError) as exc:
                raise BundleError(f"{path} is no reference sample", found=str(exc)) from exc
            yield sample.name, self._named(values, INPUT, path), self._named(values, OUTPUT, path)

    def _named(
        self, values: Mapping[str, NDArray[Any]], prefix: str, path: Path
    ) -> dict[str, NDArray[Any]]:
        graph = self.component.graphs[0]
        wanted = [one.name for one in (graph.inputs if prefix == INPUT else graph.outputs)]
        found = {key.removeprefix(prefix): v for key, v in values.items() if key.startswith(prefix)}
        if sorted(found) != sorted(wanted):
            raise BundleError(
                f"{path} is no reference sample of {self.component.name}",
                found=", ".join(sorted(found)) or "nothing",
                expected=", ".join(wanted),
            )
        return found


class PipelineBundle:
    """An opened bundle of several networks; its files are as the manifest says."""

    def __init__(self, root: Path, manifest: PipelineManifest, sha256: str) -> None:
        self.root = root
        self.manifest = manifest
        self.sha256 = sha256

    def names(self) -> tuple[str, ...]:
        return tuple(one.component.name for one in self.manifest.networks)

    def network(self, name: str) -> PipelineNetwork:
        """Raises ``BundleError`` naming what the bundle has."""
        for one in self.manifest.networks:
            if one.component.name == name:
                title = f"{self.manifest.name} ({name})"
                files = self.manifest.files
                return PipelineNetwork(
                    self.root, self.sha256, title, one.component, one.tolerance, files, one
                )
        raise BundleError(
            f"{self.root} has no network {name}", found=", ".join(self.names()), expected=name
        )

    def settings(self, kind: type[T]) -> T:
        """The settings as ``kind``. Raises ``BundleError`` where they are malformed."""
        try:
            return msgspec.convert(self.manifest.settings, kind)
        except msgspec.ValidationError as exc:
            where = self.root / MANIFEST
            raise BundleError(f"{where} is malformed", found=f"settings: {exc}") from exc

    def reference(self, one: PipelineReference) -> WholeRun:
        """Raises ``BundleError`` where its file is no such run."""
        return read_run(self.root / one.file)

    def asset(self, name: str) -> bytes:
        """The contents of ``assets/NAME``. Raises ``BundleError`` where there is none."""
        file = f"assets/{name}"
        if file not in self.manifest.files:
            raise BundleError(f"{self.root} has no {file}", hint="export it again")
        return (self.root / file).read_bytes()


def is_pipeline(path: Path) -> bool:
    """Whether a bundle holds several networks. Raises ``BundleError`` where it is none."""
    root = bundle_root(path)
    return format_of(read_manifest(root), root) == PIPELINE_FORMAT


def open_pipeline(path: Path, *, check_files: bool = True) -> PipelineBundle:
    """Open and validate a bundle of several networks; see ``bundle.open_bundle``."""
    root = bundle_root(path)
    raw = read_manifest(root)
    manifest = _decode(raw, root)
    _check(manifest, root)
    check_listed_files(root, manifest.files, FOLDERS, contents=check_files)
    return PipelineBundle(root, manifest, hashlib.sha256(raw).hexdigest())


def _decode(raw: bytes, root: Path) -> PipelineManifest:
    version = format_of(raw, root)
    if version != PIPELINE_FORMAT:
        raise BundleError(
            f"{root} is no pipeline of several networks",
            found=f"bundle format {version!r}",
            expected=f"format {PIPELINE_FORMAT}",
            hint="`pixelrt run` runs a bundle of one image-to-image network",
        )
    return decode_manifest(raw, root, PipelineManifest)


def _check(manifest: PipelineManifest, root: Path) -> None:
    """Facts that the types alone do not say."""
    problems: list[str] = []
    names = [one.component.name for one in manifest.networks]
    if not names or len(set(names)) != len(names):
        problems.append("networks must be there, each with a name of its own")
    used: set[str] = set()
    for one in manifest.networks:
        name, graphs = one.component.name, one.component.all_graphs()
        if [graph.role for graph in one.component.graphs] != ["network"]:
            problems.append(f"network {name} has not one graph of role network")
        if not one.samples:
            problems.append(f"network {name} has no sample")
        plain = one.component.graphs[0] if one.component.graphs else None
        for graph in graphs:
            used |= {graph.file, *graph.data}
            if plain and (graph.inputs, graph.outputs) != (plain.inputs, plain.outputs):
                problems.append(f"network {name} has a variant with other inputs or outputs")
        used |= {sample.file for sample in one.samples}
        used |= {file for s in one.segments for file in (s.graph.file, *s.graph.data)}
        problems += problems_of(one) if plain else []
    runs = [one.name for one in manifest.references]
    if len(set(runs)) != len(runs):
        problems.append("references of the whole pipeline must each have a name of its own")
    used |= {one.file for one in manifest.references}
    problems += unlisted(used, manifest.files)
    if problems:
        raise BundleError(f"{root / MANIFEST} is malformed", found="; ".join(problems))


def new_pipeline(path: Path, *, overwrite: bool) -> AbstractContextManager[Path]:
    """Folder to write a bundle of several networks into; see ``bundle_files.new_folder``."""
    return new_folder(path, FOLDERS, open_pipeline, overwrite=overwrite)
