"""Extending images to a network's grid: on the right and at the bottom only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.geometry import Size, on_grid
from pixelrt.spec import ImageSpec, PadMode


def grid_size(size: Size, spec: ImageSpec) -> Size:
    """The smallest size that the network takes and that holds ``size``."""
    return on_grid(size, spec.multiple, spec.minimum)


def library_size(size: Size, spec: ImageSpec) -> Size:
    """The size to which the original library pads: one step more than needed.

    transformers' Swin2SR processor adds ``(h // d + 1) * d - h`` rows, a full ``d`` where
    the height fits already (``image_processing_swin2sr.py``).
    """
    step = spec.library_divisor
    return Size((size.height // step + 1) * step, (size.width // step + 1) * step)


def pad_image(images: NDArray[Any], size: Size, mode: PadMode) -> NDArray[Any]:
    """Extend (N, H, W, C) to ``size``; the array itself where nothing is missing."""
    missing = size.height - images.shape[1], size.width - images.shape[2]
    if missing == (0, 0):
        return images
    # numpy cannot reflect a single row or column: its only neighbour is itself
    lone = 1 in images.shape[1:3] and mode == "reflect"
    return np.pad(
        images,
        ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)),
        mode="symmetric" if lone else mode,
    )
