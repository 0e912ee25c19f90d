"""A tile plan through the stages of a flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from pixelrt.geometry import TilePlan
from pixelrt.runtime.device.stages import Array, TileFlow
from pixelrt.runtime.tiling import Progress, keep_core

Layout = Literal["NHWC", "NCHW"]


def _same(values: Array) -> Array:
    return values


@dataclass(frozen=True)
class Maps:
    """What happens to pixels on the host before and after the network, tile by tile.

    ``enter``: (H, W, C) of the image to the network's input values; ``leave``: (H', W', C')
    of the network to those of the result.
    """

    enter: Callable[[Array], Array] = _same
    leave: Callable[[Array], Array] = _same


def flow_plan(
    flow: TileFlow,
    images: Array,
    plan: TilePlan,
    out: Array,
    *,
    scale: int,
    maps: Maps | None = None,
    layout: Layout = "NHWC",
    progress: Progress | None = None,
) -> None:
    """Like ``tiling.run_plan``, through a flow for tiles of the plan's shape.

    ``images``: (B, H, W, C) of the plan's size; ``out``: (B, H', W', C'), at most ``scale``
    times the plan's size; what lies beyond is cropped. ``layout``: the network's own.
    """
    jobs = list(product(range(len(images)), plan))
    chosen = maps or Maps()
    first = layout == "NCHW"
    done = 0
    if progress:
        progress(0, len(jobs))

    def read(job: tuple[int, Any], target: Array) -> None:
        values = chosen.enter(images[job[0], *job[1].read.slices])
        (np.moveaxis(target, 0, 2) if first else target)[...] = values

    def keep(job: tuple[int, Any], values: Array) -> None:
        nonlocal done
        result = np.moveaxis(values, 0, 2) if first else values
        keep_core(job[1], chosen.leave(result), out[job[0]], scale)
        done += 1
        if progress:
            progress(done, len(jobs))

    flow.run(jobs, read, keep)
