"""Profiles: text, order, the network's grid, and the nearest one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelrt.errors import UsageError
from pixelrt.plans.profiles import (
    AxisRange,
    Profile,
    Shape,
    check_profiles,
    choose_profile,
    default_profile,
    nearest_profile,
    parse_profile,
    tensor_shape,
)
from pixelrt.spec import TensorSpec
from tests.bundles import image_spec

SIDES = st.integers(1, 4096)
AXES = st.lists(SIDES, min_size=3, max_size=3).map(lambda s: AxisRange(*sorted(s)))
PROFILES = st.builds(Profile, AXES, AXES, AXES)
SHAPES = st.builds(Shape, SIDES, SIDES, SIDES)


def test_text_forms() -> None:
    profile = parse_profile("64x64,256x256,512x768")
    assert profile.shapes == (Shape(1, 64, 64), Shape(1, 256, 256), Shape(1, 512, 768))
    assert not profile.static
    assert parse_profile("1x64x64, 2x256X256, 4x512x512").batch == AxisRange(1, 2, 4)
    assert parse_profile("256x128") == parse_profile("1x256x128").as_static()


@given(PROFILES)
def test_text_is_read_back(profile: Profile) -> None:
    assert parse_profile(str(profile)) == profile
    assert profile.as_static().static
    assert all(profile.holds(shape) for shape in profile.shapes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found: ''"),
        ("256", "found: '256'"),
        ("64x64,256x256", "2 shapes"),
        ("64x64,256x256,512x512,1x1", "4 shapes"),
        ("64x64,axb,512x512", "'axb'"),
        ("-1x64x64", "'-1x64x64'"),
        ("1x2x3x4", "'1x2x3x4'"),
        ("0x64", "minimum 0"),
        ("64x64,32x64,512x512", "minimum 64, optimum 32, maximum 512"),
        ("64x64,128x128,100x512", "optimum 128, maximum 100"),
    ],
)
def test_bad_text(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_profile(text)
    assert said in str(caught.value)
    assert "expected" in str(caught.value)


def test_the_grid_is_checked() -> None:
    spec = image_spec(multiple=8, minimum=16)
    check_profiles([parse_profile("16x16,64x64,128x128"), parse_profile("256x256")], spec)
    for text, found, use in (("60x64", "height 60", 64), ("64x8", "width 8", 16)):
        with pytest.raises(UsageError, match="multiples of 8, at least 16") as caught:
            check_profiles([parse_profile(text)], spec)
        assert found in str(caught.value)
        assert f"use {use}" in str(caught.value)
    with pytest.raises(UsageError, match="too large"):
        check_profiles([parse_profile("64x64,64x64,64x32768")], spec)
    with pytest.raises(UsageError, match="at least one"):
        check_profiles([], spec)


@given(
    st.integers(1, 64).flatmap(
        lambda m: st.tuples(st.just(m), st.integers(1, 8).map(lambda k: k * m))
    ),
    st.integers(1, 1024),
    st.integers(1, 8),
)
def test_the_default_fits_every_network(grid: tuple[int, int], tile: int, batch: int) -> None:
    spec = image_spec(multiple=grid[0], minimum=grid[1])
    profile = default_profile(spec, tile=tile, batch=batch)
    check_profiles([profile], spec)
    assert profile.height.optimum >= tile
    assert profile.height.minimum == grid[1]
    assert profile.batch == AxisRange(1, batch, batch)


@given(st.lists(PROFILES, min_size=1, max_size=4), SHAPES)
def test_the_nearest(profiles: list[Profile], shape: Shape) -> None:
    index, near = nearest_profile(profiles, shape)
    assert profiles[index].holds(near)
    holders = [i for i, profile in enumerate(profiles) if profile.holds(shape)]
    if holders:
        assert near == shape
        assert choose_profile(profiles, shape) in holders
    else:
        with pytest.raises(UsageError, match="outside every profile") as caught:
            choose_profile(profiles, shape)
        assert str(near) in str(caught.value)


def test_of_several_the_best_tuned() -> None:
    profiles = [parse_profile("64x64,512x512,512x512"), parse_profile("64x64,128x128,512x512")]
    assert choose_profile(profiles, Shape(1, 120, 120)) == 1
    assert choose_profile(profiles, Shape(1, 500, 500)) == 0


def test_as_dimensions() -> None:
    shape = Shape(2, 64, 32)
    assert tensor_shape(TensorSpec("x", "uint8", ("N", "H", "W", 3)), shape) == (2, 64, 32, 3)
    assert tensor_shape(TensorSpec("x", "float32", ("N", 1, "H", "W")), shape) == (2, 1, 64, 32)
    with pytest.raises(UsageError, match="no profile sets"):
        tensor_shape(TensorSpec("x", "float32", ("N", "T")), shape)
