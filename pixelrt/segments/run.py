"""A network in segments over one picture after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.geometry import Size, Tile, TilePlan
from pixelrt.manifest import Network, Segment
from pixelrt.segments.layout import Step, inputs_of, layout
from pixelrt.segments.moments import Moments
from pixelrt.segments.store import Store
from pixelrt.segments.tiles import Tiling, plan_step

Values = NDArray[np.float32]
Feeds = Mapping[str, NDArray[Any]]
Opener = Callable[[Segment], AbstractContextManager[Callable[[Feeds], Values]]]
"""Opens a segment for the time that it is run; what it gives runs it once, all of its inputs by
name to its output."""


def run_segments(
    network: Network,
    pixels: Values,
    opener: Opener,
    tiling: Tiling,
    progress: Callable[[int, int], None] | None = None,
) -> Values:
    """The network's output for its only input ``pixels`` (B, C, H, W) float32.

    One segment is open at a time. Each output pixel is written once, by the tile that owns it.
    ``progress`` is called with the tiles done and the tiles in all, of all segments and pictures,
    also once before the first. Raises as ``layout`` and ``plan_step`` do.
    """
    steps = layout(network, Size(*pixels.shape[2:]))
    result = np.empty(
        (len(pixels), steps[-1].channels, steps[-1].size.height, steps[-1].size.width), np.float32
    )
    picture = Size(*max(pixels.shape[2:], result.shape[2:]))
    plans = [plan_step(step, picture, tiling) for step in steps]
    total, numbers = len(pixels) * sum(map(len, plans)), count()

    def told() -> None:
        if progress is not None:
            progress(next(numbers), total)

    limit = tiling.memory if tiling.waiting is None else tiling.waiting
    told()
    for one, out in zip(pixels, result, strict=True):
        _Picture(network, steps, one, out, told).run(opener, plans, Store(limit))
    return result


class _Picture:
    """The values of one picture, (C, H, W) by name, and the moments of those that are normed.
    ``told``: called after every tile."""

    def __init__(
        self,
        network: Network,
        steps: tuple[Step, ...],
        pixels: Values,
        out: Values,
        told: Callable[[], None],
    ) -> None:
        self._steps = steps
        self._out = out
        self._told = told
        self._values = {network.component.graphs[0].inputs[0].name: pixels}
        self._norms = {s.norm.value: s.norm.groups for s in network.segments if s.norm}
        self._moments: dict[str, Moments] = {}

    def run(self, opener: Opener, plans: Sequence[TilePlan], store: Store) -> None:
        for number, (step, plan) in enumerate(zip(self._steps, plans, strict=True)):
            target = self._target(step, store, last=number + 1 == len(self._steps))
            moments = None
            if step.output in self._norms:
                moments = Moments(step.channels, self._norms[step.output])
                self._moments[step.output] = moments
            with opener(step.segment) as infer:
                self._run_tiles(step, plan, infer, target, moments)
            for name in step.done:
                freed = self._values.pop(name)
                if name != step.place:
                    store.release(freed)
            self._values[step.output] = target

    def _target(self, step: Step, store: Store, *, last: bool) -> Values:
        if last:
            return self._out
        if step.place:
            return self._values[step.place]
        return store.take((step.channels, step.size.height, step.size.width))

    def _run_tiles(
        self,
        step: Step,
        plan: TilePlan,
        infer: Callable[[Feeds], Values],
        target: Values,
        moments: Moments | None,
    ) -> None:
        segment = step.segment
        fixed = self._fixed(segment)
        scale = segment.pixels[1]
        for tile in plan:
            (found,) = infer({**fixed, **self._read(segment, tile)})
            core = tile.core.relative_to(tile.read).scaled(scale)
            own = found[:, *core.slices]
            target[: step.channels, *tile.core.scaled(scale).slices] = own
            if moments is not None:
                moments.add(own)
            self._told()

    def _fixed(self, segment: Segment) -> dict[str, Values]:
        """What is the same for all tiles."""
        channels = _channels(segment)
        whole = [name for name in inputs_of(segment) if name not in segment.halo]
        fixed = {
            name: np.ascontiguousarray(self._values[name][: channels[name]])[None] for name in whole
        }
        if segment.norm:
            moments = self._moments[segment.norm.value]
            mean, inverse = (spec.name for spec in segment.graph.inputs[-2:])
            fixed[mean], fixed[inverse] = moments.per_channel(segment.norm.epsilon)
        return fixed

    def _read(self, segment: Segment, tile: Tile) -> dict[str, Values]:
        region = tile.read.scaled(segment.pixels[0]).slices
        channels = _channels(segment)
        return {
            name: np.ascontiguousarray(self._values[name][: channels[name], *region])[None]
            for name in segment.halo
        }


def _channels(segment: Segment) -> dict[str, int]:
    """Of the inputs. A value may lie in memory for more of them, see ``Step.place``."""
    return {spec.name: int(spec.shape[1]) for spec in segment.graph.inputs}
