"""What a picture carries besides pixels: read from Pillow, kept honest about losses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image, ImageFile, TiffImagePlugin

from pixelrt.runtime.images import exif as exif_block


@dataclass(frozen=True)
class Metadata:
    """``icc_profile`` fits the pixels' colour kind. ``exif`` starts at its TIFF header (no
    ``Exif\\0\\0``) and has orientation 1, as has ``xmp``. ``dpi`` is (horizontal, vertical).
    ``text`` holds a PNG's text chunks (values may be ``PIL.PngImagePlugin.iTXt``),
    ``comment`` a JPEG's.
    """

    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    comment: bytes | None = None


DESCRIPTIVE = (
    {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C}  # description ... host computer
    | {0x4746, 0x4749, 0x8298, 0x8769, 0x8825}  # rating, copyright, Exif and GPS directories
    | set(range(0x9C9B, 0x9CA0))  # Windows' title, comment, author, keywords, subject
)
"""TIFF tags that describe the picture; all others describe how a file stores it."""

_XMP_TURN = re.compile(rb"""(tiff:Orientation(?:=["']|>))([0-9])""")
_RAW_EXIF = "Raw profile type exif"
_X_RESOLUTION, _IPTC_TAG, _PHOTOSHOP_TAG = 0x011A, 0x83BB, 0x8649


def read_metadata(image: Image.Image, notes: list[str]) -> tuple[Metadata, int]:
    """The metadata of a loaded image, and the orientation (1 to 8) its pixels still need.

    What cannot be kept is said in ``notes``.
    """
    xmp = _xmp(image)
    exif, turn = _exif(image, notes)
    if turn is None:
        turn = _xmp_turn(xmp)
    _note_losses(image, notes)
    metadata = Metadata(
        icc_profile=_icc(image, notes),
        exif=exif,
        xmp=upright_xmp(xmp) if xmp else None,
        dpi=_dpi(image),
        text=_text(image),
        comment=_as_bytes(image.info.get("comment")),
    )
    return metadata, turn


def colour_kind(icc_profile: bytes) -> str:
    """``RGB``, ``GRAY``, ``CMYK``, ``Lab`` ...: the colour space an ICC profile is for
    (ICC.1:2022, 7.2.6); empty if it is no profile."""
    if len(icc_profile) < 132 or icc_profile[36:40] != b"acsp":
        return ""
    return icc_profile[16:20].decode("ascii", "replace").strip()


def profile_fits(icc_profile: bytes, channels: int) -> bool:
    return colour_kind(icc_profile) == {1: "GRAY", 3: "RGB"}.get(channels)


def _icc(image: Image.Image, notes: list[str]) -> bytes | None:
    """A well-formed profile of any colour kind; the pixels decide later if it fits."""
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and colour_kind(profile):
        return profile
    if "icc_profile" in image.info:
        notes.append("the colour profile is damaged and was left out")
    return None


def _exif(image: Image.Image, notes: list[str]) -> tuple[bytes | None, int | None]:
    """The EXIF block, upright, and the orientation it gave (``None`` if it has no say)."""
    try:
        block = _exif_bytes(image)
        if not block:
            return None, None
        return exif_block.upright(block), exif_block.orientation(block)
    except Exception as exc:  # noqa: BLE001 (Pillow fails in many ways on damaged EXIF)
        notes.append(f"the EXIF data is damaged and was left out: {exc}")
        return None, None


def _exif_bytes(image: Image.Image) -> bytes:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        kept = descriptive(image.getexif())
        return exif_block.without_prefix(kept.tobytes()) if kept else b""
    block = image.info.get("exif")
    if block is None and _RAW_EXIF in image.info:  # ImageMagick's way before PNG had eXIf
        block = bytes.fromhex("".join(str(image.info[_RAW_EXIF]).split("\n")[3:]))
    if block is None:  # only an image made in memory can have some elsewhere
        in_memory = not isinstance(image, ImageFile.ImageFile) and bool(image.getexif())
        return image.getexif().tobytes() if in_memory else b""
    return exif_block.without_prefix(_as_bytes(block) or b"")


def descriptive(exif: Image.Exif) -> Image.Exif:
    """A copy with the descriptive tags only; empty if there are none."""
    kept = Image.Exif()
    for tag in DESCRIPTIVE & set(exif):
        kept[tag] = exif.get_ifd(tag) if tag in (0x8769, 0x8825) else exif[tag]
    return kept


def _xmp(image: Image.Image) -> bytes | None:
    xmp = image.info.get("xmp", image.info.get("XML:com.adobe.xmp"))
    return _as_bytes(xmp) or None


def upright_xmp(xmp: bytes) -> bytes:
    """The XMP packet with orientation 1 where it gives one; its length stays."""
    return _XMP_TURN.sub(rb"\g<1>1", xmp)


def _xmp_turn(xmp: bytes | None) -> int:
    match = _XMP_TURN.search(xmp) if xmp else None
    turn = int(match[2]) if match else 1
    return turn if turn in range(1, 9) else 1


def _as_bytes(value: object) -> bytes | None:
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else None


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _X_RESOLUTION not in image.tag_v2:
        return None  # Pillow invents 1 dpi
    try:
        x, y = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if all(math.isfinite(v) and v > 0 for v in (x, y)) else None


def _text(image: Image.Image) -> dict[str, str]:
    """A PNG's text chunks without those that hold EXIF, XMP or profiles in disguise."""
    text = getattr(image, "text", {}) if image.format == "PNG" else {}
    hidden = ("XML:com.adobe.xmp", "Raw profile type ")
    return {key: value for key, value in text.items() if not key.startswith(hidden)}


def _note_losses(image: Image.Image, notes: list[str]) -> None:
    info = image.info
    tags = getattr(image, "tag_v2", {})
    if "photoshop" in info or _IPTC_TAG in tags or _PHOTOSHOP_TAG in tags:
        notes.append("Photoshop and IPTC data is not kept")
    disguised = [k for k in info if str(k).startswith("Raw profile type ") and k != _RAW_EXIF]
    notes.extend(f"PNG text chunk {key!r} is not kept" for key in disguised)
    gamma = info.get("gamma")
    if gamma and "srgb" not in info and not info.get("icc_profile") and abs(gamma - 1 / 2.2) > 0.01:
        notes.append(f"the PNG's gamma of {gamma:.5f} is not kept; the colours may look different")
