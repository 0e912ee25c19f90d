"""Frames through a model: decoding, the network and encoding beside one another.

At most three frames are in memory as arrays, beside those that decoder and encoder hold: one
read ahead, one in the network, one being encoded. The length of the video does not matter.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pixelrt.files import atomic_write
from pixelrt.manifest import GraphRole
from pixelrt.runtime.backends.base import TileSession
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.planning import RunOptions, memory_budget
from pixelrt.runtime.tiling import Progress
from pixelrt.runtime.video.formats import container_of
from pixelrt.runtime.video.options import VideoOptions, VideoResult
from pixelrt.runtime.video.read import Step, VideoReader
from pixelrt.runtime.video.write import VideoWriter


def translate(
    model: ImageModel,
    reader: VideoReader,
    target: Path,
    video: VideoOptions,
    options: RunOptions,
    *,
    overwrite: bool,
    progress: Progress | None,
) -> VideoResult:
    """See ``run_video``."""
    container = container_of(target)
    size = reader.facts.size.scaled(model.scale)
    with (
        atomic_write(target, overwrite=overwrite) as file,
        VideoWriter(Path(file.name), target, container, reader, size, video) as writer,
    ):
        options = _settled(model, "image" if writer.depth == 8 else "core", options)
        frames = _run(model, reader, writer, options, progress)
        writer.finish()
    notes = (*reader.notes, *writer.notes)
    return VideoResult(frames, reader.facts.size, writer.size, notes)


def _run(
    model: ImageModel,
    reader: VideoReader,
    writer: VideoWriter,
    options: RunOptions,
    progress: Progress | None,
) -> int:
    """Every frame through the model, in order; gives how many there were."""
    steps = reader.steps(writer.depth, writer.copied)
    tell = progress or _nobody
    frames = 0
    with (
        ThreadPoolExecutor(1, "pixelrt-decode") as decoder,
        ThreadPoolExecutor(1, "pixelrt-encode") as encoder,
    ):
        tell(0, reader.facts.frames)
        ahead: Future[Step | None] = decoder.submit(next, steps, None)
        behind: Future[None] | None = None
        while step := ahead.result():
            ahead = decoder.submit(next, steps, None)
            result = None if step.pixels is None else model.run_array(step.pixels, options)
            if behind is not None:
                behind.result()
            behind = encoder.submit(writer.write, step.packets, result, step.pts, step.duration)
            if result is not None:
                frames += 1
                tell(frames, max(frames, reader.facts.frames))
            del step, result
        if behind is not None:
            behind.result()
    return frames


def _settled(model: ImageModel, role: GraphRole, options: RunOptions) -> RunOptions:
    """With the memory that is free now: every frame has the same tiles, and a backend that
    compiles for shapes does so once."""
    if options.max_memory is not None or isinstance(model.session(role), TileSession):
        return options
    return replace(options, max_memory=memory_budget(options))


def _nobody(done: int, total: int) -> None:
    """Nobody is told of progress."""
