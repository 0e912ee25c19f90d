"""Checkpoint to verified bundle."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

import pixelrt
from pixelrt.bundle import FOLDERS, encode_reference, new_bundle
from pixelrt.bundle_files import MANIFEST, describe_files
from pixelrt.errors import OutputError, UsageError
from pixelrt.export import check, image_io, memory, receptive_field, registry, to_onnx
from pixelrt.export.checkpoint import open_checkpoint
from pixelrt.export.recipe import Config, Network, Recipe
from pixelrt.export.samples import Sample, make_samples, reference_output
from pixelrt.export.workspace import Workspace
from pixelrt.manifest import (
    FORMAT,
    Component,
    Graph,
    GraphVariant,
    Manifest,
    Measured,
    MemoryNeed,
    Reference,
    Source,
    encode_manifest,
)
from pixelrt.spec import ReceptiveField

SUFFIX = ".pixelrt"
DESCRIBED = "component.json"
STAGES = ("load", "reference", "graphs", "check", "receptive field", "memory", "write")
VERSIONS = ("torch", "onnx", "onnxruntime", "onnxscript", "onnx-ir", "transformers", "numpy")

Report = Callable[[str], None]
"""Called with the name of each stage as it begins."""


@dataclass(frozen=True)
class Loaded:
    """A network with what the manifest says about its origin."""

    recipe: Recipe
    variant: str
    network: Network
    source: Source


def export_bundle(
    source: str | Path | None,
    output: Path,
    *,
    family: str | None = None,
    config: Config | None = None,
    random_seed: int | None = None,
    overwrite: bool = False,
    report: Report = lambda stage: None,
) -> Path:
    """Write a verified bundle of a network to ``output``; gives ``output``.

    ``source``: checkpoint file, Hugging Face folder or hub id; ``None`` with
    ``random_seed`` and ``family`` builds the architecture of ``config`` with random
    weights. ``config`` overrides what is found in the checkpoint. Nothing appears at
    ``output`` unless the graph reproduces PyTorch; an interrupted export resumes at the
    stage it had reached when it is run again.

    Raises ``CheckpointError``, ``ExportError``, ``OutputError`` or ``UsageError``.
    """
    check_output(output, overwrite)
    report("load")
    loaded = _load(source, family, config, random_seed)
    key = [loaded.recipe.name, loaded.variant, loaded.network.config, loaded.source, made_by()]
    key.append(sorted(loaded.network.variants))
    with Workspace(key) as work:
        _write(loaded, work, output, overwrite, report)
        work.clear()
    return output


def check_output(output: Path, overwrite: bool) -> None:
    """Before minutes of work, not after."""
    if not output.name.endswith(SUFFIX):
        raise UsageError(f"{output} is no name for a bundle", expected=f"NAME{SUFFIX}")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists", hint="choose another name, or pass --overwrite")


def _load(
    source: str | Path | None, family: str | None, config: Config | None, seed: int | None
) -> Loaded:
    if seed is not None:
        return _random(source, family, config, seed)
    if source is None:
        raise UsageError(
            "nothing to export", hint="name a checkpoint, or pass --family and --random-init SEED"
        )
    checkpoint = open_checkpoint(source)
    match = registry.detect(checkpoint, family)
    network = match.recipe.load(
        match.variant.name, checkpoint.groups[match.group], config or checkpoint.config
    )
    origin = Source("checkpoint", Path(checkpoint.path).name, checkpoint.sha256)
    return Loaded(match.recipe, match.variant.name, network, origin)


def _random(
    source: str | Path | None, family: str | None, config: Config | None, seed: int
) -> Loaded:
    if source is not None:
        raise UsageError("--random-init takes no checkpoint", hint="leave SOURCE out")
    if family is None:
        raise UsageError(
            "--random-init needs to know what to build",
            expected="--family " + "|".join(recipe.name for recipe in registry.RECIPES),
        )
    recipe = registry.get(family)
    network = recipe.random(config, seed)
    variant = str(network.config.get("variant", recipe.variants[0].name))
    return Loaded(recipe, variant, network, Source("random", f"seed {seed}", seed=seed))


def _write(loaded: Loaded, work: Workspace, output: Path, overwrite: bool, report: Report) -> None:
    network, spec = loaded.network, loaded.network.image
    samples = make_samples(spec)
    report("reference")
    references = work.stage("reference", partial(_make_references, network, samples))
    report("graphs")
    graphs = work.stage("graphs", partial(_make_graphs, network))
    described = msgspec.json.decode((graphs / DESCRIBED).read_bytes(), type=Component)
    report("check")
    fidelity = work.json_stage(
        "check", lambda: _check(loaded.recipe, network, samples, references, graphs, described)
    )
    report("receptive field")
    field = work.json_stage("receptive-field", lambda: receptive_field.measure(network))
    report("memory")
    need = work.json_stage("memory", lambda: memory.measure_memory(graphs / "core.onnx", spec))
    report("write")
    with new_bundle(output, overwrite=overwrite) as folder:
        shutil.copytree(references, folder / "reference", dirs_exist_ok=True)
        shutil.copytree(
            graphs, folder / "graphs", ignore=lambda *_: [DESCRIBED], dirs_exist_ok=True
        )
        manifest = Manifest(
            format=FORMAT,
            name=output.name.removesuffix(SUFFIX),
            family=loaded.recipe.name,
            variant=loaded.variant,
            config=network.config,
            source=loaded.source,
            image=spec,
            receptive_field=msgspec.json.decode(field, type=ReceptiveField),
            tolerance=loaded.recipe.tolerance,
            memory=msgspec.json.decode(need, type=MemoryNeed),
            components=[described],
            references=[_describe(sample) for sample in samples],
            fidelity=msgspec.json.decode(fidelity, type=list[Measured]),
            made_by=made_by(),
            files=describe_files(folder, FOLDERS),
        )
        (folder / MANIFEST).write_bytes(encode_manifest(manifest))


def _make_references(network: Network, samples: tuple[Sample, ...], folder: Path) -> None:
    for sample in samples:
        data = encode_reference(sample.pixels, reference_output(network, sample))
        (folder / f"{sample.name}.npz").write_bytes(data)


def _make_graphs(network: Network, folder: Path) -> None:
    plain = _pair(to_onnx.export_core(network, folder), network, folder)
    variants = [
        GraphVariant(b, _pair(to_onnx.export_variant(network, b, folder), network, folder))
        for b in network.variants
    ]
    component = Component("network", "float32", plain, variants)
    (folder / DESCRIBED).write_bytes(msgspec.json.encode(component))


def _pair(core: Graph, network: Network, folder: Path) -> list[Graph]:
    return [core, image_io.write_image_graph(core, network.image, folder)]


def _check(
    recipe: Recipe,
    network: Network,
    samples: tuple[Sample, ...],
    references: Path,
    graphs: Path,
    component: Component,
) -> list[Measured]:
    """All graphs, variants too; what was measured is that of the plain one."""
    expected = [_output(references / f"{sample.name}.npz") for sample in samples]
    spec = network.image
    measured: list[Measured] = []
    for backend in ["", *network.variants]:
        core, image = component.graph("core", backend), component.graph("image", backend)
        found = check.check_core(graphs, core, recipe, spec, samples, expected)
        check.check_image(graphs, image, spec, samples, expected)
        measured = measured or found
    return measured


def _output(path: Path) -> NDArray[np.float32]:
    with np.load(path, allow_pickle=False) as arrays:
        values: NDArray[np.float32] = arrays["output"]
        return values


def _describe(sample: Sample) -> Reference:
    height, width = sample.pixels.shape[1:3]
    return Reference(sample.name, sample.kind, f"reference/{sample.name}.npz", height, width)


def made_by() -> dict[str, str]:
    found = {name: version(name) for name in VERSIONS}
    return {"pixelrt": pixelrt.__version__, "python": platform.python_version(), **found}
