"""Tiles and batches that an engine's profiles hold and that fit a memory budget. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import log

from pixelrt.errors import OutOfMemoryError, UsageError
from pixelrt.geometry import TILE_OVERHEAD, Size, TilePlan, split_axis, tile_lengths
from pixelrt.plans.profiles import AxisRange, Profile, Shape, choose_profile, nearest_profile
from pixelrt.runtime.tiling import BATCH_PIXELS

SLACK = 1.15
"""A tile may send so many times the fewest pixels through the network, if an engine is tuned
for it."""

Need = Callable[[Shape], int]
"""Bytes of device memory for a shape; grows with its pixels."""


@dataclass(frozen=True)
class Batch:
    """``size`` tiles a run; ``fixed``: always that many, the last run filled up."""

    size: int = 1
    fixed: bool = False


SINGLE = Batch()


@dataclass(frozen=True)
class DevicePlan:
    """How an image goes through a device: tiles, how many go together, on how many streams."""

    tiles: TilePlan
    batch: Batch = SINGLE
    streams: int = 1

    @property
    def shape(self) -> Shape:
        """What the network is given each time."""
        return Shape(self.batch.size, self.tiles.tile.height, self.tiles.tile.width)

    def __str__(self) -> str:
        together = f", {self.batch.size} together" if self.batch.size > 1 else ""
        return f"{self.tiles}{together}"


@dataclass(frozen=True)
class Task:
    """What is to be tiled: ``images`` of size ``image``, on the grid, with a halo."""

    image: Size
    halo: int
    grid: int
    images: int = 1


@dataclass(frozen=True)
class _Candidate:
    tile: Size
    count: int
    profile: Profile | None

    @property
    def cost(self) -> int:
        """Pixels that go through the network, and what each further tile costs."""
        extra = TILE_OVERHEAD * self.count if self.count > 1 else 0
        return self.count * self.tile.pixels + extra

    @property
    def detour(self) -> float:
        """How far from what the engine is tuned for; without profiles, smaller is better."""
        if self.profile is None:
            return float(self.tile.pixels)
        best = self.profile.shapes[1]
        return abs(log(self.tile.height / best.height)) + abs(log(self.tile.width / best.width))

    def shape(self, batch: int) -> Shape:
        return Shape(batch, self.tile.height, self.tile.width)

    def least(self) -> Shape:
        return self.shape(self.profile.batch.minimum if self.profile else 1)


def fit_batch(profiles: Sequence[Profile], wanted: Shape) -> Batch:
    """How ``wanted.batch`` images of that size are run; in one run if a profile allows it.

    Raises ``UsageError`` where no profile holds the size.
    """
    if not profiles:
        return Batch(wanted.batch)
    index, near = nearest_profile(profiles, wanted)
    if (near.height, near.width) != (wanted.height, wanted.width):
        choose_profile(profiles, wanted)
    return Batch(near.batch, fixed=profiles[index].batch.minimum > 1)


def fit_tile(task: Task, profiles: Sequence[Profile], need: Need, budget: int) -> Size:
    """The tile that some profile holds, that fits ``budget``, and that costs least.

    Among those that cost at most ``SLACK`` times as much, the one closest to an optimum.
    Raises ``UsageError`` where no profile holds any tile of the image, ``OutOfMemoryError``
    with what the smallest needs where none fits.
    """
    candidates = _candidates(task, profiles)
    if not candidates:
        raise no_profile(task, profiles)
    fitting = _within(candidates, need, budget)
    if not fitting:
        smallest = min(candidates, key=lambda one: one.tile.pixels)
        raise too_small(budget, need(smallest.least()), f"a tile of {smallest.tile}", task)
    best = min(one.cost for one in fitting)
    good = [one for one in fitting if one.cost <= SLACK * best]
    return min(good, key=lambda one: (one.detour, one.cost)).tile


def fit_count(shape: Shape, profiles: Sequence[Profile], need: Need, budget: int) -> Batch:
    """How many of ``shape.batch`` tiles go together: what a profile is tuned for, less where
    memory is short.

    Raises ``UsageError`` where no profile holds the size, ``OutOfMemoryError``.
    """
    one = Shape(1, shape.height, shape.width)
    if not profiles:
        several = max(1, BATCH_PIXELS // (shape.height * shape.width))
        axis, fixed = AxisRange(1, several, several), False
    else:
        index, near = nearest_profile(profiles, one)
        if (near.height, near.width) != (one.height, one.width):
            choose_profile(profiles, one)
        axis = profiles[index].batch
        fixed = axis.minimum > 1
    size = axis.nearest(min(axis.optimum, shape.batch))
    while need(Shape(size, shape.height, shape.width)) > budget:
        if size == axis.minimum:
            least = need(Shape(size, shape.height, shape.width))
            what = f"{size} of {Size(shape.height, shape.width)}"
            raise too_small(budget, least, what)
        size = max(axis.minimum, size // 2)
    return Batch(size, fixed)


def too_small(budget: int, least: int, what: str, task: Task | None = None) -> OutOfMemoryError:
    halo = f" (halo {task.halo})" if task else ""
    return OutOfMemoryError(
        "the device memory given is too small",
        found=f"{budget / 2**20:.0f} MiB to work in",
        expected=f"{least / 2**20:.0f} MiB for {what}{halo}",
        hint="close other programs that use the GPU, raise --max-memory, "
        "or lower the fidelity with --halo 60dB",
    )


def no_profile(task: Task, profiles: Sequence[Profile], tile: Size | None = None) -> UsageError:
    """No profile holds a tile of the image, or the one that was asked for."""
    image, side = task.image, 2 * task.halo + task.grid
    least = tile or Size(min(side, image.height), min(side, image.width))
    _, near = nearest_profile(profiles, Shape(1, least.height, least.width))
    top = Size(max(least.height, near.height), max(least.width, near.width))
    best = tile or Size(min(2 * side, image.height), min(2 * side, image.width))
    shapes = ",".join(
        f"{one.height}x{one.width}"
        for one in (least, best, Size(max(top.height, best.height), max(top.width, best.width)))
    )
    what = f"a tile of {tile}" if tile else f"an image of {image}, or a tile of it"
    return UsageError(
        f"the plan does not take {what}, halo {task.halo}",
        found=f"profiles {'; '.join(map(str, profiles))}",
        expected=f"the nearest shape is {near}",
        hint=f"build a plan that holds it: pixelrt build --shapes {shapes}; "
        "or run with another --backend, --tile or --halo",
    )


def _candidates(task: Task, profiles: Sequence[Profile]) -> list[_Candidate]:
    found: dict[tuple[Size, Profile | None], _Candidate] = {}
    choices: Sequence[Profile | None] = profiles or (None,)
    for profile in choices:
        heights = _lengths(task.image.height, task, profile.height if profile else None)
        widths = _lengths(task.image.width, task, profile.width if profile else None)
        for (height, rows), (width, columns) in product(heights, widths):
            tile = Size(height, width)
            found[tile, profile] = _Candidate(tile, rows * columns * task.images, profile)
    return list(found.values())


def _lengths(length: int, task: Task, axis: AxisRange | None) -> list[tuple[int, int]]:
    """Tile lengths of an axis within ``axis``, each with the number of tiles."""
    lengths = {tile for _, tile in tile_lengths(length, task.halo, task.grid)}
    if axis is not None:
        lengths |= set(_tuned(length, task, axis))
        lengths = {tile for tile in lengths if axis.minimum <= tile <= axis.maximum}
    return [(tile, len(split_axis(length, tile, task.halo))) for tile in sorted(lengths)]


def _tuned(length: int, task: Task, axis: AxisRange) -> Iterator[int]:
    for side in (axis.optimum, axis.maximum):
        tile = side - side % task.grid
        if 2 * task.halo < tile < length:
            yield tile


def _within(candidates: list[_Candidate], need: Need, budget: int) -> list[_Candidate]:
    """Those that fit; ``need`` is asked a few times a profile, since asking is slow."""
    fitting: list[_Candidate] = []
    for profile in {one.profile for one in candidates}:
        mine = sorted(
            (one for one in candidates if one.profile == profile), key=lambda one: one.tile.pixels
        )
        count = bisect_right(mine, budget, key=lambda one: need(one.least()))
        fitting += mine[:count]
    return fitting
