"""A video file through an image model. PyAV is imported when the first one is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixelrt.errors import BackendError, OutputError
from pixelrt.runtime.pipelines.image import ImageModel, run_options
from pixelrt.runtime.tiling import Progress
from pixelrt.runtime.video.formats import container_of
from pixelrt.runtime.video.options import VideoOptions, VideoResult

MAX_PIXELS = 500_000_000


def run_video(
    model: ImageModel,
    source: str | Path,
    target: str | Path,
    video: VideoOptions | None = None,
    *,
    resize: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> VideoResult:
    """Run every frame of ``source`` through ``model`` and write ``target``.

    The suffix of ``target`` names the container. Sound is copied packet by packet, and so are
    subtitles, data, chapters and covers where the container takes them. Each frame keeps its
    time, so that a variable frame rate stays one; pixel aspect ratio and colour tags stay,
    and YUV is converted with the matrix and range that they name. Frames are turned upright
    where the file asks for that, as pictures are. 8-bit video goes through the uint8 graph;
    deeper video through the float graph, and is written as deep as the encoder can.

    ``video``: how to encode; see ``VideoOptions``, also for odd sizes. ``resize``: (width,
    height) before the network; the picture keeps its shape on the screen. ``max_pixels`` of
    a source frame. ``progress``: called with (frames done, frames expected or 0). Further
    ``options`` are the fields of ``RunOptions``.

    The file appears when it is complete; nothing is left of a run that fails. Raises
    ``VideoError`` for what is wrong with the source, ``OutputError`` where the target exists,
    cannot be written or cannot hold the sound, ``UsageError`` for options and names,
    ``BackendError`` where PyAV or an encoder is absent.
    """
    source, target, chosen = Path(source), Path(target), run_options(options)
    container_of(target)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists", hint="allow overwriting, or choose another name")
    _require_pyav()
    from pixelrt.runtime.video.flow import translate
    from pixelrt.runtime.video.read import VideoReader

    with VideoReader(source, max_pixels=max_pixels, resize=resize) as reader:
        return translate(
            *(model, reader, target, video or VideoOptions(), chosen),
            overwrite=overwrite,
            progress=progress,
        )


def _require_pyav() -> None:
    try:
        import av  # noqa: F401 (whether it is there)
    except ImportError as exc:
        raise BackendError(
            "videos need the package av, which is not installed",
            found=str(exc),
            hint="pip install 'pixelrt[video]'",
        ) from exc
