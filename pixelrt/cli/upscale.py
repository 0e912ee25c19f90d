"""``pixelrt run`` for diffusion upscalers: pictures or latents, each through many steps."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from pixelrt.cli.generate import LATENTS, read_source, steps_bar, tell_pipeline
from pixelrt.cli.jobs import Job, plan_jobs
from pixelrt.cli.terminal import note
from pixelrt.errors import InputError, OutputError, PixelrtError, UsageError
from pixelrt.pipeline_bundle import open_pipeline
from pixelrt.runtime.diffusion.call import Generated
from pixelrt.runtime.diffusion.load import PIPELINES, load_pipeline
from pixelrt.runtime.diffusion.upscalers import LatentUpscaler, Upscaler
from pixelrt.runtime.images.encode import output_format, write_picture
from pixelrt.runtime.images.metadata import Metadata
from pixelrt.runtime.images.read import Picture, read_picture

NAMES = {"steps": "num_inference_steps"}


@dataclass(frozen=True)
class Upscaling:
    """``asked``: options of the pipeline, by the names of the command line."""

    bundle: str
    asked: dict[str, Any]
    quality: int
    max_pixels: int
    overwrite: bool
    quiet: bool


def is_upscaler(bundle: Path) -> bool:
    """``bundle``: of several networks."""
    family = open_pipeline(bundle, check_files=False).manifest.family
    return family in PIPELINES and issubclass(PIPELINES[family], Upscaler)


def upscale(
    run: Upscaling,
    inputs: tuple[Path, ...],
    output: Path | None,
    suffix: str | None,
    *,
    backend: str,
    precision: str,
) -> int:
    """All inputs, one after the other; gives the exit code. One input's error is raised,
    several are counted; of several, those whose outputs exist are skipped."""
    jobs = plan_jobs(inputs, output, suffix, "large")
    for job in jobs:
        if job.video:
            raise UsageError(f"{job.source} is a video", expected="pictures, for an upscaler")
        output_format(job.target)  # before minutes of work, not after
    single = len(jobs) == 1
    if not single and not run.overwrite:
        jobs = [job for job in jobs if not job.target.exists()]
    failed: list[PixelrtError] = []
    with load_pipeline(run.bundle, backend=backend, precision=precision) as pipeline:
        assert isinstance(pipeline, Upscaler)
        for job in jobs:
            try:
                made = _one(pipeline, job, run)
            except (InputError, OutputError) as exc:
                if single:
                    raise
                note(f"pixelrt: {exc}")
                failed.append(exc)
                continue
            if not run.quiet:
                tell_pipeline(pipeline, made)
    return max((error.exit_code for error in failed), default=0)


def _one(pipeline: Upscaler, job: Job, run: Upscaling) -> Generated:
    if job.target.exists() and not run.overwrite:
        raise OutputError(f"{job.target} exists", hint="pass --overwrite to replace it")
    source, metadata = _read(pipeline, job.source, run)
    asked = {NAMES.get(name, name): v for name, v in run.asked.items() if v is not None}
    steps = asked.get("num_inference_steps")
    with steps_bar(steps, pipeline.networks, quiet=run.quiet) as step:
        made = pipeline.upscale(image=source, callback=step, **asked)
    assert made.images is not None
    if len(made.images) != 1:
        raise InputError(
            f"{job.source} holds latents of several pictures", found=str(len(made.images))
        )
    if job.target.suffix.lower() == ".png":
        said = {**run.asked, "seed": made.seed, "bundle": run.bundle}
        metadata = replace(metadata, text={**metadata.text, "pixelrt": json.dumps(said)})
    job.target.parent.mkdir(parents=True, exist_ok=True)
    picture = Picture(made.images[0], metadata=metadata)
    for text in write_picture(job.target, picture, quality=run.quality, overwrite=run.overwrite):
        note(f"{job.target}: {text}")
    height, width = made.images.shape[1:3]
    click.echo(f"{job.source} -> {job.target} {width}x{height}")
    return made


def _read(pipeline: Upscaler, path: Path, run: Upscaling) -> tuple[Any, Metadata]:
    """A picture (H, W, 3) uint8, or, for what enlarges them, latents."""
    if path.suffix == LATENTS:
        if not isinstance(pipeline, LatentUpscaler):
            raise UsageError(f"{path} holds latents", expected="a picture, for this upscaler")
        return read_source(path), Metadata()
    picture = read_picture(path, max_pixels=run.max_pixels)
    if not run.quiet:
        for text in picture.notes:
            note(f"{path}: {text}")
        if picture.alpha is not None:
            note(f"{path}: its transparency is left out")
    return np.broadcast_to(picture.pixels, (*picture.pixels.shape[:2], 3)), picture.metadata
