"""Small corrections to an EXIF block, made in place.

Pillow can parse and rebuild EXIF, but rebuilding moves everything, and camera makers'
notes hold offsets that break then. The orientation, the size and the link to the
thumbnail can be corrected without moving a byte.

An EXIF block is a TIFF file without an image (CIPA DC-008, TIFF 6.0): a header, then
directories (IFDs) of 12-byte entries: tag, type, count, value or its offset.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

ORIENTATION = 0x0112
EXIF_IFD = 0x8769
_WIDTHS = (0x0100, 0xA002)  # ImageWidth, PixelXDimension
_HEIGHTS = (0x0101, 0xA003)  # ImageLength, PixelYDimension
_SHORT, _LONG = 3, 4
_PREFIX = re.compile(rb"(Exif\x00\x00){1,2}")
_MAX_ENTRIES = 4096


class DamagedExifError(ValueError):
    """The block is no EXIF, or its directories do not lie within it."""


@dataclass(frozen=True)
class _Entry:
    at: int
    tag: int
    kind: int
    count: int


def without_prefix(block: bytes) -> bytes:
    """The block from its TIFF header on; JPEG puts ``Exif\\0\\0`` before it."""
    match = _PREFIX.match(block)
    return block[match.end() :] if match else block


def orientation(block: bytes) -> int | None:
    """The orientation, 1 to 8 (1 for a number without a meaning); ``None`` if it has none.

    Raises ``DamagedExifError``.
    """
    exif = _Block(block)
    for entry in exif.entries(exif.first):
        if entry.tag == ORIENTATION:
            value = exif.number(entry)
            return value if value in range(1, 9) else 1
    return None


def upright(block: bytes) -> bytes:
    """The block with orientation 1. Raises ``DamagedExifError``."""
    exif = _Block(block)
    for entry in exif.entries(exif.first):
        if entry.tag == ORIENTATION:
            exif.put_number(entry, 1)
    return bytes(exif.data)


def resized(block: bytes, width: int, height: int) -> bytes:
    """The block for a picture of another size: sizes corrected, thumbnail unlinked.

    Raises ``DamagedExifError``.
    """
    exif = _Block(block)
    for entry in list(exif.all_entries()):
        if entry.tag in _WIDTHS:
            exif.put_number(entry, width)
        elif entry.tag in _HEIGHTS:
            exif.put_number(entry, height)
    exif.unlink_thumbnail()
    return bytes(exif.data)


class _Block:
    def __init__(self, block: bytes) -> None:
        self.data = bytearray(without_prefix(block))
        orders = {b"II*\x00": "<", b"MM\x00*": ">"}
        self.order = orders.get(bytes(self.data[:4]), "")
        if not self.order:
            raise DamagedExifError("it does not start with a TIFF header")
        self.first = self._unpack("I", 4)

    def _unpack(self, code: str, at: int) -> int:
        try:
            return int(struct.unpack_from(self.order + code, self.data, at)[0])
        except struct.error as exc:
            raise DamagedExifError(
                f"a directory reaches beyond its {len(self.data)} bytes"
            ) from exc

    def entries(self, directory: int) -> Iterator[_Entry]:
        count = self._unpack("H", directory)
        if count > _MAX_ENTRIES:
            raise DamagedExifError(f"a directory claims {count} entries")
        self._unpack("I", directory + 2 + 12 * count - 4)  # the whole table is there
        for at in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(self.order + "HHI", self.data, at)
            yield _Entry(at, tag, kind, number)

    def all_entries(self) -> Iterator[_Entry]:
        for entry in self.entries(self.first):
            yield entry
            if entry.tag == EXIF_IFD:
                yield from self.entries(self.number(entry))

    def number(self, entry: _Entry) -> int:
        return self._unpack("H" if entry.kind == _SHORT else "I", entry.at + 8)

    def put_number(self, entry: _Entry, value: int) -> None:
        """As LONG: the four bytes are there whatever the type was."""
        struct.pack_into(self.order + "HII", self.data, entry.at + 2, _LONG, 1, value)

    def unlink_thumbnail(self) -> None:
        link = self.first + 2 + 12 * self._unpack("H", self.first)
        if link + 4 <= len(self.data):  # some writers leave the link out
            struct.pack_into("I", self.data, link, 0)
