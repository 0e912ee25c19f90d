"""A video file -> its frames as RGB arrays, upright, with their times; and all other packets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pixelrt.errors import VideoError
from pixelrt.geometry import Size
from pixelrt.runtime.backends.base import Array
from pixelrt.runtime.video.colour import Colour, ToRGB, bits, colour_of
from pixelrt.runtime.video.formats import DEMUXERS
from pixelrt.runtime.video.times import Clock
from pixelrt.runtime.video.turn import UPRIGHT, side_data, turn_of
from pixelrt.runtime.video.whole import missing_bytes

MAX_PACKETS = 256
"""So many packets of sound are handed on at once where no frame comes between them."""

_HDR = (
    Type.MASTERING_DISPLAY_METADATA,
    Type.CONTENT_LIGHT_LEVEL,
    Type.DYNAMIC_HDR_PLUS,
    Type.DOVI_METADATA,
)
_USUAL_RATE = Fraction(25)


@dataclass(frozen=True)
class Facts:
    """What is the same for all frames of a video.

    ``size``: of the arrays: upright, resized if that was asked for. ``aspect``: width of a
    pixel over its height, ``None`` where the file does not say. ``frames``: how many there
    should be, 0 if that is not known.
    """

    size: Size
    depth: int
    colour: Colour
    aspect: Fraction | None
    rate: Fraction
    time_base: Fraction
    frames: int


@dataclass(frozen=True, eq=False)
class Step:
    """The packets of other streams that come before a frame, and the frame.

    ``pixels``: (H, W, 3), see ``ToRGB``; ``None`` where only packets are left. ``pts`` and
    ``duration`` are in the video's time base.
    """

    packets: tuple[Packet[Stream], ...]
    pixels: Array | None = None
    pts: int = 0
    duration: int = 0


class VideoReader:
    """An open video file; a context manager. Its first frame is decoded at once.

    Raises ``VideoError``: no such file, not a video, damaged or cut short, no video stream,
    no frame, no decoder, more than ``max_pixels`` in a frame. ``resize``: (width, height).
    """

    def __init__(
        self, path: Path, *, max_pixels: int, resize: tuple[int, int] | None = None
    ) -> None:
        self.path = path
        self.container = _open(path)
        try:
            self.stream = _video_stream(self.container, path)
            self._check_decoder(max_pixels)
            self.stream.thread_type = "AUTO"
            self._clock = Clock(self.container, self.stream)
            self._skipped = self._repaired = self._decoded = 0
            self._events = self._decode()
            self._early, first = self._find_first()
            self._coded = Size(first.height, first.width)
            self._turn = turn_of(first) or UPRIGHT
            self._resize = Size(resize[1], resize[0]) if resize else None
            if self._resize and self._turn.swaps_sides:  # it is resized before it is turned
                self._resize = self._resize.turned
            self._first_notes = _notes(first)
            self.facts = self._facts(first)
        except BaseException:
            self.container.close()
            raise

    def steps(self, depth: int, copied: frozenset[int]) -> Iterator[Step]:
        """All frames as arrays of ``depth`` bits, with the packets of the streams ``copied``.

        Raises ``VideoError`` where the file is damaged or the size of the frames changes.
        """
        to_rgb = ToRGB(self.facts.colour, depth, self._resize)
        packets: list[Packet[Stream]] = []
        for event in itertools.chain(self._early, self._events):
            if isinstance(event, VideoFrame):
                self._check_size(event)
                pixels = np.ascontiguousarray(self._turn(to_rgb(event)))
                yield Step(tuple(packets), pixels, *self._clock.of(event))
                packets = []
            elif event.stream.index in copied:
                packets.append(self._clock.shifted(event))
                if len(packets) == MAX_PACKETS:
                    yield Step(tuple(packets))
                    packets = []
        yield Step(tuple(packets))

    @property
    def notes(self) -> list[str]:
        """What is odd about the file, as far as it has been read."""
        notes = list(self._first_notes)
        if self._skipped:
            notes.append(f"{self._skipped} packets before the first key frame cannot be decoded")
        if self._repaired:
            notes.append(f"{self._repaired} frames are damaged; the decoder repaired them")
        return notes + self._clock.notes

    def close(self) -> None:
        self.container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_decoder(self, max_pixels: int) -> None:
        context = self.stream.codec_context
        if context is None:
            raise VideoError(
                f"{self.path} cannot be decoded",
                found="a video codec that this PyAV does not know",
                hint="convert the video with another program first",
            )
        pixels = context.width * context.height
        if pixels > max_pixels:
            raise VideoError(
                f"the frames of {self.path} are too large",
                found=f"{context.width}x{context.height} = {pixels / 1e6:,.1f} megapixels",
                expected=f"at most {max_pixels / 1e6:,.1f} megapixels",
                hint="if the file can be trusted, raise max_pixels",
            )

    def _decode(self) -> Iterator[Packet[Stream] | VideoFrame]:
        """Frames of the video and packets of the other streams, in the order of the file."""
        packets = self.container.demux()
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as exc:
                raise self._damaged(exc) from exc
            if packet is None:
                return
            if packet.stream.index == self.stream.index:
                yield from self._frames(packet)
            elif packet.size:
                yield packet

    def _frames(self, packet: Packet[Any]) -> Iterator[VideoFrame]:
        try:
            frames = packet.decode()
        except av.FFmpegError as exc:
            if self._decoded or not isinstance(exc, av.error.InvalidDataError):
                raise self._damaged(exc) from exc
            self._skipped += 1  # recordings may begin between two key frames
            return
        for frame in frames:
            self._decoded += 1
            self._repaired += frame.is_corrupt
            yield frame

    def _find_first(self) -> tuple[list[Packet[Stream] | VideoFrame], VideoFrame]:
        """The events up to the first frame, and that frame."""
        early: list[Packet[Stream] | VideoFrame] = []
        for event in self._events:
            early.append(event)
            if isinstance(event, VideoFrame):
                return early, event
        raise VideoError(
            f"{self.path} has no frame that can be decoded",
            found=f"{self._skipped} damaged packets" if self._skipped else "an empty video stream",
            hint="get the file again from where it came from",
        )

    def _facts(self, first: VideoFrame) -> Facts:
        stream, coded = self.stream, self._coded
        aspect = stream.sample_aspect_ratio or None
        size = self._resize or coded
        if self._resize and size.width * coded.height != size.height * coded.width:
            # the picture keeps its shape on the screen
            squeeze = Fraction(coded.width * size.height, coded.height * size.width)
            aspect = (aspect or Fraction(1)) * squeeze
        if self._turn.swaps_sides:
            size, aspect = size.turned, aspect and 1 / aspect
        rate = stream.average_rate or stream.guessed_rate or _USUAL_RATE
        return Facts(
            size=size,
            depth=bits(first.format),
            colour=colour_of(first, str(self.path)),
            aspect=aspect,
            rate=rate,
            time_base=self._clock.time_base,
            frames=stream.frames or round((self.container.duration or 0) / 10**6 * rate),
        )

    def _check_size(self, frame: VideoFrame) -> None:
        size = Size(frame.height, frame.width)
        if size != self._coded:
            raise VideoError(
                f"the frames of {self.path} change their size",
                found=f"{self._coded} at first, {size} {self._where()}",
                expected="one size",
                hint="split the video where the size changes",
            )

    def _damaged(self, exc: av.FFmpegError) -> VideoError:
        return VideoError(
            f"{self.path} is damaged {self._where()}",
            found=exc.strerror or str(exc),
            hint="get the file again, or repair it with another program first",
        )

    def _where(self) -> str:
        return f"after {self._clock.last_seconds:.3f} s"


def _open(path: Path) -> InputContainer:
    try:
        missing = missing_bytes(path)
        if not path.stat().st_size:
            raise VideoError(f"{path} is empty", expected="a video file")
    except OSError as exc:
        raise VideoError(f"{path} cannot be opened: {(exc.strerror or str(exc)).lower()}") from exc
    if missing:
        raise VideoError(
            f"{path} is cut short",
            found=f"{path.stat().st_size} bytes",
            expected=f"{missing} bytes more, as its header says",
            hint="get the file again from where it came from",
        )
    only_this = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    try:
        return av.open(str(path.absolute()), "r", container_options=only_this)
    except av.FFmpegError as exc:
        raise VideoError(
            f"{path} cannot be read as a video",
            found=_last_words(exc),
            expected="MP4, MOV, Matroska, WebM, AVI, MPEG-TS and the like, undamaged",
            hint="get the file again, or convert it with another program first",
        ) from exc


def _last_words(exc: av.FFmpegError) -> str:
    """FFmpeg's message, and what its demuxer said where PyAV kept that."""
    said = exc.log[2].strip() if exc.log else ""  # type: ignore[misc]  # (level, name, text)
    return f"{exc.strerror}{f' ({said})' if said else ''}"


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The first one that is no cover picture."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    others = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
    raise VideoError(f"{path} has no video stream", found=others, expected="a video")


def _notes(first: VideoFrame) -> list[str]:
    """What of the first frame is not kept, or not as it should be."""
    notes = []
    if turn_of(first) is None:
        notes.append("it is to be shown turned by an odd angle; that is left out")
    if any(component.is_alpha for component in first.format.components):
        notes.append("transparency is left out")
    if any(data.type in _HDR for data in side_data(first)):
        notes.append("HDR mastering metadata is left out; colour tags are kept")
    if first.interlaced_frame:
        notes.append("it is interlaced: deinterlace it first, networks see both fields as one")
    return notes
