"""Which files are videos, and which containers can be written. Needs no PyAV."""

from __future__ import annotations

from pathlib import Path

from pixelrt.errors import UsageError

CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".mts": "mpegts",
}
"""File name suffix, in lower case -> the container that is written."""

FALLBACK_SUFFIX = ".mkv"
"""For results beside a video whose container is read but not written; it holds any sound."""

SUFFIXES = frozenset(CONTAINERS) | frozenset(
    (".3gp", ".asf", ".flv", ".ivf", ".mpeg", ".mpg", ".mxf", ".ogv", ".vob", ".wmv", ".y4m")
)
"""Suffixes of video files, in lower case."""

DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mxf,ivf,yuv4mpegpipe,nut,dv,h264,hevc,obu"
"""Containers that are read (FFmpeg's names). Playlists, which name other files and addresses,
are not among them, whatever a file is called."""

_STARTS = (
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (0, b"FLV\x01"),
    (0, b"OggS"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"YUV4MPEG2"),
    (0, b"DKIF"),
)
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*", b"GIF8")
_PICTURE_BRANDS = (b"heic", b"heix", b"mif1", b"avif", b"avis")


def is_video(path: Path) -> bool:
    """Whether a file is a video by its first bytes, or by its suffix where they tell nothing.

    A file that cannot be opened goes by its suffix; whoever reads it says what is wrong.
    """
    try:
        with path.open("rb") as file:
            head = file.read(189)
    except OSError:
        head = b""
    if head.startswith(_PICTURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return False
    if head[4:8] == b"ftyp":
        return head[8:12] not in _PICTURE_BRANDS
    if any(head[at:].startswith(magic) for at, magic in _STARTS):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return True
    if head[:1] == head[188:189] == b"\x47":  # MPEG transport stream: packets of 188 bytes
        return True
    return path.suffix.lower() in SUFFIXES


def container_of(path: Path) -> str:
    """The container that ``path`` names. Raises ``UsageError`` for a suffix that names none."""
    try:
        return CONTAINERS[path.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"{path} does not say which video container to write",
            expected=f"a name that ends in one of {', '.join(CONTAINERS)}",
        ) from None
