"""Arrays as images: which ones are, and how their values meet those of a network."""

from __future__ import annotations

from typing import Any

import numpy as np

from pixelrt.errors import ImageError
from pixelrt.runtime.backends.base import Array
from pixelrt.runtime.device.flow_plan import Maps

PEAKS = {"uint8": 255, "uint16": 65535, "float32": 1}


def levels(dtype: np.dtype[Any]) -> Maps:
    """uint8 as it is; uint16 and float32 through the float graph, in their own range again."""
    if dtype == np.uint8:
        return Maps()
    peak = PEAKS[dtype.name]

    def leave(values: Array) -> Array:
        values = np.clip(values, 0, 1)
        return values if peak == 1 else np.rint(values * peak).astype(dtype)

    return Maps(lambda tiles: tiles.astype(np.float32) / np.float32(peak), leave)


def check_array(array: Array) -> Array:
    """(H, W, C) of a supported kind, or ``ImageError`` saying what was found."""
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise ImageError(
            "this array is no image",
            found=f"shape {array.shape}",
            expected="(H, W), (H, W, 1) or (H, W, 3), at least one pixel",
            hint="pass a PIL.Image to have transparency handled",
        )
    if pixels.dtype.name not in PEAKS:
        raise ImageError(
            "this array has an unsupported type",
            found=str(array.dtype),
            expected="uint8, uint16, or float32 in [0, 1]",
        )
    if pixels.dtype == np.float32:
        _check_range(pixels)
    return pixels


def _check_range(pixels: Array) -> None:
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1.0 and high <= 2.0):
        raise ImageError(
            "this float image is out of range",
            found="NaN" if np.isnan(low) else f"values from {low:g} to {high:g}",
            expected="float32 in [0, 1]",
            hint="divide by 255, or pass uint8",
        )
