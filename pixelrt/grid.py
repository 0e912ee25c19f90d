"""Extending images to a network's grid: on the right and at the bottom only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    return np.pad(
        images,
        ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)),
        mode=possible_mode(Size(*images.shape[1:3]), mode),
    )


def possible_mode(size: Size, mode: PadMode) -> PadMode:
    """``mode``, or ``symmetric`` where an image of ``size`` cannot be reflected.

    The only neighbour of a single row or column is itself.
    """
    return "symmetric" if mode == "reflect" and 1 in (size.height, size.width) else mode


@dataclass(frozen=True)
class Run:
    """``count`` neighbouring rows or columns from ``source`` on, repeated at ``target``."""

    source: int
    target: int
    count: int


def pad_runs(length: int, padded: int, mode: PadMode) -> Iterator[Run]:
    """How to extend one axis in place, from ``length`` to ``padded``, as ``numpy.pad`` does.

    Each run reads what is there by then and never overlaps what it writes. At most
    ``length`` runs of one mirrored row each, then runs that repeat a period, doubling:
    1 is the period of ``edge``, 2 * length that of ``symmetric``, 2 * length - 2 that of
    ``reflect``, which needs a length of at least 2.
    """
    assert length > (mode == "reflect"), "too short for the mode"
    period = {"edge": 1, "symmetric": 2 * length, "reflect": 2 * length - 2}[mode]
    origin = length - 1 if mode == "edge" else 0
    mirrored = length if mode == "symmetric" else length - 1
    for target in range(length, min(padded, origin + period)):
        yield Run(mirrored + length - 1 - target, target, 1)
    filled = max(length, origin + period)
    while filled < padded:
        count = min(padded, 2 * filled - origin) - filled
        yield Run(origin, filled, count)
        filled += count
