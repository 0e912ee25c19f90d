"""How a segment is cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass

from pixelrt.errors import OutOfMemoryError
from pixelrt.geometry import Size, TilePlan, choose_tile, plan_tiles
from pixelrt.segments.layout import Step


@dataclass(frozen=True)
class Tiling:
    """``memory``: bytes for one run of a segment. ``side``: of a tile in pixels of the picture,
    with its halo; ``None`` for the cheapest tile that the memory allows. ``waiting``: bytes of the
    host for the values that wait, as many as ``memory`` where left out; those beyond it go to
    temporary files."""

    memory: int
    side: int | None = None
    waiting: int | None = None


def plan_step(step: Step, picture: Size, tiling: Tiling) -> TilePlan:
    """Tiles of a segment in its units. ``picture``: the size that ``side`` counts in.

    A side that is too small for the halo becomes the smallest that is not; where something is
    read whole, a tile takes far more than its side tells, and is cut to the memory. Raises
    ``OutOfMemoryError`` where not even the smallest tile fits into that.
    """
    halo = max(step.segment.halo.values())
    smallest = 2 * halo + 1
    if tiling.side is not None:
        length = max(smallest, tiling.side * step.units.height // picture.height)
        if not step.whole or step.memory * length**2 <= tiling.memory:
            return plan_tiles(step.units, Size(length, length), halo)
    tile = choose_tile(step.units, halo, 1, tiling.memory // step.memory)
    if tile is None:
        raise OutOfMemoryError(
            f"the memory given is too small for one tile of {step.segment.graph.file}",
            found=f"{tiling.memory / 2**20:.1f} MiB for each tile",
            expected=f"{step.memory * smallest**2 / 2**20:.1f} MiB",
            hint="raise --max-memory",
        )
    return plan_tiles(step.units, tile, halo)
