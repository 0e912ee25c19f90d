"""Run a network over an image in tiles, such that the result equals the untiled one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.geometry import Region, Size, Tile, TilePlan

Array = NDArray[Any]

Infer = Callable[[Array], Array]
"""``(N, H, W, C)`` to ``(N, scale*H, scale*W, C')``."""

Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all), also once before the first tile."""

BATCH_PIXELS = 96 * 96
"""Small tiles share a call up to this many pixels; beyond it a batch only costs memory."""


def run_plan(
    infer: Infer,
    images: Array,
    plan: TilePlan,
    out: Array,
    *,
    scale: int,
    progress: Progress | None = None,
) -> None:
    """Fill ``out`` with the network's result for ``images``.

    ``images``: (B, H, W, C) of the plan's size. ``out``: (B, H', W', C') with H' and W' at
    most ``scale`` times the plan's size; what lies beyond is cropped. Each output pixel is
    written once, straight from the tile that owns it.
    """
    jobs = list(product(range(len(images)), plan))
    per_call = max(1, BATCH_PIXELS // plan.tile.pixels)
    if progress:
        progress(0, len(jobs))
    for start in range(0, len(jobs), per_call):
        group = jobs[start : start + per_call]
        reads = [images[index, *tile.read.slices] for index, tile in group]
        for (index, tile), values in zip(group, infer(np.stack(reads)), strict=True):
            keep_core(tile, values, out[index], scale)
        if progress:
            progress(start + len(group), len(jobs))


def keep_core(tile: Tile, values: Array, out: Array, scale: int) -> None:
    """Copy the core of a tile's result ``values`` (H, W, C) to its place in ``out``."""
    target, source = core_regions(tile, Size(*out.shape[:2]), scale)
    out[target.slices] = values[source.slices]


def core_regions(tile: Tile, out: Size, scale: int) -> tuple[Region, Region]:
    """Where a tile's core goes in an output of size ``out``, and where it is in the tile's result.

    Both are empty where all of it is cropped.
    """
    target = tile.core.scaled(scale).clipped(out)
    return target, target.relative_to(tile.read.scaled(scale))
