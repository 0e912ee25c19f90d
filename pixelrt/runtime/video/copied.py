"""Streams that go from one file to another as they are: sound, subtitles, data, covers, fonts."""

from __future__ import annotations

import io
from collections.abc import Iterator

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Discard, Disposition, Stream

from pixelrt.errors import OutputError

_MATROSKA = ("matroska", "webm")


def copyable(
    source: InputContainer, video: Stream, container: str, *, audio: bool
) -> tuple[list[Stream], list[str]]:
    """The streams beside ``video`` that ``container`` takes, and notes on the others.

    Raises ``OutputError`` where it takes no such sound: a video that lost its sound is of no
    use to most, so that has to be asked for (``audio``).
    """
    kept, notes = [], []
    for stream in source.streams:
        if stream.index == video.index or (stream.type == "audio" and not audio):
            continue
        if stream.discard == Discard.all:  # the titles of chapters in MP4: not read as packets
            continue
        reason = _refusal(stream, container)
        if not reason:
            kept.append(stream)
        elif stream.type == "audio":
            raise OutputError(
                f"{container} cannot hold the audio as it is",
                found=f"{_name(stream)}: {reason}",
                hint="write another container (.mkv takes any sound), or leave the sound out: "
                "--no-audio",
            )
        else:
            notes.append(f"{stream.type} stream {stream.index} ({_name(stream)}) is left out")
    return kept, notes


def add_copies(target: OutputContainer, streams: list[Stream]) -> dict[int, Stream]:
    """Streams of ``target`` for ``streams``, by their index in the source."""
    return {stream.index: _add(target, stream) for stream in streams}


def readdressed(
    packets: tuple[Packet[Stream], ...], streams: dict[int, Stream]
) -> Iterator[Packet[Stream]]:
    """Packets of the source as packets of the target."""
    for packet in packets:
        if packet.dts is None:
            packet.dts = packet.pts  # only video is stored out of order
        packet.stream = streams[packet.stream.index]
        yield packet


def _add(target: OutputContainer, stream: Stream) -> Stream:
    copy = target.add_stream_from_template(stream, opaque=True)
    copy.metadata.update(stream.metadata)
    copy.disposition = stream.disposition
    return copy


def _refusal(stream: Stream, container: str) -> str:
    """Why a container does not take a stream; empty where it does.

    Asked by writing the head of a file of that stream alone into memory, since the list of
    codecs that a container knows says less than its writer does.
    """
    if stream.type == "attachment" and container not in _MATROSKA:
        return "only Matroska holds attachments"
    if stream.type == "video" and not stream.disposition & Disposition.attached_pic:
        return "one video stream is kept"
    try:
        with av.open(io.BytesIO(), "w", format=container) as scratch:
            _add(scratch, stream)
            scratch.start_encoding()
    except (av.FFmpegError, ValueError) as exc:
        return str(exc)
    return ""


def _name(stream: Stream) -> str:
    name: str | None = getattr(stream.codec_context, "name", None)  # there may be no context
    return name or stream.metadata.get("filename", "of an unknown kind")
