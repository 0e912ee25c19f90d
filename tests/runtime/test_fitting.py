"""Tiles and batches within profiles and budgets: pure, property-tested."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrt.errors import OutOfMemoryError, UsageError
from pixelrt.geometry import Size, plan_tiles
from pixelrt.plans.profiles import Profile, Shape, parse_profile
from pixelrt.runtime.device.fitting import Batch, Task, fit_batch, fit_count, fit_tile, no_profile

LARGE = 1 << 60


def pixels(shape: Shape) -> int:
    return 10 * shape.batch * shape.height * shape.width


@st.composite
def profiles(draw: st.DrawFn) -> tuple[Profile, ...]:
    def side() -> tuple[int, int, int]:
        low, mid, high = sorted(8 * draw(st.integers(1, 40)) for _ in range(3))
        return low, mid, high

    found = []
    for _ in range(draw(st.integers(1, 3))):
        heights, widths = side(), side()
        batches = sorted(draw(st.integers(1, 6)) for _ in range(3))
        shapes = zip(batches, heights, widths, strict=True)
        found.append(parse_profile(",".join(f"{n}x{h}x{w}" for n, h, w in shapes)))
    return tuple(found)


TASKS = st.builds(
    Task,
    st.builds(
        Size, st.integers(1, 90).map(lambda n: 8 * n), st.integers(1, 90).map(lambda n: 8 * n)
    ),
    st.sampled_from([0, 8, 16, 40]),
    st.just(8),
    st.integers(1, 3),
)


@given(TASKS, profiles(), st.integers(0, 4_000_000))
@settings(deadline=None, max_examples=300)
def test_a_tile_is_held_by_a_profile_fits_and_covers_the_image(
    task: Task, several: tuple[Profile, ...], budget: int
) -> None:
    try:
        tile = fit_tile(task, several, pixels, budget)
    except UsageError:
        assert not any_tile(task, several)
        return
    except OutOfMemoryError as exc:
        assert "MiB" in exc.expected  # noqa: PT017
        assert "MiB" in exc.found  # noqa: PT017
        return
    held = [one for one in several if holds(one, tile)]
    assert held
    assert min(pixels(Shape(one.batch.minimum, tile.height, tile.width)) for one in held) <= budget
    plan = plan_tiles(task.image, tile, task.halo)
    assert plan.tile == tile, "no tile is clipped to a size that the profile may not hold"
    assert all(one.read.size == tile for one in plan)
    assert all(one.read.top % 8 == one.read.left % 8 == 0 for one in plan)


def holds(profile: Profile, tile: Size) -> bool:
    return profile.holds(Shape(profile.batch.minimum, tile.height, tile.width))


def any_tile(task: Task, several: tuple[Profile, ...]) -> bool:
    """By trying every tile that the grid allows."""
    sides = range(8, 721, 8)

    def axis(length: int, low: int, high: int) -> bool:
        return any(
            low <= side <= high and (side == length or 2 * task.halo + task.grid <= side < length)
            for side in sides
        )

    return any(
        axis(task.image.height, one.height.minimum, one.height.maximum)
        and axis(task.image.width, one.width.minimum, one.width.maximum)
        for one in several
    )


def test_the_optimum_is_preferred_where_it_costs_little_more() -> None:
    several = (parse_profile("64x64,256x256,512x512"),)
    assert fit_tile(Task(Size(1024, 1024), 0, 8), several, pixels, LARGE) == Size(256, 256)
    # with a halo of 64 a tile of 256 does four times the work of one of 512
    assert fit_tile(Task(Size(4096, 4096), 64, 8), several, pixels, LARGE).height > 400
    assert fit_tile(Task(Size(256, 320), 0, 8), several, pixels, LARGE) == Size(256, 320)


def test_a_static_profile_gives_its_tile_and_says_what_it_cannot_hold() -> None:
    several = (parse_profile("256x256"),)
    assert fit_tile(Task(Size(300, 1000), 8, 4), several, pixels, LARGE) == Size(256, 256)
    with pytest.raises(UsageError) as caught:
        fit_tile(Task(Size(100, 1000), 8, 4), several, pixels, LARGE)
    text = str(caught.value)
    assert "profiles 1x256x256" in text
    assert "the nearest shape is 1x256x256" in text
    assert "pixelrt build --shapes 20x20,40x40," in text
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="halo 200"):
        fit_tile(Task(Size(2000, 1000), 200, 4), several, pixels, LARGE)


@given(TASKS, profiles())
@settings(deadline=None, max_examples=200)
def test_the_shapes_that_are_proposed_would_do(task: Task, several: tuple[Profile, ...]) -> None:
    hint = no_profile(task, several).hint
    proposed = parse_profile(hint.partition("--shapes ")[2].partition(";")[0])
    assert fit_tile(task, (proposed,), pixels, LARGE)


def test_memory_decides_between_profiles() -> None:
    several = (parse_profile("512x512"), parse_profile("64x64,128x128,256x256"))
    task = Task(Size(2048, 2048), 32, 8)
    assert fit_tile(task, several, pixels, LARGE) == Size(512, 512)
    assert fit_tile(task, several, pixels, 10 * 300 * 300).height <= 256
    with pytest.raises(OutOfMemoryError, match="too small") as caught:
        fit_tile(task, several, pixels, 1000)
    assert "72x72 (halo 32)" in caught.value.expected


@given(profiles(), st.integers(1, 12), st.integers(0, 3_000_000))
@settings(deadline=None)
def test_a_batch_is_held_and_fits(several: tuple[Profile, ...], count: int, budget: int) -> None:
    best = several[0].shapes[1]
    wanted = Shape(count, best.height, best.width)
    whole = fit_batch(several, wanted)
    assert any(one.holds(Shape(whole.size, best.height, best.width)) for one in several)
    try:
        batch = fit_count(wanted, several, pixels, budget)
    except OutOfMemoryError:
        return
    assert pixels(Shape(batch.size, best.height, best.width)) <= budget
    assert any(one.holds(Shape(batch.size, best.height, best.width)) for one in several)
    if batch.size > count:
        assert batch.fixed


def test_batches() -> None:
    several = (parse_profile("1x8x8,4x8x8,8x8x8"),)
    assert fit_count(Shape(100, 8, 8), several, pixels, LARGE) == Batch(4)
    assert fit_count(Shape(3, 8, 8), several, pixels, LARGE) == Batch(3)
    assert fit_count(Shape(100, 8, 8), several, pixels, 10 * 64 * 2) == Batch(2)
    assert fit_count(Shape(1, 8, 8), (parse_profile("4x8x8"),), pixels, LARGE) == Batch(4, True)
    assert fit_count(Shape(9, 8, 8), (), pixels, LARGE) == Batch(9), "small tiles go together"
    assert fit_count(Shape(9, 96, 97), (), pixels, LARGE) == Batch(1)
    with pytest.raises(UsageError, match="outside every profile"):
        fit_batch(several, Shape(1, 9, 8))
    assert fit_batch((), Shape(5, 8, 8)) == Batch(5)
