"""Tiles of a network with a known reach give exactly what the whole image gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrt.geometry import Size, plan_tiles
from pixelrt.runtime.tiling import run_plan

REACH = 3


def blur_and_double(images: Any) -> Any:
    """Sum over a (2*REACH+1) square with zeros outside, then each pixel four times."""
    padded = np.pad(images.astype(np.int64), ((0, 0), (REACH, REACH), (REACH, REACH), (0, 0)))
    height, width = images.shape[1:3]
    total = sum(
        padded[:, y : y + height, x : x + width]
        for y in range(2 * REACH + 1)
        for x in range(2 * REACH + 1)
    )
    return np.asarray(total).repeat(2, axis=1).repeat(2, axis=2)


@settings(deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    tile=st.tuples(st.integers(2 * REACH + 1, 30), st.integers(2 * REACH + 1, 30)),
    batch=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_tiled_equals_untiled(
    height: int, width: int, tile: tuple[int, int], batch: int, seed: int
) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3))
    out = np.full((batch, 2 * height, 2 * width, 3), -1)
    run_plan(
        blur_and_double, images, plan_tiles(Size(height, width), Size(*tile), REACH), out, scale=2
    )
    np.testing.assert_array_equal(out, blur_and_double(images))


def test_a_halo_too_small_is_seen() -> None:
    """The equality above is no accident of the test's network."""
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3))
    out = np.zeros((1, 80, 80, 3), np.int64)
    run_plan(
        blur_and_double, images, plan_tiles(Size(40, 40), Size(16, 16), REACH - 1), out, scale=2
    )
    assert (out != blur_and_double(images)).any()


def test_output_is_cropped_and_progress_reaches_the_end() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3))
    out = np.zeros((1, 50, 61, 3), np.int64)
    seen: list[tuple[int, int]] = []
    plan = plan_tiles(Size(32, 32), Size(16, 16), REACH)
    run_plan(
        blur_and_double,
        images,
        plan,
        out,
        scale=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    np.testing.assert_array_equal(out, blur_and_double(images)[:, :50, :61])
    assert seen[0] == (0, len(plan))
    assert seen[-1] == (len(plan), len(plan))


@pytest.mark.parametrize(("side", "expected"), [(16, 36), (200, 1)])
def test_small_tiles_share_a_call(side: int, expected: int) -> None:
    shapes: list[Any] = []

    def infer(x: Any) -> Any:
        shapes.append(x.shape)
        return x

    images = np.zeros((1, 400, 400, 1), np.uint8)
    run_plan(infer, images, plan_tiles(Size(400, 400), Size(side, side), 0), images, scale=1)
    assert shapes[0] == (expected, side, side, 1)
