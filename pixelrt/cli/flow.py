"""Files through a model one after another, or with reading and writing beside the network.

Of several files the next one is decoded and the last one encoded while the network works on
the one between them. At most three pictures are in memory: one read ahead, one in the
network, one being written. What is told keeps the order of the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.cli.jobs import Job
from pixelrt.cli.terminal import tile_bar
from pixelrt.errors import InputError, OutOfMemoryError, OutputError, PixelrtError
from pixelrt.geometry import Size
from pixelrt.runtime.images.encode import write_picture
from pixelrt.runtime.images.read import Picture, read_picture
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.planning import RunOptions, memory_budget, plan_image
from pixelrt.runtime.video.options import VideoOptions

BESIDE_SHARE = 8
"""One part in so many of the memory is for the picture read ahead, one for that written."""

PICTURE_BYTES = 8
"""Per pixel while it is decoded or encoded: Pillow's four, the array's three, and buffers."""


@dataclass(frozen=True)
class Settings:
    """What one run of the verb does with every image; ``video`` is for videos."""

    options: RunOptions
    resize: tuple[int, int] | None
    quality: int
    max_pixels: int
    overwrite: bool
    quiet: bool
    video: VideoOptions = field(default_factory=VideoOptions)


@dataclass(frozen=True)
class Outcome:
    """What became of a file: a line that tells of it, or the error; and notes in order.

    ``seconds`` of the line: reading, running and writing of this file, without waiting.
    """

    line: str = ""
    notes: tuple[str, ...] = ()
    error: PixelrtError | None = None


@dataclass(frozen=True)
class _Read:
    picture: Picture
    seconds: float


@dataclass(frozen=True)
class _Result:
    """``source``: size and notes of what was read; the picture itself can go."""

    source: tuple[str, tuple[str, ...]]
    picture: Picture
    seconds: float


def run_job(model: ImageModel, job: Job, settings: Settings) -> Outcome:
    """One image from file to file. Raises what goes wrong."""
    read = _read(job.source, settings, settings.max_pixels)
    return _write(job, _run(model, job, read, settings), settings)


def run_overlapped(
    model: ImageModel, jobs: list[Job], settings: Settings, tell: Callable[[Outcome], None]
) -> None:
    """Run all pictures and tell the outcome of each, in order; an input or output error is one.

    Anything else that goes wrong is raised, after what is being written is finished. The
    pictures beside the network count against ``max_memory``: where a picture needs it all,
    the network has it to itself.
    """
    with (
        ThreadPoolExecutor(1, "pixelrt-read") as reader,
        ThreadPoolExecutor(1, "pixelrt-write") as writer,
    ):
        flow = _Flow(model, settings, reader, writer, tell)
        try:
            for job, following in zip_longest(jobs, jobs[1:]):
                flow.step(job, following)
        finally:
            flow.settle()


class _Flow:
    """One picture in the network, at most one read ahead and one being written."""

    def __init__(
        self,
        model: ImageModel,
        settings: Settings,
        reader: ThreadPoolExecutor,
        writer: ThreadPoolExecutor,
        tell: Callable[[Outcome], None],
    ) -> None:
        self.model = model
        self.settings = settings
        self.reader = reader
        self.writer = writer
        self.tell = tell
        self.room = memory_budget(settings.options) // BESIDE_SHARE
        self.ahead: Future[_Read | None] | None = None
        self.behind: Future[Outcome] | None = None

    def step(self, job: Job, following: Job | None) -> None:
        try:
            read = self._take(job)
            beside = _beside(self.model, read.picture, self.settings, 2 * self.room)
            if beside is None:
                self.settle()
            elif following is not None:
                self.ahead = self.reader.submit(_read_ahead, following, self.settings, self.room)
            result = _run(self.model, job, read, beside or self.settings)
        except (InputError, OutputError) as exc:
            self.settle()
            self.tell(Outcome(error=exc))
            return
        self.settle()
        self.behind = self.writer.submit(_tried_write, job, result, self.settings)
        if beside is None or _large(result.picture, self.room):
            self.settle()

    def settle(self) -> None:
        """Wait for what is being written, and tell of it."""
        behind, self.behind = self.behind, None
        if behind is not None:
            self.tell(behind.result())

    def _take(self, job: Job) -> _Read:
        """What was read ahead, or read now where that was not possible before."""
        ahead, self.ahead = self.ahead, None
        read = ahead.result() if ahead is not None else None
        return read or _read(job.source, self.settings, self.settings.max_pixels)


def _read_ahead(job: Job, settings: Settings, room: int) -> _Read | None:
    """The picture if it is good and has at most ``room`` bytes; its turn tells what is wrong."""
    try:
        read = _read(job.source, settings, min(settings.max_pixels, room // PICTURE_BYTES))
    except InputError:
        return None
    return None if _large(read.picture, room) else read


def _beside(
    model: ImageModel, picture: Picture, settings: Settings, bytes_beside: int
) -> Settings | None:
    """The settings with ``bytes_beside`` fewer for the network; ``None`` if it needs them all."""
    limit = settings.options.max_memory
    if limit is None:
        return settings  # the free memory is looked at anew for each picture
    options = replace(settings.options, max_memory=limit - bytes_beside)
    try:
        plan_image(Size(*picture.pixels.shape[:2]), model.manifest, options)
    except OutOfMemoryError:
        return None
    return replace(settings, options=options)


def _large(picture: Picture, room: int) -> bool:
    height, width = picture.pixels.shape[:2]
    return bool(height * width * PICTURE_BYTES > room)


def _read(path: Path, settings: Settings, max_pixels: int) -> _Read:
    start = time.perf_counter()
    picture = _resized(read_picture(path, max_pixels=max_pixels), settings.resize)
    return _Read(picture, time.perf_counter() - start)


def _run(model: ImageModel, job: Job, read: _Read, settings: Settings) -> _Result:
    start = time.perf_counter()
    with tile_bar(job.source.name, enabled=not settings.quiet) as bar:
        picture = model.run_picture(read.picture, settings.options, bar)
    source = _size(read.picture), read.picture.notes
    return _Result(source, picture, read.seconds + time.perf_counter() - start)


def _tried_write(job: Job, result: _Result, settings: Settings) -> Outcome:
    try:
        return _write(job, result, settings)
    except (InputError, OutputError) as exc:
        return Outcome(error=exc)


def _write(job: Job, result: _Result, settings: Settings) -> Outcome:
    start = time.perf_counter()
    job.target.parent.mkdir(parents=True, exist_ok=True)
    lost = write_picture(
        job.target, result.picture, quality=settings.quality, overwrite=settings.overwrite
    )
    seconds = result.seconds + time.perf_counter() - start
    size, read_notes = result.source
    sizes = f"{job.source} {size} -> {job.target} {_size(result.picture)}"
    notes = [] if settings.quiet else [f"{job.source}: {text}" for text in read_notes]
    notes += [f"{job.target}: {text}" for text in lost]
    return Outcome(f"{sizes}  {seconds:.2f} s", tuple(notes))


def _resized(picture: Picture, size: tuple[int, int] | None) -> Picture:
    """Bicubic, as the image-to-image test scripts resize."""
    if size is None:
        return picture
    from PIL import Image

    def to_size(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        flat = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
        high = np.asarray(Image.fromarray(flat).resize(size, Image.Resampling.BICUBIC))
        return high.reshape(*high.shape[:2], *pixels.shape[2:])

    alpha = None if picture.alpha is None else to_size(picture.alpha)
    return replace(picture, pixels=to_size(picture.pixels), alpha=alpha)


def _size(picture: Picture) -> str:
    height, width = picture.pixels.shape[:2]
    return f"{width}x{height}"
