"""Sizes, regions and tile plans: integers only, standard library only.

Coordinates are (row, column), origin at the top left, in input pixels unless scaled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

TILE_OVERHEAD = 1024
"""Cost of one more tile, in pixels: calls and cropping are not free."""


@dataclass(frozen=True)
class Size:
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def scaled(self, factor: int) -> Size:
        return Size(self.height * factor, self.width * factor)

    @property
    def turned(self) -> Size:
        """Rows and columns in each other's place."""
        return Size(self.width, self.height)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Region:
    """Rows ``top <= r < bottom`` and columns ``left <= c < right``."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> Size:
        return Size(self.bottom - self.top, self.right - self.left)

    def scaled(self, factor: int) -> Region:
        return Region(
            self.top * factor, self.left * factor, self.bottom * factor, self.right * factor
        )

    def relative_to(self, outer: Region) -> Region:
        """The same region in coordinates whose origin is the corner of ``outer``."""
        return Region(
            self.top - outer.top,
            self.left - outer.left,
            self.bottom - outer.top,
            self.right - outer.left,
        )

    def clipped(self, size: Size) -> Region:
        """The part inside ``(0, 0, height, width)``; may be empty."""
        bottom, right = min(self.bottom, size.height), min(self.right, size.width)
        return Region(min(self.top, bottom), min(self.left, right), bottom, right)

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True)
class Tile:
    """``read`` goes through the network; ``core`` is the part of it that is kept."""

    read: Region
    core: Region


@dataclass(frozen=True)
class TilePlan:
    """Tiles of one shape whose cores cover ``image`` exactly once.

    ``image`` is already on the network's grid. ``halo`` is what was used, 0 when untiled.
    """

    image: Size
    tile: Size
    halo: int
    rows: tuple[tuple[int, int, int], ...]
    columns: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Tile]:
        height, width = self.tile.height, self.tile.width
        for (top, r0, r1), (left, c0, c1) in product(self.rows, self.columns):
            yield Tile(Region(top, left, top + height, left + width), Region(r0, c0, r1, c1))

    def __str__(self) -> str:
        if len(self) == 1:
            return f"{self.image} at once"
        return (
            f"{self.image} in {len(self.columns)}x{len(self.rows)} tiles of {self.tile}, "
            f"halo {self.halo}, {self.work:.2f} times the work"
        )

    @property
    def work(self) -> float:
        """Pixels that go through the network, per pixel of the image."""
        return len(self) * self.tile.pixels / self.image.pixels


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def on_grid(size: Size, multiple: int, minimum: int) -> Size:
    """The smallest size on the grid that holds ``size``; each side at least ``minimum``."""
    return Size(
        max(minimum, round_up(size.height, multiple)),
        max(minimum, round_up(size.width, multiple)),
    )


def split_axis(length: int, tile: int, halo: int) -> tuple[tuple[int, int, int], ...]:
    """Cut one axis into windows ``(start, core_start, core_end)`` of length ``tile``.

    Cores cover ``0 <= x < length`` once. Each cut side has at least ``halo`` pixels beyond
    its core; windows snap inwards at the true ends, which stay ends of a window, so that
    the network's own padding acts there. All starts are multiples of whatever divides
    ``length``, ``tile`` and ``halo``. Raises ``ValueError`` where the tile holds no core.
    """
    if tile >= length:
        return ((0, 0, length),)
    if tile <= 2 * halo:
        raise ValueError(f"a tile of {tile} holds nothing between two halos of {halo}")
    windows = []
    core = 0
    while core < length:
        start = min(max(core - halo, 0), length - tile)
        end = length if start + tile == length else start + tile - halo
        windows.append((start, core, end))
        core = end
    return tuple(windows)


def plan_tiles(image: Size, tile: Size, halo: int) -> TilePlan:
    """Cover ``image`` with tiles of ``tile`` (clipped to the image on each axis)."""
    shape = Size(min(tile.height, image.height), min(tile.width, image.width))
    rows = split_axis(image.height, shape.height, halo)
    columns = split_axis(image.width, shape.width, halo)
    untiled = len(rows) == len(columns) == 1
    return TilePlan(image, shape, 0 if untiled else halo, rows, columns)


def tile_lengths(length: int, halo: int, grid: int) -> Iterator[tuple[int, int]]:
    """For 1, 2, 3 ... tiles along an axis: ``(count, shortest tile)``, longest first.

    Solves count*tile - 2*halo*(count - 1) >= length. Ends where the core would be
    shorter than one grid step.
    """
    yield 1, length
    shortest = 2 * halo + grid
    previous = length
    for count in range(2, length // grid + 2):
        tile = max(round_up(-(-(length + 2 * halo * (count - 1)) // count), grid), shortest)
        if tile < previous:
            yield count, tile
            previous = tile
        if tile == shortest:
            return


def choose_tile(
    image: Size, halo: int, grid: int, max_pixels: int, *, slack: float = 1.05
) -> Size | None:
    """The tile for an image on the grid, or ``None`` if no tile has at most ``max_pixels``.

    Of all tilings within ``max_pixels``, the one that sends the fewest pixels through the
    network sets the mark; the smallest tile that costs at most ``slack`` times as much is
    taken, since memory is worth more than the last few per cent.
    """
    candidates = []
    widths = list(tile_lengths(image.width, halo, grid))
    for rows, height in tile_lengths(image.height, halo, grid):
        for columns, width in widths:
            if height * width <= max_pixels:
                tiles = rows * columns
                extra = TILE_OVERHEAD * tiles if tiles > 1 else 0
                candidates.append((tiles * height * width + extra, Size(height, width)))
    if not candidates:
        return None
    best = min(cost for cost, _ in candidates)
    affordable = [size for cost, size in candidates if cost <= slack * best]
    return min(affordable, key=lambda size: (size.pixels, abs(size.height - size.width)))
