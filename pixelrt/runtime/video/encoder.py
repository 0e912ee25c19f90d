"""Which encoder, pixel format and quality a video is written with."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction

import av
from av.codec import Codec
from av.container import OutputContainer
from av.video.format import VideoFormat
from av.video.stream import VideoStream

from pixelrt.errors import BackendError, OutputError, UsageError
from pixelrt.geometry import Size, round_up
from pixelrt.runtime.video.colour import bits
from pixelrt.runtime.video.options import VideoOptions

CRF = {"libx264": 18, "libx265": 20, "libsvtav1": 24, "libvpx-vp9": 24}
"""Visually close to lossless, about equal to each other; other encoders keep their default."""

_QUALITY = ("crf", "cq")
_WORST = {"libx264": 51, "libx265": 51}  # they give no limit themselves
_KNOWN = ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "ffv1", "prores_ks")
_KNOWN_HARDWARE = (
    "h264_nvenc",
    "hevc_nvenc",
    "av1_nvenc",
    "h264_videotoolbox",
    "hevc_videotoolbox",
)
_SUBSAMPLING = ("420", "422", "444")


def find_encoder(name: str) -> Codec:
    """A video encoder. Raises ``BackendError`` where this PyAV has none of that name."""
    with contextlib.suppress(av.codec.codec.UnknownCodecError):
        codec = Codec(name, "w")
        if codec.type == "video":
            return codec
    present = [known for known in (*_KNOWN, *_KNOWN_HARDWARE) if _exists(known)]
    raise BackendError(
        f"there is no video encoder {name} here",
        expected=f"one of {', '.join(present)}, or another of this FFmpeg",
        hint="name one with --video-codec",
    )


def pixel_format(codec: Codec, options: VideoOptions, depth: int, size: Size) -> VideoFormat:
    """What the encoder is given, for a source of ``depth`` bits; see ``VideoOptions``."""
    names = [form.name for form in codec.video_formats or ()]
    wanted = options.pixel_format
    if wanted == "auto":
        wanted = _choose(names, depth, lossless=codec.name == "ffv1")
    elif wanted not in names:
        raise UsageError(
            f"{codec.name} does not take the pixel format {wanted}", expected=", ".join(names)
        )
    return VideoFormat(wanted, size.width, size.height)


def encoded_size(form: VideoFormat, size: Size) -> Size:
    """``size``, with even sides where chroma is subsampled."""
    wide, high = (2 if shared else 1 for shared in _shares_chroma(form))
    return Size(round_up(size.height, high), round_up(size.width, wide))


def add_encoder(
    target: OutputContainer, codec: Codec, options: VideoOptions, rate: Fraction
) -> VideoStream:
    """A stream of ``target`` with its quality set, not yet opened.

    Raises ``OutputError`` where the container cannot hold the codec, ``UsageError`` for a
    ``crf`` that the encoder does not know.
    """
    if codec.name == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # it writes to the terminal otherwise
    try:
        stream = target.add_stream(codec.name, rate=rate)
    except ValueError as exc:
        raise OutputError(
            f"{target.format.name} cannot hold {codec.canonical_name} video",
            hint="write .mkv or .mp4, or choose another --video-codec",
        ) from exc
    assert isinstance(stream, VideoStream)
    stream.options.update(_quality(stream, codec, options.crf))
    if codec.name == "libx265":
        stream.options["x265-params"] = "log-level=error"
    if codec.canonical_name == "hevc" and target.format.name in ("mp4", "mov"):
        stream.codec_context.codec_tag = "hvc1"  # Apple's players take no other
    return stream


def _quality(stream: VideoStream, codec: Codec, crf: int | None) -> dict[str, str]:
    private = {option.name: option for option in stream.codec_context.supported_options.private}
    option = next((private[name] for name in _QUALITY if name in private), None)
    value = CRF.get(codec.name) if crf is None else crf
    if value is None:
        return {}
    worst = _WORST.get(codec.name, option.max if option else 0)
    if option is None or not 0 <= value <= worst:
        raise UsageError(
            f"{codec.name} takes no crf of {value}",
            expected=f"0 to {worst:g}" if option else "none at all",
            hint="leave --crf out, or choose another --video-codec",
        )
    more = {"b": "0"} if codec.name == "libvpx-vp9" else {}  # else crf is only an upper limit
    return {option.name: str(value), **more}


def _choose(names: list[str], depth: int, *, lossless: bool) -> str:
    if lossless:
        return "bgr0" if depth == 8 else f"gbrp{depth}le"
    for chroma in _SUBSAMPLING:
        depths = {
            bits(VideoFormat(name)): name
            for name in names
            if name == f"yuv{chroma}p" or name.startswith(f"yuv{chroma}p1")
        }
        if depths:
            return depths[max((d for d in depths if d <= depth), default=min(depths))]
    return names[0]


def _shares_chroma(form: VideoFormat) -> tuple[bool, bool]:
    """Whether two columns, two rows share their colour."""
    if form.is_rgb or len(form.components) < 3:
        return False, False
    return form.chroma_width(2) == 1, form.chroma_height(2) == 1


def _exists(name: str) -> bool:
    try:
        Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True
