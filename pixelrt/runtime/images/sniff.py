"""What a file is, from its first bytes, and what its header says about its samples."""

from __future__ import annotations

import struct
from typing import BinaryIO

from PIL import (  # noqa: F401 (importing a plugin registers its format)
    BmpImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pixelrt.errors import ImageError

SUPPORTED = "PNG, JPEG, WebP, TIFF and BMP"

EIGHT_BIT_HINT = (
    "convert the file to 8 bits per channel, or read it yourself and pass the array "
    "(uint16 is accepted) to the Python API"
)

_OURS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"BM", "BMP"),
)

_OTHERS = (
    (0, b"GIF8", "a GIF image"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"\x00\x00\x00\x0cjP", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\x00\x00\x00\x0cJXL", "a JPEG XL image"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"FUJIFILMCCD-RAW", "a camera raw file"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"<!DOCTYPE", "an HTML or XML page"),
    (0, b"<!doctype", "an HTML or XML page"),
    (0, b"<html", "an HTML page"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML or SVG file"),
    (4, b"ftypheic", "an HEIC image"),
    (4, b"ftypheix", "an HEIC image"),
    (4, b"ftypmif1", "an HEIF image"),
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftyp", "a video"),
)

_BITS, _SAMPLE_FORMAT, _SUBFILE, _DNG = 258, 339, 254, 50706


def identify(head: bytes, name: str) -> str:
    """The format of a file that starts with ``head`` (30 bytes are enough).

    Raises ``ImageError`` for anything that is not one of the supported formats, naming
    what it is where that can be told.
    """
    for magic, kind in _OURS:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if not head:
        raise ImageError(f"{name} is empty", expected=f"an image: {SUPPORTED}")
    found = next((what for at, magic, what in _OTHERS if head[at:].startswith(magic)), "")
    found = found or ("text" if _is_text(head) else f"unknown bytes {head[:8].hex(' ')}")
    hint = "convert it to one of these formats" if "image" in found else ""
    raise ImageError(
        f"{name} cannot be read as an image", found=found, expected=SUPPORTED, hint=hint
    )


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\r\n\x0c" or 32 <= byte < 127 or byte > 159 for byte in head)


def webp_size(head: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP file's canvas, from its first 30 bytes; ``None`` if unknown.

    Opening a WebP already allocates the canvas, so this has to be known before.
    (RFC 9649, sections 2.5 to 2.7)
    """
    kind = head[12:16]
    if len(head) < 30:
        return None
    if kind == b"VP8X":
        width, height = head[24:27] + b"\0", head[27:30] + b"\0"
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width_height = struct.unpack_from("<HH", head, 26)
        return width_height[0] & 0x3FFF, width_height[1] & 0x3FFF
    return None


def check_depth(image: Image.Image, name: str) -> None:
    """Raise ``ImageError`` unless the samples have at most 8 bits. Call before loading:
    Pillow opens 48-bit PNGs as RGB and drops the low bytes without a word."""
    bits, kind = _depth(image)
    if bits > 8:
        raise too_deep(name, f"{bits}-bit {kind}samples ({image.format}, mode {image.mode})")


def too_deep(name: str, found: str) -> ImageError:
    return ImageError(
        f"{name} has more than 8 bits per channel, which is not supported for files yet",
        found=found,
        expected="8 bits per channel",
        hint=EIGHT_BIT_HINT,
    )


def _depth(image: Image.Image) -> tuple[int, str]:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return tiff_depth(image.tag_v2)
    tiles = getattr(image, "tile", ())
    if image.mode.startswith("I;16") or any(";16" in str(t[3]) for t in tiles):
        # BMP packs three colours into "BGR;16": that is 5 or 6 bits each.
        return (8, "") if image.format in ("BMP", "DIB") else (16, "integer ")
    return {"I": (32, "integer "), "F": (32, "floating-point ")}.get(image.mode, (8, ""))


def tiff_depth(tags: TiffImagePlugin.ImageFileDirectory_v2) -> tuple[int, str]:
    """Bits per sample and the kind of number, from TIFF tags."""
    kinds = {1: "integer ", 2: "signed integer ", 3: "floating-point ", 5: "complex "}
    form = max(_numbers(tags.get(_SAMPLE_FORMAT, 1)), default=1)
    return max(_numbers(tags.get(_BITS, 1)), default=1), kinds.get(form, "")


def _numbers(value: object) -> tuple[int, ...]:
    values = value if isinstance(value, tuple) else (value,)
    return tuple(v for v in values if isinstance(v, int))


def check_no_raw(image: Image.Image, head: bytes, name: str) -> None:
    """Camera raw files are TIFFs whose first page is a small preview: refuse those."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    reduced = any(number & 1 for number in _numbers(tags.get(_SUBFILE, 0)))
    if _DNG in tags or head[8:10] == b"CR" or reduced:
        raise ImageError(
            f"{name} is a camera raw file or starts with a preview",
            found="a TIFF whose first image is not the picture itself",
            expected=SUPPORTED,
            hint="develop it with a raw converter first",
        )


def explain(file: BinaryIO, kind: str, name: str) -> ImageError:
    """The error for a file of a known format that Pillow could not open."""
    reason = _reason(file, kind)
    if kind == "TIFF":
        depth = _tiff_file_depth(file)
        if depth and depth[0] > 8:
            return too_deep(name, f"{depth[0]}-bit {depth[1]}samples (TIFF)")
    if "-bit layers" in reason:
        return too_deep(name, f"{kind}: {reason}")
    return ImageError(
        f"{name} cannot be read as an image",
        found=f"it starts like a {kind} file, but: {reason}",
        hint="the file may be cut short or damaged; open it in an image editor and save it anew",
    )


def _reason(file: BinaryIO, kind: str) -> str:
    """Pillow's own words, which ``Image.open`` swallows."""
    file.seek(0)
    try:
        Image.OPEN[kind][0](file, "")
    except Exception as exc:  # noqa: BLE001 (any kind; only its text is wanted)
        text = str(exc) or type(exc).__name__
        return "its size or colour kind is unusable" if "not identified by" in text else text
    return "unknown"


def _tiff_file_depth(file: BinaryIO) -> tuple[int, str] | None:
    file.seek(0)
    header = file.read(16)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(header if header[2] == 43 else header[:8])
        file.seek(tags.next)
        tags.load(file)
        return tiff_depth(tags)
    except Exception:  # noqa: BLE001 (broken in any way: then the depth is not the point)
        return None
