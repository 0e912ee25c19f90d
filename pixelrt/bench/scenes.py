"""A photograph of any size to measure on, always the same."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelrt.geometry import Size
from pixelrt.runtime.images.encode import write_picture
from pixelrt.runtime.images.read import Picture, read_picture

PHOTO = "astronaut.png"
QUALITY = 95


def scene(size: Size, source: Path | None = None) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 (or the source's channels): the shipped photograph, or ``source``.

    Reduced where it is larger. Where it is smaller it is laid side by side, mirrored, so
    that detail and noise stay those of a photograph instead of an enlarged one.
    """
    with resources.as_file(resources.files("pixelrt") / "data" / "photos" / PHOTO) as shipped:
        pixels = read_picture(source or shipped).pixels
    height, width = pixels.shape[:2]
    factor = max(size.height / height, size.width / width)
    if factor < 1:
        fitted = max(size.width, round(width * factor)), max(size.height, round(height * factor))
        pixels = _resized(pixels, fitted)
    return mirrored(pixels, size)


def mirrored(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """``pixels`` repeated as by two mirrors, cut to ``size``."""
    more = size.height - pixels.shape[0], size.width - pixels.shape[1]
    padded = np.pad(pixels, ((0, max(0, more[0])), (0, max(0, more[1])), (0, 0)), "symmetric")
    return np.ascontiguousarray(padded[: size.height, : size.width])


def write_scene(path: Path, pixels: NDArray[np.uint8]) -> None:
    """As photographs come: JPEG, quality 95, 4:4:4."""
    write_picture(path, Picture(pixels), quality=QUALITY)


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    high = np.asarray(Image.fromarray(flat).resize(size, Image.Resampling.LANCZOS))
    return high.reshape(*high.shape[:2], pixels.shape[2])
