"""``pixelrt run``: images and videos through a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pixelrt.bundle import open_bundle
from pixelrt.cli.flow import Outcome, Settings, run_job, run_overlapped
from pixelrt.cli.jobs import Job, plan_jobs, videos_in_folders
from pixelrt.cli.options import ByteCount, PixelSize, Tile, refuse
from pixelrt.cli.terminal import note
from pixelrt.cli.videos import run_video_job, run_videos
from pixelrt.errors import OutputError, PixelrtError, UsageError
from pixelrt.pipeline_bundle import is_pipeline
from pixelrt.runtime.backends.select import PRECISIONS
from pixelrt.runtime.load import SHIPPED, bundle_path, load
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.planning import RunOptions
from pixelrt.runtime.video.options import VideoOptions

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp"}
MAX_PIXELS = 500_000_000
ASKED = ("prompt", "negative_prompt", "steps", "guidance_scale", "noise_level", "seed")
"""Options of the verb that upscalers alone have."""
SHARED = (
    *("bundle", "inputs", "output", "backend", "precision"),
    *("kind", "quality", "max_pixels", "overwrite", "quiet"),
)
"""Options that they have as any bundle."""


@click.command("run")
@click.argument("bundle")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File or folder to write.")
@click.option("--backend", default="auto", show_default=True, help="auto or a backend's name.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="auto: the lowest that the bundle's reference outputs allow.",
)
@click.option(
    "--build", "build_plan", is_flag=True, help="Build a TensorRT plan first if none fits this GPU."
)
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    help="Use this TensorRT plan (NAME.plan) and no other.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Tiles that a GPU computes at the same time (tensorrt).",
)
@click.option("--tile", type=Tile(), default="auto", show_default=True, help="Input pixels.")
@click.option(
    "--halo", default="exact", show_default=True, help="exact, input pixels, or e.g. 60dB."
)
@click.option("--max-memory", type=ByteCount(), help="Working memory of the network, e.g. 2GB.")
@click.option(
    "--pad",
    type=click.Choice(["grid", "library"]),
    default="grid",
    show_default=True,
    help="Pad as little as possible, or as the original library does.",
)
@click.option("--resize", type=PixelSize(), help="Resize the input first, e.g. 256 or 640x480.")
@click.option("--format", "kind", type=click.Choice(list(SUFFIXES)), help="Output format.")
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True)
@click.option("--max-pixels", type=click.IntRange(1), default=MAX_PIXELS, show_default=True)
@click.option(
    "--video-codec", default=VideoOptions.codec, show_default=True, help="Encoder for videos."
)
@click.option(
    "--crf",
    type=click.IntRange(0, 255),
    help="Constant quality of videos, smaller is better.  [default: 18 for libx264]",
)
@click.option(
    "--pixel-format",
    default=VideoOptions.pixel_format,
    show_default=True,
    help="Of videos, e.g. yuv444p.",
)
@click.option("--no-audio", is_flag=True, help="Leave the sound of videos out.")
@click.option("-p", "--prompt", help="Of an upscaler: what the picture shows.")
@click.option("-n", "--negative-prompt", help="Of an upscaler: what to keep away from.")
@click.option("--steps", type=int, help="Of an upscaler.  [default: 75]")
@click.option("--guidance-scale", type=float, help="Of an upscaler.  [default: 9]")
@click.option("--noise-level", type=int, help="Of an x4 upscaler.  [default: 20]")
@click.option("--seed", type=click.IntRange(0), help="Of an upscaler.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def command(
    bundle: str,
    inputs: tuple[Path, ...],
    output: Path | None,
    backend: str,
    precision: str,
    build_plan: bool,
    plan: Path | None,
    kind: str | None,
    overwrite: bool,
    quiet: bool,
    resize: tuple[int, int] | None,
    quality: int,
    max_pixels: int,
    video_codec: str,
    crf: int | None,
    pixel_format: str,
    no_audio: bool,
    **options: Any,
) -> int:
    """Run INPUTS (pictures, videos or folders) through BUNDLE.

    Folders are searched recursively and keep their structure; outputs that exist are
    skipped unless --overwrite is given. A failed image does not stop the others. Of folders
    only the pictures are run: name videos themselves. Videos keep their sound and times.
    A diffusion upscaler takes latents (.npy) of another pipeline, too, where it enlarges these.
    """
    path, suffix = bundle_path(bundle), SUFFIXES[kind] if kind else None
    asked = {name: options.pop(name) for name in ASKED}
    if is_pipeline(path):
        # here: a picture through one network does not wait for what it does not use
        from pixelrt.cli.upscale import Upscaling, is_upscaler, upscale

        if is_upscaler(path):
            refuse(
                {option.name for option in click.get_current_context().command.params}
                - {*ASKED, *SHARED},
                "an upscaler of several steps has no such option",
            )
            upscaler = Upscaling(bundle, asked, quality, max_pixels, overwrite, quiet)
            return upscale(upscaler, inputs, output, suffix, backend=backend, precision=precision)
    refuse(ASKED, f"{bundle} is no diffusion upscaler, which alone has such an option")
    if build_plan and plan:
        raise UsageError("--build and --plan do not go together", hint="leave one of them out")
    if build_plan:
        from pixelrt.cli.build import ensure_plan

        ensure_plan(open_bundle(path), shipped=bundle in SHIPPED, quiet=quiet)
    with load(bundle, backend=backend, precision=precision, plan=plan) as model:
        tag = f"x{model.scale}" if model.scale > 1 else model.manifest.name
        jobs = plan_jobs(inputs, output, suffix, tag)
        video = VideoOptions(video_codec, crf, pixel_format, "drop" if no_audio else "copy")
        settings = Settings(
            RunOptions(**options), resize, quality, max_pixels, overwrite, quiet, video
        )
        if not quiet:
            _tell_passed_over(videos_in_folders(inputs))
        return run_jobs(model, jobs, settings)


def run_jobs(model: ImageModel, jobs: list[Job], settings: Settings) -> int:
    """Run all jobs; gives the exit code. One job's error is raised, several are counted."""
    if len(jobs) == 1:
        (job,) = jobs
        if job.target.exists() and not settings.overwrite:
            raise OutputError(f"{job.target} exists", hint="pass --overwrite to replace it")
        run_one = run_video_job if job.video else run_job
        _tell(run_one(model, job, settings), settings)
        if not settings.quiet:
            _summarise(model, 1, 0, 0)
        return 0
    todo = [job for job in jobs if settings.overwrite or not job.target.exists()]
    failed: list[PixelrtError] = []

    def tell(outcome: Outcome) -> None:
        _tell(outcome, settings)
        failed.extend([outcome.error] if outcome.error else [])

    run_overlapped(model, [job for job in todo if not job.video], settings, tell)
    run_videos(model, [job for job in todo if job.video], settings, tell)
    if not settings.quiet:
        _summarise(model, len(todo) - len(failed), len(jobs) - len(todo), len(failed))
    return max((error.exit_code for error in failed), default=0)


def _tell_passed_over(videos: list[Path]) -> None:
    if videos:
        note(f"{len(videos)} videos in folders are passed over, such as {videos[0]}: name them")


def _tell(outcome: Outcome, settings: Settings) -> None:
    for text in outcome.notes:
        note(text)
    if outcome.error:
        note(f"pixelrt: {outcome.error}")
    elif not settings.quiet:
        click.echo(outcome.line)


def _summarise(model: ImageModel, done: int, skipped: int, failed: int) -> None:
    if done:
        note(f"backend   {model.info}")
        note(f"fidelity  {'; '.join(model.fidelity.values())}")
        for text in model.notes:
            note(f"note      {text}")
        for passed in model.passed_over:
            note(f"passed over  {passed.short}")
    if skipped or failed:
        note(f"{done} written, {skipped} skipped because they exist, {failed} failed")
