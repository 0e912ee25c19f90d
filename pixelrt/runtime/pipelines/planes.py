"""How the channels of an image meet the channels of a network.

A super-resolution or restoration network sees every plane as a picture of its own: a grey
image stays grey, the three planes of a colour image go one by one through a grey network.
A translation network gives its own colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pixelrt.runtime.backends.base import Array
from pixelrt.spec import ImageSpec

Map = Callable[[Array], Array]


@dataclass(frozen=True)
class Route:
    """``image`` (B, H, W, channels_in) goes in; ``keep`` turns each result into what is kept.

    ``out`` (B, H', W', C') and ``result`` (H', W', C'') are views of one memory.
    """

    image: Array
    keep: Map
    out: Array
    result: Array


def route_planes(pixels: Array, spec: ImageSpec, height: int, width: int) -> Route:
    """Lay (H, W, C) out for a network; the result has ``height`` rows and ``width`` columns.

    C is 1 or 3. No pixels are copied except for the grey version that a grey translation
    network is given.
    """
    channels = pixels.shape[2]
    as_picture = spec.task != "translation" and spec.channels_in == spec.channels_out
    if as_picture and channels == 3 and spec.channels_in == 1:
        result = np.empty((height, width, 3), pixels.dtype)
        planes = np.moveaxis(pixels, 2, 0)[..., None]
        return Route(planes, _same, np.moveaxis(result, 2, 0)[..., None], result)
    image = _match(pixels, spec.channels_in)[None]
    grey = as_picture and channels == 1 and spec.channels_out == 3
    result = np.empty((height, width, 1 if grey else spec.channels_out), pixels.dtype)
    return Route(image, luma if grey else _same, result[None], result)


def luma(rgb: Array) -> Array:
    """(..., 3) to (..., 1): Y of ITU-R BT.601; integers as Pillow's ``convert("L")``."""
    if rgb.dtype.kind == "f":
        weights = np.array([0.299, 0.587, 0.114], rgb.dtype)
        return np.asarray(rgb @ weights)[..., None]
    wide = rgb.astype(np.uint64)
    total = wide[..., 0] * 19595 + wide[..., 1] * 38470 + wide[..., 2] * 7471 + 0x8000
    return (total >> 16).astype(rgb.dtype)[..., None]


def _match(pixels: Array, channels: int) -> Array:
    if pixels.shape[2] == channels:
        return pixels
    return luma(pixels) if channels == 1 else np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _same(values: Array) -> Array:
    return values
