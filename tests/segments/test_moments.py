"""Statistics that are gathered tile by tile are those of the whole picture."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrt.geometry import Size, plan_tiles
from pixelrt.segments.moments import Moments
from tests.segments.small import EPSILON, statistics


@settings(deadline=None, max_examples=50)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    tile=st.integers(1, 12),
    groups=st.sampled_from([1, 2, 4, 8]),
    centre=st.sampled_from([0.0, 3.0, -200.0]),
    seed=st.integers(0, 100),
)
def test_merged_moments_are_those_of_the_whole(
    height: int, width: int, tile: int, groups: int, centre: float, seed: int
) -> None:
    drawn = np.random.default_rng(seed).standard_normal((8, height, width))
    values = (centre + drawn * np.arange(1, 9)[:, None, None]).astype(np.float32)
    moments = Moments(8, groups)
    for one in plan_tiles(Size(height, width), Size(tile, tile), 0):
        moments.add(values[:, *one.core.slices])
        moments.add(values[:, :0])
    for found, wanted in zip(
        moments.per_channel(EPSILON), statistics(values[None], groups), strict=True
    ):
        assert found.shape == (1, 8, 1, 1)
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)
