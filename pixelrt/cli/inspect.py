"""``pixelrt inspect``: what a bundle is."""

from __future__ import annotations

import json

import click

from pixelrt.bundle import Bundle, BundledNetwork, open_bundle
from pixelrt.cli.terminal import table
from pixelrt.manifest import Manifest, Network, PipelineManifest, Source, encode_manifest
from pixelrt.pipeline_bundle import PipelineBundle, is_pipeline, open_pipeline
from pixelrt.plans.store import StoredPlan, find_plans
from pixelrt.runtime.load import bundle_path
from pixelrt.spec import ImageSpec, ReceptiveField, TensorSpec


@click.command("inspect")
@click.argument("bundle")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def command(bundle: str, as_json: bool) -> None:
    """Describe BUNDLE after checking every file against its sha256."""
    path = bundle_path(bundle)
    if is_pipeline(path):
        pipeline = open_pipeline(path)
        manifest: Manifest | PipelineManifest = pipeline.manifest
        words = describe_pipeline(pipeline)
    else:
        opened = open_bundle(path)
        manifest, words = opened.manifest, describe(opened)
    click.echo(encode_manifest(manifest).decode() if as_json else words, nl=not as_json)


def describe(bundle: Bundle) -> str:
    """A bundle in words, several aligned lines."""
    manifest = bundle.manifest
    spec, field = manifest.image, manifest.receptive_field
    total = sum(entry.bytes for entry in manifest.files.values())
    worst = max(manifest.fidelity, key=lambda m: m.max_abs)
    rows = [
        ("bundle", f"{manifest.name}  ({bundle.root})"),
        ("family", f"{manifest.family}, variant {manifest.variant}"),
        ("source", _source(manifest.source)),
        ("task", f"{spec.task}, {_scale(spec)}, {_channels(spec)}"),
        ("grid", _grid(spec)),
        ("tiles", _tiles(field)),
        ("memory", f"about {manifest.memory.per_pixel} bytes per input pixel"),
        (
            "fidelity",
            f"{worst.max_abs:.1e} worst of {len(manifest.fidelity)} samples against PyTorch "
            f"({worst.backend}; limit {manifest.tolerance.max_abs:.0e})",
        ),
        *(
            (f"{graph.role} graph", f"{_tensors(graph.inputs)} -> {_tensors(graph.outputs)}")
            for graph in bundle.component.graphs
        ),
        *(("plan", text) for text in _plans(bundle)),
        ("size", f"{total / 1e6:.2f} MB in {len(manifest.files)} files, all sha256 match"),
        ("config", json.dumps(manifest.config)),
        ("made by", ", ".join(f"{k} {v}" for k, v in manifest.made_by.items())),
        ("sha256", bundle.sha256),
    ]
    return table(rows)


RUN_BY = {
    "stable-diffusion": "pixelrt txt2img, img2img, inpaint",
    "stable-diffusion-xl": "pixelrt txt2img, img2img, inpaint",
    "kandinsky-2.2": "pixelrt txt2img, img2img",
    "latent-upscaler": "pixelrt run",
    "upscaler": "pixelrt run",
    "stylegan2": "pixelrt stylegan",
}
"""The verbs that run a family of pipelines."""


def describe_pipeline(bundle: PipelineBundle) -> str:
    """A bundle of several networks in words, several aligned lines."""
    manifest = bundle.manifest
    total = sum(entry.bytes for entry in manifest.files.values())
    rows = [
        ("bundle", f"{manifest.name}  ({bundle.root})"),
        ("family", f"{manifest.family}, {manifest.variant}"),
        ("run by", RUN_BY.get(manifest.family, "a later version of pixelrt")),
        ("source", _source(manifest.source)),
        *((one.component.name, _network(one)) for one in manifest.networks),
        ("fidelity", _fidelity(manifest)),
        ("whole", ", ".join(one.name for one in manifest.references) or "has no reference"),
        *(("plan", text) for name in bundle.names() for text in _plans(bundle.network(name))),
        ("size", f"{total / 1e6:.2f} MB in {len(manifest.files)} files, all sha256 match"),
        ("settings", json.dumps(manifest.settings)),
        ("made by", ", ".join(f"{k} {v}" for k, v in manifest.made_by.items())),
        ("sha256", bundle.sha256),
    ]
    return table(rows)


def _network(network: Network) -> str:
    (graph,) = network.component.graphs
    tiles = f"; in tiles: {len(network.segments)} segments" if network.segments else ""
    return f"{_tensors(graph.inputs)} -> {_tensors(graph.outputs)}{tiles}"


def _fidelity(manifest: PipelineManifest) -> str:
    worst = max(manifest.fidelity, key=lambda one: one.max_abs)
    return (
        f"{worst.max_abs:.1e} of the largest value, worst of {len(manifest.fidelity)} samples "
        f"against PyTorch ({worst.sample}, {worst.backend})"
    )


def _plans(bundle: BundledNetwork) -> list[str]:
    """The TensorRT plans of its graphs, here and in the cache, and those that are damaged."""
    found = [find_plans(bundle, graph) for graph in bundle.component.graphs]
    plans = [plan for search in found for plan in search.plans]
    problems = [problem for search in found for problem in search.problems]
    return [*map(_plan, plans), *dict.fromkeys(problem.replace("\n", ";") for problem in problems)]


def _plan(plan: StoredPlan) -> str:
    facts = plan.facts
    size = facts.files[facts.plan].bytes / 1e6
    shapes = " and ".join(facts.profiles)
    what = f"{facts.precision} {facts.graph.network or facts.graph.role}, {facts.bound_to}"
    return f"{what}, {shapes}, {size:.1f} MB, {plan.place}"


def _source(source: Source) -> str:
    if source.kind == "random":
        made = f"{source.name}: " if source.name != f"seed {source.seed}" else ""
        return f"{made}random weights, seed {source.seed}"
    return f"{source.name}  sha256 {source.sha256[:16]}..."


def _scale(spec: ImageSpec) -> str:
    return "same size" if spec.scale == 1 else f"x{spec.scale}"


def _channels(spec: ImageSpec) -> str:
    names = {1: "grey", 3: "RGB"}
    return f"{names[spec.channels_in]} -> {names[spec.channels_out]}"


def _grid(spec: ImageSpec) -> str:
    if spec.multiple == 1:
        return "any size"
    return (
        f"multiples of {spec.multiple}, at least {spec.minimum}; other sizes are padded "
        f"({spec.pad_mode}) and cropped"
    )


def _tiles(field: ReceptiveField) -> str:
    if field.halo is None:
        return "none: it normalises with statistics of the whole image"
    curve = ", ".join(f"{name}: {halo}" for name, halo in field.curve.items())
    return f"exact with halo {field.halo}, starts on multiples of {field.alignment} ({curve})"


def _tensors(specs: list[TensorSpec]) -> str:
    return ", ".join(str(spec) for spec in specs)
