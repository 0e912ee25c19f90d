"""Videos through a model, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable

from pixelrt.cli.flow import Outcome, Settings
from pixelrt.cli.jobs import Job
from pixelrt.cli.terminal import frame_bar
from pixelrt.errors import InputError, OutputError
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.video.run import run_video


def run_video_job(model: ImageModel, job: Job, settings: Settings) -> Outcome:
    """One video from file to file. Raises what goes wrong."""
    start = time.perf_counter()
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with frame_bar(job.source.name, enabled=not settings.quiet) as bar:
        done = run_video(
            *(model, job.source, job.target, settings.video),
            resize=settings.resize,
            max_pixels=settings.max_pixels,
            overwrite=settings.overwrite,
            progress=bar,
            **vars(settings.options),
        )
    seconds = time.perf_counter() - start
    sizes = f"{job.source} {done.source_size} -> {job.target} {done.size}"
    notes = () if settings.quiet else tuple(f"{job.source}: {text}" for text in done.notes)
    return Outcome(f"{sizes}  {done.frames} frames  {seconds:.2f} s", notes)


def run_videos(
    model: ImageModel, jobs: list[Job], settings: Settings, tell: Callable[[Outcome], None]
) -> None:
    """Run all jobs and tell the outcome of each; an input or output error is one."""
    for job in jobs:
        try:
            tell(run_video_job(model, job, settings))
        except (InputError, OutputError) as exc:
            tell(Outcome(error=exc))
