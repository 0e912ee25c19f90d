"""RGB arrays and copied packets -> a video file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.codec import Codec
from av.codec.context import Flags
from av.packet import Packet
from av.stream import Stream

from pixelrt.errors import BackendError, OutputError
from pixelrt.files import output_error
from pixelrt.geometry import Size
from pixelrt.runtime.backends.base import Array
from pixelrt.runtime.video.colour import RGB, Colour, FromRGB, bits, usual_matrix
from pixelrt.runtime.video.copied import add_copies, copyable, readdressed
from pixelrt.runtime.video.encoder import add_encoder, encoded_size, find_encoder, pixel_format
from pixelrt.runtime.video.options import VideoOptions
from pixelrt.runtime.video.read import Facts, VideoReader

_OPTIONS = {"mp4": {"movflags": "+faststart"}, "mov": {"movflags": "+faststart"}}
"""The index first, so that a browser can play the file while it loads."""


class VideoWriter:
    """A video file being written; a context manager. Nothing is complete before ``finish``.

    ``path`` is where the bytes go, ``name`` what messages call it. ``size``: of the arrays
    to come. Encoder and container are asked before any frame is: raises ``BackendError`` for
    an encoder that is absent or does not open, ``UsageError`` for options that it does not
    take, ``OutputError`` where the container cannot hold the video or the audio.
    """

    def __init__(
        self,
        path: Path,
        name: Path,
        container: str,
        reader: VideoReader,
        size: Size,
        options: VideoOptions,
    ) -> None:
        self.name = name
        facts = reader.facts
        codec = find_encoder(options.codec)
        form = pixel_format(codec, options, facts.depth, size)
        self.depth = min(facts.depth, bits(form))
        self.size = encoded_size(form, size)
        self.notes: list[str] = []
        if self.size != size:
            self.notes.append(
                f"{form.name} needs even sides: the last row or column is repeated, "
                f"{size} -> {self.size}; --pixel-format yuv444p keeps the size"
            )
        if facts.aspect not in (None, 1) and not _keeps_aspect(codec, container):
            self.notes.append(
                f"{codec.canonical_name} in {container} does not say that its pixels are "
                f"{facts.aspect.numerator}:{facts.aspect.denominator}; they show as square"
            )
        colour = _colour(facts.colour, form.is_rgb, size)
        self._from_rgb = FromRGB(colour, form)
        streams, notes = copyable(
            reader.container, reader.stream, container, audio=options.audio == "copy"
        )
        self.notes += notes
        self._target = av.open(
            str(path), "w", format=container, container_options=_OPTIONS.get(container)
        )
        try:
            self._stream = add_encoder(self._target, codec, options, facts.rate)
            self._open(facts, colour, form.name)
            self._copies = add_copies(self._target, streams)
            self._describe(reader)
            self._start(options.codec)
        except BaseException:
            self._give_up()
            raise
        self.copied = frozenset(self._copies)
        self._done = False

    def write(
        self, packets: tuple[Packet[Stream], ...], pixels: Array | None, pts: int, duration: int
    ) -> None:
        """Copied packets, then a frame (H, W, 1 or 3), uint8 or float32 in [0, 1]."""
        try:
            self._target.mux(list(readdressed(packets, self._copies)))
            if pixels is not None:
                frame = self._from_rgb(_padded(_coloured(pixels), self.size))
                frame.pts, frame.duration = pts, duration
                frame.time_base = self._stream.codec_context.time_base
                self._target.mux(self._stream.encode(frame))
        except av.FFmpegError as exc:
            raise self._failed(exc) from exc

    def finish(self) -> None:
        """What the encoder still holds, and the index."""
        try:
            self._target.mux(self._stream.encode(None))
            self._done = True
            self._target.close()
        except av.FFmpegError as exc:
            raise self._failed(exc) from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._done:
            self._give_up()

    def _open(self, facts: Facts, colour: Colour, form: str) -> None:
        stream, context = self._stream, self._stream.codec_context
        stream.width, stream.height, stream.pix_fmt = self.size.width, self.size.height, form
        context.time_base = facts.time_base
        context.flags |= Flags.frame_duration
        if facts.aspect:
            context.sample_aspect_ratio = facts.aspect
        context.colorspace, context.color_range = colour.matrix, colour.range
        context.color_primaries, context.color_trc = colour.primaries, colour.transfer

    def _describe(self, reader: VideoReader) -> None:
        """Titles, languages and chapters; who wrote the file is for its writer to say."""
        kept = {k: v for k, v in reader.container.metadata.items() if k.lower() not in _WRITERS}
        self._target.metadata.update(kept)
        self._stream.metadata.update(
            {k: v for k, v in reader.stream.metadata.items() if k.lower() not in _WRITERS}
        )
        self._stream.disposition = reader.stream.disposition
        if chapters := reader.container.chapters():
            self._target.set_chapters(chapters)

    def _start(self, codec: str) -> None:
        try:
            self._stream.codec_context.open()
        except av.FFmpegError as exc:
            raise BackendError(
                f"the encoder {codec} cannot be opened for {self.size}",
                found=_last_words(exc),
                hint="choose another --video-codec or --pixel-format",
            ) from exc
        try:
            self._target.start_encoding()
        except av.FFmpegError as exc:
            raise OutputError(
                f"{self.name} cannot be written as {self._target.format.name}",
                found=_last_words(exc),
                hint="write another container, such as .mkv",
            ) from exc

    def _failed(self, exc: av.FFmpegError) -> OutputError:
        if isinstance(exc, OSError) or exc.errno in range(1, 200):
            return output_error(self.name, OSError(exc.errno, exc.strerror))
        return OutputError(
            f"{self.name} could not be written",
            found=_last_words(exc),
            hint="try another container or --video-codec",
        )

    def _give_up(self) -> None:
        # the file is thrown away: that its end cannot be written does not matter
        with suppress(av.FFmpegError):
            self._target.close()


_OWN_ASPECT = ("h264", "hevc", "mpeg4", "mpeg2video")
"""Codecs whose stream itself says what shape its pixels have."""

_WRITERS = frozenset(
    (
        *("major_brand", "minor_version", "compatible_brands", "encoder", "duration"),
        *("bps", "number_of_frames", "number_of_bytes"),
    )
)


def _keeps_aspect(codec: Codec, container: str) -> bool:
    """Matroska and AVI could say it, but PyAV gives no way to tell them."""
    return container in ("mp4", "mov") or codec.canonical_name in _OWN_ASPECT


def _colour(source: Colour, rgb: bool, size: Size) -> Colour:
    """How the result is stored: as the source; RGB becomes what is usual for its size."""
    if rgb:
        return Colour(RGB, True, source.primaries, source.transfer)
    if source.matrix == RGB:
        return Colour(usual_matrix(size), False, source.primaries, source.transfer)
    return source


def _coloured(pixels: Array) -> Array:
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if pixels.shape[2] == 1 else pixels


def _padded(pixels: Array, size: Size) -> Array:
    below, right = size.height - pixels.shape[0], size.width - pixels.shape[1]
    if not (below or right):
        return pixels
    return np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")


def _last_words(exc: av.FFmpegError) -> str:
    said = exc.log[2].strip() if exc.log else ""  # type: ignore[misc]  # (level, name, text)
    return f"{exc.strerror}{f' ({said})' if said else ''}"
