"""What a caller chooses for a video, and what is told of it. Needs no PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pixelrt.geometry import Size


@dataclass(frozen=True)
class VideoOptions:
    """How a video is encoded.

    ``codec``: one of FFmpeg's video encoders: ``libx264``, ``libx265``, ``libsvtav1``,
    ``libvpx-vp9``, ``ffv1`` (lossless), ``h264_nvenc`` ... ``crf``: its constant quality,
    smaller is better (for NVENC its ``cq``); ``None`` takes ours for the encoder (libx264:
    18). ``pixel_format``: FFmpeg's name, or ``auto``: RGB for ``ffv1``, so that the network's
    result is stored unchanged, else 4:2:0, in as many bits as the source has if the encoder
    can. ``audio``: ``copy`` keeps all sound bit for bit, ``drop`` leaves it out.

    4:2:0 needs even sides. An odd side gets one more row or column, the last one repeated,
    because 4:4:4, which would need none, does not play in most browsers and TVs; with
    ``pixel_format="yuv444p"`` the size is exact.
    """

    codec: str = "libx264"
    crf: int | None = None
    pixel_format: str = "auto"
    audio: Literal["copy", "drop"] = "copy"


@dataclass(frozen=True)
class VideoResult:
    """What became of a video: ``frames`` of ``size`` each, made of frames of ``source_size``.

    ``notes``: what was left out, repaired or changed, for people.
    """

    frames: int
    source_size: Size
    size: Size
    notes: tuple[str, ...]
