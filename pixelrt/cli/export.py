"""``pixelrt export``: checkpoint to verified bundle."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelrt.cli.inspect import describe, describe_pipeline
from pixelrt.cli.terminal import note
from pixelrt.errors import BackendError, CheckpointError, UsageError

if TYPE_CHECKING:
    from pixelrt.export.diffusion.lora import LoraFile
    from pixelrt.export.weights import Weights

NEEDED = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "transformers", "safetensors")
DIFFUSION = "diffusion"
"""``--family`` for a hub id that is a diffusers pipeline."""
STYLEGAN = "stylegan2"
TITLES = {
    "load": "reading the weights",
    "reference": "running the samples through PyTorch in fp32",
    "graphs": "exporting the graphs",
    "check": "checking the graphs against PyTorch",
    "receptive field": "measuring the receptive field",
    "memory": "measuring the memory",
    "write": "writing the bundle",
}

PART_TITLES = {
    "pipeline": "running the whole pipeline in PyTorch in fp32",
    "write": TITLES["write"],
}


@click.command("export")
@click.argument("source", required=False)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="NAME.pixelrt to write."
)
@click.option("--family", help="swin2sr, pix2pix, cyclegan, srgan, stylegan2 or diffusion.")
@click.option(
    "--config",
    metavar="FILE|NAME",
    help="JSON file with the network's configuration; found from the weights. With --random-init "
    "and --family diffusion also a name such as stable-diffusion-1.5.",
)
@click.option(
    "--random-init",
    "seed",
    type=click.IntRange(0),
    metavar="SEED",
    help="Build the architecture with random weights, for latency work.",
)
@click.option(
    "--controlnet",
    "controlnets",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a ControlNet to put into a diffusion pipeline; may be repeated.",
)
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="FILE[:SCALE]",
    help="LoRA to merge into a diffusion pipeline, by default at scale 1; may be repeated.",
)
@click.option(
    "--tokenizer",
    "tokenizers",
    multiple=True,
    metavar="FOLDER|HUB_ID",
    help="Tokenizer of a diffusion pipeline in a single file; may be repeated.",
)
@click.option(
    "--prior", metavar="FOLDER|HUB_ID", help="Prior of Kandinsky 2.2, whose decoder SOURCE is."
)
@click.option(
    "--no-pipeline-reference",
    is_flag=True,
    help="Do not run the whole of a diffusion pipeline in PyTorch, which takes all of its networks "
    "in memory at once; `pixelrt verify` then checks the networks alone.",
)
@click.option(
    "--weights",
    type=click.Choice(("auto", "float32", "float16", "bfloat16")),
    default="auto",
    show_default=True,
    help="How a diffusion pipeline's weights are stored; auto: in half precision where nothing "
    "is lost by it.",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that exists.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def command(
    source: str | None,
    output: Path,
    family: str | None,
    config: str | None,
    seed: int | None,
    controlnets: tuple[Path, ...],
    loras: tuple[str, ...],
    tokenizers: tuple[str, ...],
    prior: str | None,
    no_pipeline_reference: bool,
    weights: Weights,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Export SOURCE to a bundle: a checkpoint (.safetensors, .pth, .pt, .pth.tar), a Hugging
    Face folder, a diffusers pipeline, a Stable Diffusion checkpoint (with --family diffusion),
    or a hub id (the only thing that is ever downloaded).

    Nothing is written unless the ONNX graph reproduces PyTorch. An interrupted export goes
    on where it was when it is run again.
    """
    _require_extra()
    from pixelrt.bundle import open_bundle
    from pixelrt.export.diffusion.source import is_diffusers
    from pixelrt.export.pipeline import export_bundle

    if family == DIFFUSION or is_diffusers(source):
        _export_diffusion(
            source,
            output,
            config,
            seed,
            quiet=quiet,
            controlnets=controlnets,
            loras=loras,
            tokenizers=tokenizers,
            prior=prior,
            whole=not no_pipeline_reference,
            weights=weights,
            overwrite=overwrite,
        )
        return
    settings = _read_config(config)
    if controlnets or loras or tokenizers or prior or no_pipeline_reference or weights != "auto":
        raise UsageError(
            "--controlnet, --lora, --tokenizer, --prior, --no-pipeline-reference and --weights go "
            "with a diffusion pipeline only",
            hint="name a diffusers folder, or add --family diffusion",
        )
    if family == STYLEGAN:
        _export_stylegan(source, output, settings, seed, overwrite=overwrite, quiet=quiet)
        return
    with _Stages(quiet) as stages:
        export_bundle(
            source,
            output,
            family=family,
            config=settings,
            random_seed=seed,
            overwrite=overwrite,
            report=stages.begin,
        )
    if not quiet:
        click.echo(describe(open_bundle(output)))


def _export_diffusion(
    source: str | None,
    output: Path,
    config: str | None,
    seed: int | None,
    *,
    quiet: bool,
    controlnets: tuple[Path, ...],
    loras: tuple[str, ...],
    prior: str | None,
    whole: bool,
    **options: Any,
) -> None:
    _require_extra(("diffusers", "tokenizers"))
    from pixelrt.engines.bfloat16 import to_bfloat16
    from pixelrt.export.diffusion.pipeline import export_diffusion, export_untrained
    from pixelrt.pipeline_bundle import open_pipeline

    options |= {"report": _part_report(quiet=quiet), "to_bfloat16": to_bfloat16}
    if seed is not None:
        if source is not None or controlnets or loras or prior:
            raise UsageError(
                "--random-init goes without a checkpoint, --controlnet, --lora and --prior",
                hint="random weights take --config and --tokenizer",
            )
        a_name = config and not Path(config).is_file()
        chosen = config if config and a_name else _read_config(config) or {}
        export_untrained(chosen, seed, output, whole=whole, **options)
    elif source is None:
        raise UsageError("nothing to export", hint="name a diffusers folder, a file or a hub id")
    else:
        files = [_lora(text) for text in loras]
        export_diffusion(
            source,
            output,
            controlnets=controlnets,
            loras=files,
            prior=prior,
            whole=whole,
            config=_read_config(config),
            **options,
        )
    if not quiet:
        click.echo(describe_pipeline(open_pipeline(output)))


def _lora(text: str) -> LoraFile:
    """``FILE`` or ``FILE:SCALE``."""
    from pixelrt.export.diffusion.lora import LoraFile

    name, _, tail = text.rpartition(":")
    if not name or Path(text).is_file():
        return LoraFile(Path(text))
    try:
        scale = float(tail)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise UsageError(
            f"--lora {text}: the scale is no number", found=tail, expected="FILE or FILE:SCALE"
        )
    return LoraFile(Path(name), scale)


def _export_stylegan(
    source: str | None,
    output: Path,
    config: dict[str, Any] | None,
    seed: int | None,
    *,
    overwrite: bool,
    quiet: bool,
) -> None:
    from pixelrt.export.stylegan import export_stylegan
    from pixelrt.pipeline_bundle import open_pipeline

    if (source is None) == (seed is None):
        raise UsageError("give a checkpoint, or --random-init SEED", hint="one of them")

    report = _part_report(quiet=quiet)
    export_stylegan(
        source, output, config=config, random_seed=seed, overwrite=overwrite, report=report
    )
    if not quiet:
        click.echo(describe_pipeline(open_pipeline(output)))


def _part_report(*, quiet: bool) -> Callable[[str], None]:
    def report(part: str) -> None:
        if not quiet:
            note(PART_TITLES.get(part, f"exporting and checking {part}"))

    return report


def _require_extra(more: tuple[str, ...] = ()) -> None:
    lacking = [name for name in (*NEEDED, *more) if importlib.util.find_spec(name) is None]
    if lacking:
        raise BackendError(
            "exporting needs packages that are not installed",
            found=f"no {', '.join(lacking)}",
            hint="pip install 'pixelrt[export]'",
        )


def _read_config(name: str | None) -> dict[str, Any] | None:
    if name is None:
        return None
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--config {name}: there is no such file", expected="a JSON file")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as exc:
        raise CheckpointError(f"{path} is not JSON", found=str(exc)) from exc
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is no configuration", expected="a JSON object")
    return config


class _Stages:
    """Tells each stage on standard error as it begins, and how long the last one took."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.start = time.perf_counter()
        self.number = 0
        self.open = False

    def begin(self, stage: str) -> None:
        self._end()
        self.number += 1
        self.start = time.perf_counter()
        self.open = True
        if not self.quiet:
            click.echo(f"[{self.number}/{len(TITLES)}] {TITLES[stage]} ... ", err=True, nl=False)

    def _end(self) -> None:
        if self.open and not self.quiet:
            note(f"{time.perf_counter() - self.start:.1f} s")
        self.open = False

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._end()
        elif self.open and not self.quiet:
            note("failed")
