"""Whether a video file is as long as its own header says.

Demuxers stop at the end of a file without a word, so a download that broke off would give a
shorter video after hours of work. ISO base media files (MP4, MOV; ISO/IEC 14496-12), Matroska
(RFC 9559, RFC 8794) and AVI state the length of their parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"uuid", b"moof", b"sidx", b"styp")
_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"


def missing_bytes(path: Path) -> int:
    """Bytes that the file says it has beyond its end; 0 where it says nothing."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _BOXES:
            end = _end_of_boxes(file, length)
        elif head[:4] == _EBML:
            end = _end_of_segment(file)
        elif head[:4] == b"RIFF":
            end = 8 + int.from_bytes(head[4:8], "little")
        else:
            return 0
    return max(0, end - length)


def _end_of_boxes(file: BinaryIO, length: int) -> int:
    """Where the last top-level box ends. A size of 0 reaches to the end, 1 has 64 bits more.

    What follows them in no known box (cameras add trailers of their own) is not looked at.
    """
    at = 0
    while at + 8 <= length:
        file.seek(at)
        head = file.read(16)
        size = int.from_bytes(head[:4])
        if size == 1:
            size = int.from_bytes(head[8:16])
        if size < 8 or head[4:8] not in _BOXES:
            return length
        at += size
    return at


def _end_of_segment(file: BinaryIO) -> int:
    """Where the segment ends; 0 where its size is unknown (live recordings) or not found."""
    file.seek(len(_EBML))
    header = _read_size(file)
    if header is None:
        return 0
    file.seek(header, 1)
    if file.read(len(_SEGMENT)) != _SEGMENT:
        return 0
    size = _read_size(file)
    return 0 if size is None else file.tell() + size


def _read_size(file: BinaryIO) -> int | None:
    """An EBML variable-length size; ``None`` for the reserved value that means unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + file.read(extra))
    return None if value == (1 << 7 * (extra + 1)) - 1 else value
