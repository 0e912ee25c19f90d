"""The pure core: tiles cover each pixel once, halos hold, plans fit their budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelrt.geometry import (
    Region,
    Size,
    choose_tile,
    on_grid,
    plan_tiles,
    round_up,
    split_axis,
    tile_lengths,
)


@given(
    grid=st.sampled_from([1, 4, 7, 8]),
    cells=st.integers(1, 60),
    tile_cells=st.integers(1, 70),
    halo_cells=st.integers(0, 6),
)
def test_split_axis_covers_once_with_full_halos(
    grid: int, cells: int, tile_cells: int, halo_cells: int
) -> None:
    length, tile, halo = cells * grid, tile_cells * grid, halo_cells * grid
    if tile < length and tile <= 2 * halo:
        with pytest.raises(ValueError, match="holds nothing"):
            split_axis(length, tile, halo)
        return
    windows = split_axis(length, tile, halo)
    covered = [x for _, start, end in windows for x in range(start, end)]
    assert covered == list(range(length))
    for start, core_start, core_end in windows:
        end = start + min(tile, length)
        assert start % grid == 0
        assert 0 <= start <= core_start < core_end <= end <= length
        assert start == 0 or core_start - start >= halo
        assert end == length or end - core_end >= halo


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    tile=st.integers(3, 20),
    halo=st.integers(0, 1),
)
def test_plan_cores_cover_each_pixel_once(height: int, width: int, tile: int, halo: int) -> None:
    plan = plan_tiles(Size(height, width), Size(tile, tile), halo)
    seen = np.zeros((height, width), dtype=int)
    for one in plan:
        seen[one.core.slices] += 1
        inner = one.core.relative_to(one.read)
        assert inner.top >= 0
        assert inner.left >= 0
        assert one.read.size == plan.tile
    assert (seen == 1).all()
    assert len(list(plan)) == len(plan)


@given(
    cells=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    grid=st.sampled_from([1, 4, 8]),
    halo_cells=st.integers(0, 12),
    budget=st.integers(1, 10**6),
)
def test_chosen_tile_is_within_budget_and_valid(
    cells: tuple[int, int], grid: int, halo_cells: int, budget: int
) -> None:
    image, halo = Size(cells[0] * grid, cells[1] * grid), halo_cells * grid
    tile = choose_tile(image, halo, grid, budget)
    if tile is None:
        shortest = 2 * halo + grid
        assert min(image.height, shortest) * min(image.width, shortest) > budget
        return
    assert tile.pixels <= budget
    assert tile.height % grid == tile.width % grid == 0
    plan = plan_tiles(image, tile, halo)
    assert plan.image == image


def test_chosen_tile_costs_little_more_than_the_best() -> None:
    image = Size(3000, 4000)
    tile = choose_tile(image, 40, 1, 2_000_000)
    assert tile is not None
    best = min(
        plan_tiles(image, Size(h, w), 40).work
        for _, h in tile_lengths(3000, 40, 1)
        for _, w in tile_lengths(4000, 40, 1)
        if h * w <= 2_000_000
    )
    assert plan_tiles(image, tile, 40).work <= 1.2 * best


def test_whole_image_is_one_tile_when_it_fits() -> None:
    plan = plan_tiles(Size(64, 64), Size(128, 128), 160)
    assert len(plan) == 1
    assert plan.halo == 0
    assert next(iter(plan)).core == Region(0, 0, 64, 64)


@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([1, 4, 7, 8, 256]))
def test_grid_is_the_smallest_that_holds(height: int, width: int, multiple: int) -> None:
    size = on_grid(Size(height, width), multiple, multiple)
    assert size.height % multiple == size.width % multiple == 0
    assert 0 <= size.height - height < multiple
    assert 0 <= size.width - width < multiple
    assert round_up(height, multiple) == size.height


def test_clipping_never_inverts() -> None:
    assert Region(8, 8, 16, 16).clipped(Size(4, 12)) == Region(4, 8, 4, 12)


def test_tiles_cost_little_more_than_the_best_ones_that_fit() -> None:
    """SRGAN's halo of 40 on 12 megapixels, with tiles of at most 0.8 megapixels."""
    image, most = Size(3000, 4000), 800_000
    tile = choose_tile(image, 40, 1, most)
    assert tile is not None
    work = plan_tiles(image, tile, 40).work
    assert work <= 1.25
    best = choose_tile(image, 40, 1, most, slack=1.0)
    assert best is not None
    assert work <= 1.06 * plan_tiles(image, best, 40).work
