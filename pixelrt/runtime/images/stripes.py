"""Pillow images <-> numpy arrays, a stripe at a time.

Pillow keeps RGB in four bytes per pixel and hands whole images over through extra copies.
Going by stripes converts colour, applies the orientation and fills the array in one pass,
so that the peak is Pillow's image plus the array and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Convert = Callable[[Image.Image], Image.Image]

_STRIPE_PIXELS = 1 << 20

_PLAIN = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"}
_WITH_ALPHA = {"L": "LA", "RGB": "RGBA"}

# How an upright array is seen in the order the file stores it, for EXIF orientations 1 to 8.
_AS_STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def plain_mode(image: Image.Image) -> str:
    """L, LA, RGB or RGBA: what an image is converted to without losing its colour or alpha."""
    mode = _PLAIN.get(image.mode, "RGB")
    return _WITH_ALPHA.get(mode, mode) if image.has_transparency_data else mode


def unpack(
    image: Image.Image, orientation: int = 1, convert: Convert | None = None
) -> tuple[Pixels, Pixels | None]:
    """(H, W, C) uint8 with C = 1 or 3, and (H, W) alpha or ``None``; upright, owned, writable.

    ``orientation`` (1 to 8) is applied. ``convert`` takes a stripe to L, LA, RGB or RGBA;
    without it Pillow's own conversion to ``plain_mode`` is used.
    """
    mode = plain_mode(image) if convert is None else "RGB"
    width, height = image.size if orientation < 5 else image.size[::-1]
    pixels = np.empty((height, width, 1 if mode in ("L", "LA") else 3), np.uint8)
    alpha = np.empty((height, width), np.uint8) if mode in ("LA", "RGBA") else None
    stored = _AS_STORED[orientation](pixels)
    stored_alpha = None if alpha is None else _AS_STORED[orientation](alpha)
    for top, stripe in _stripes(image):
        values = np.asarray(convert(stripe) if convert else stripe.convert(mode))
        values = values.reshape(*values.shape[:2], -1)
        stored[top : top + len(values)] = values[..., : pixels.shape[2]]
        if stored_alpha is not None:
            stored_alpha[top : top + len(values)] = values[..., -1]
    return pixels, alpha


def _stripes(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    width, height = image.size
    step = max(1, _STRIPE_PIXELS // width)
    for top in range(0, height, step):
        yield top, image.crop((0, top, width, min(height, top + step)))


def pack(pixels: Pixels, alpha: Pixels | None) -> Image.Image:
    """An image of mode L, LA, RGB or RGBA, without metadata. Arrays may be views."""
    height, width, channels = pixels.shape
    mode = ("L" if channels == 1 else "RGB") + ("A" if alpha is not None else "")
    image = Image.new(mode, (width, height))
    step = max(1, _STRIPE_PIXELS // width)
    for top in range(0, height, step):
        rows = pixels[top : top + step]
        if alpha is not None:
            rows = np.concatenate([rows, alpha[top : top + step, :, None]], axis=2)
        values = np.ascontiguousarray(rows[..., 0] if mode == "L" else rows)
        image.paste(Image.fromarray(values), (0, top))
    return image
