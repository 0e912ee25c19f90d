"""Image files and bytes -> arrays: 8-bit PNG, JPEG, WebP, TIFF and BMP.

A picture is either read whole or refused with an ``ImageError``; what was left out of its
metadata is said in ``Picture.notes``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from pixelrt.errors import ImageError, PixelrtError
from pixelrt.runtime.images import sniff, stripes
from pixelrt.runtime.images.metadata import Metadata, colour_kind, profile_fits, read_metadata
from pixelrt.runtime.images.pillow_guard import guarded

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""File name suffix, in lower case -> format."""

MAX_PIXELS = 500_000_000

_LOW_GREY_SCALE = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image.

    ``pixels``: (H, W, C) uint8, C = 1 (grey) or 3 (RGB), upright, 0 to 255, in the colour
    space of ``metadata.icc_profile`` (sRGB where there is none). ``alpha``: (H, W) uint8,
    not premultiplied, or ``None``. ``format``: PNG, JPEG, WEBP, TIFF, BMP, or empty for an
    image that was made in memory. ``notes``: what was left out or converted, for people.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None
    format: str = ""
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
            raise ImageError(
                "these are not the pixels of a picture",
                found=f"{dtype} {shape}",
                expected="uint8 (H, W, 1) or (H, W, 3), not empty",
            )
        if self.alpha is not None and (
            self.alpha.dtype != np.uint8 or self.alpha.shape != shape[:2]
        ):
            raise ImageError(
                "the alpha plane does not fit the pixels",
                found=f"{self.alpha.dtype} {self.alpha.shape}",
                expected=f"uint8 {shape[:2]}",
            )


def read_picture(source: Path | BinaryIO | bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode one image from a file, a binary stream (from where it stands) or bytes.

    Raises ``ImageError``: missing, empty, damaged or cut-short files, other formats, more
    than 8 bits per channel, several pages or frames, or more than ``max_pixels`` (known from
    the header, before anything of that size is allocated). JPEG, TIFF and BMP carry no
    checksums: bytes that were altered inside the pixel data cannot be noticed there.
    """
    with _opened(source) as (file, name), _decoding(name) as warnings:
        head = file.read(30)
        kind = sniff.identify(head, name)
        if kind == "WEBP":
            _check_size(sniff.webp_size(head), max_pixels, name)
        if kind == "PNG":
            _verify_png(file, max_pixels, name)
        if kind == "JPEG":
            file = _without_padding(file)
        notes: list[str] = []
        image = _open(file, kind, name)
        _check_header(image, head, max_pixels, name)
        _count_pages(image, name, notes)
        picture = _decode(image, notes)
        return replace(picture, format=kind, notes=tuple(notes + warnings))


def picture_from_pil(image: Image.Image) -> Picture:
    """The current frame of a Pillow image; the image is loaded, otherwise not changed.

    Raises ``ImageError`` for modes of more than 8 bits and for files that fail to decode.
    """
    with _decoding("the Pillow image") as warnings:
        sniff.check_depth(image, "the Pillow image")
        if 0 in image.size:
            raise ImageError("the Pillow image is empty", found=f"size {image.size}")
        notes: list[str] = []
        picture = _decode(image, notes)
        return replace(picture, format=image.format or "", notes=tuple(notes + warnings))


def picture_to_pil(picture: Picture) -> Image.Image:
    """A Pillow image of mode L, LA, RGB or RGBA with the metadata in its ``info``."""
    image = stripes.pack(picture.pixels, picture.alpha)
    metadata = picture.metadata
    image.info.update(metadata.text)
    exif = b"Exif\0\0" + metadata.exif if metadata.exif else None
    named = {
        "icc_profile": metadata.icc_profile,
        "exif": exif,
        "xmp": metadata.xmp,
        "dpi": metadata.dpi,
        "comment": metadata.comment,
    }
    image.info.update({key: value for key, value in named.items() if value})
    return image


# --- opening --------------------------------------------------------------------------


@contextmanager
def _opened(source: Path | BinaryIO | bytes) -> Iterator[tuple[BinaryIO, str]]:
    """A seekable file and what to call it in messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source), "the image given as bytes"
    elif isinstance(source, str | Path):
        with _open_path(Path(source)) as file:
            yield file, str(source)
    else:
        data = source.read()
        if not isinstance(data, bytes):
            raise ImageError("the stream is not binary", found=f"it gives {type(data).__name__}")
        yield io.BytesIO(data), str(getattr(source, "name", "the image stream"))


def _open_path(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (OSError, ValueError) as exc:
        if path.is_dir():
            raise ImageError(f"{path} is a folder", expected="an image file") from exc
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ImageError(f"{path} cannot be opened: {reason.lower()}") from exc


@contextmanager
def _decoding(name: str) -> Iterator[list[str]]:
    """Whatever a decoder throws at a damaged file becomes an ``ImageError``."""
    with guarded() as warnings:
        try:
            yield warnings
        except PixelrtError:
            raise
        except MemoryError as exc:
            raise ImageError(f"{name} does not fit into memory") from exc
        except Exception as exc:
            raise ImageError(
                f"{name} cannot be read: it is damaged or cut short",
                found=str(exc) or type(exc).__name__,
                hint="get the file again from where it came from",
            ) from exc


def _open(file: BinaryIO, kind: str, name: str) -> Image.Image:
    try:
        return Image.open(file, formats=[kind])
    except UnidentifiedImageError as exc:
        raise sniff.explain(file, kind, name) from exc


def _verify_png(file: BinaryIO, max_pixels: int, name: str) -> None:
    """Check every chunk's checksum up to the end, which decoding alone does not."""
    image = _open(file, "PNG", name)
    _check_size(image.size, max_pixels, name)
    image.verify()


def _without_padding(file: BinaryIO) -> BinaryIO:
    """A JPEG without trailing zeros, which broken downloads are filled up with: the decoder
    would take them for grey pixels, but notices a file that simply ends."""
    file.seek(-1, io.SEEK_END)
    if file.read(1) != b"\0":
        return file
    file.seek(0)
    return io.BytesIO(file.read().rstrip(b"\0"))


def _check_header(image: Image.Image, head: bytes, max_pixels: int, name: str) -> None:
    _check_size(image.size, max_pixels, name)
    sniff.check_depth(image, name)
    sniff.check_no_raw(image, head, name)


def _check_size(size: tuple[int, int] | None, max_pixels: int, name: str) -> None:
    if size is not None and size[0] * size[1] > max_pixels:
        raise ImageError(
            f"{name} is too large",
            found=f"{size[0]}x{size[1]} = {size[0] * size[1] / 1e6:,.1f} megapixels",
            expected=f"at most {max_pixels / 1e6:,.1f} megapixels",
            hint="if the file can be trusted, raise max_pixels",
        )


def _count_pages(image: Image.Image, name: str, notes: list[str]) -> None:
    count = int(getattr(image, "n_frames", 1))
    if count == 1:
        return
    if image.format == "MPO":  # phones and 3D cameras: the first one is the photograph
        notes.append(f"{count - 1} further pictures (previews, gain maps) in the JPEG are not kept")
        return
    what = "pages" if image.format == "TIFF" else "frames"
    raise ImageError(
        f"{name} holds {count} {what}",
        expected="one image per file",
        hint=f"split it into single {what} first",
    )


# --- decoding -------------------------------------------------------------------------


def _decode(image: Image.Image, notes: list[str]) -> Picture:
    _scale_low_grey_transparency(image)
    image.load()
    metadata, turn = read_metadata(image, notes)
    profile = metadata.icc_profile
    convert = None
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        convert, profile = _to_rgb(image, profile, notes)
    pixels, alpha = stripes.unpack(image, turn, convert)
    if profile and not profile_fits(profile, pixels.shape[2]):
        notes.append(f"the {colour_kind(profile)} colour profile does not fit and was left out")
        profile = None
    return Picture(pixels, alpha, "", replace(metadata, icc_profile=profile))


def _scale_low_grey_transparency(image: Image.Image) -> None:
    """Pillow scales 2- and 4-bit grey to 8 bits but not the transparent level of tRNS."""
    tiles = getattr(image, "tile", ())
    scale = _LOW_GREY_SCALE.get(str(tiles[0][3])) if tiles else None
    if scale and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= scale


def _to_rgb(
    image: Image.Image, profile: bytes | None, notes: list[str]
) -> tuple[stripes.Convert, bytes | None]:
    """How a stripe of CMYK, YCbCr or Lab becomes RGB, and the profile that RGB then has."""
    notes.append(f"{image.mode} was converted to RGB")
    if image.mode == "CMYK" and profile and colour_kind(profile) == "CMYK":
        transform = _cmyk_transform(profile, notes)
        if transform is not None:
            return lambda stripe: ImageCms.applyTransform(stripe, transform), None  # type: ignore[return-value]
    keeps = image.mode == "YCbCr"  # merely RGB in another notation
    return lambda stripe: stripe.convert("RGB"), profile if keeps else None


def _cmyk_transform(profile: bytes, notes: list[str]) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(source, target, "CMYK", "RGB")
    except (ImageCms.PyCMSError, OSError) as exc:
        notes.append(f"the CMYK profile cannot be used ({exc}); colours are approximate")
        return None
