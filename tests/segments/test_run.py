"""A network in segments over tiles is the network at once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pixelrt.errors import InputError, OutOfMemoryError
from pixelrt.geometry import Size
from pixelrt.segments import Tiling, layout, run_segments, store, whole_need
from pixelrt.segments.layout import MARGIN
from pixelrt.segments.tiles import plan_step
from tests.segments.small import Values, network, opener, segments, untiled

ROOM = 2**20
EXACT = 1e-5
"""Sums in another order; values are around 1."""


def pixels(batch: int, height: int, width: int) -> Values:
    return np.random.default_rng(0).random((batch, 2, height, width), np.float32)


def error(found: Values, given: Values) -> float:
    wanted = untiled(given)
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    return float(np.abs(found - wanted).max())


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    side=st.integers(1, 20),
    batch=st.integers(1, 2),
)
def test_tiles_of_any_size_give_the_untiled_result(
    height: int, width: int, side: int, batch: int
) -> None:
    given_pixels = pixels(batch, 2 * height, 2 * width)
    found = run_segments(network(), given_pixels, opener, Tiling(ROOM, side))
    assert error(found, given_pixels) <= EXACT


def test_tiles_are_told_as_they_are_done() -> None:
    told: list[tuple[int, int]] = []
    tiling = Tiling(ROOM, 8)
    run_segments(network(), pixels(2, 20, 24), opener, tiling, lambda *count: told.append(count))
    steps = layout(network(), Size(20, 24))
    total = 2 * sum(len(plan_step(step, Size(20, 24), tiling)) for step in steps)
    assert told == [(done, total) for done in range(total + 1)]
    assert total > 2 * len(steps)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5])
def test_a_halo_that_is_too_small_is_seen(number: int) -> None:
    """So the comparison above can fail."""
    pieces = segments()
    pieces[number] = replace(pieces[number], halo=dict.fromkeys(pieces[number].halo, 0))
    given_pixels = pixels(1, 20, 24)
    found = run_segments(network(pieces), given_pixels, opener, Tiling(ROOM, 8))
    assert error(found, given_pixels) > 1e-2


@settings(deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    memory=st.integers(2000, 60000),
    side=st.none() | st.integers(1, 80),
)
def test_plans_cover_every_unit_once_within_the_memory(
    height: int, width: int, memory: int, side: int | None
) -> None:
    steps = layout(network(), Size(2 * height, 2 * width))
    for step in steps:
        plan = plan_step(step, Size(2 * height, 2 * width), Tiling(memory, side))
        assert plan.image == step.units
        assert step.size == step.units.scaled(step.segment.pixels[1])
        for windows, length in ((plan.rows, plan.image.height), (plan.columns, plan.image.width)):
            assert windows[0][1] == 0
            assert windows[-1][2] == length
            assert all(one[2] == two[1] for one, two in pairwise(windows))
        if side is None:
            assert step.memory * plan.tile.pixels <= memory


def test_memory_that_is_too_small_and_sides_that_do_not_divide() -> None:
    with pytest.raises(OutOfMemoryError, match="too small for one tile"):
        run_segments(network(), pixels(1, 20, 20), opener, Tiling(500))
    with pytest.raises(InputError, match="does not divide"):
        run_segments(network(), pixels(1, 21, 20), opener, Tiling(ROOM))


def test_the_untiled_need_grows_with_the_picture() -> None:
    small, large = (whole_need(network(), Size(side, side)) for side in (20, 40))
    # 100 bytes for a unit, which is a pixel; and nothing waits while the first segment is run
    assert small == int(100 * 400 * MARGIN)
    assert large == 4 * small


def test_values_beyond_the_limit_go_to_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[tuple[int, ...]] = []
    mapped = store._mapped

    def counted(shape: tuple[int, ...], size: int) -> Any:
        files.append(shape)
        return mapped(shape, size)

    monkeypatch.setattr(store, "_mapped", counted)
    given_pixels = pixels(2, 40, 40)
    found = run_segments(network(), given_pixels, opener, Tiling(4 * 40 * 40 * 4, 16))
    # a fills the limit; b does not fit beside it; c fits once a is gone; d takes b's place
    assert files == [(4, 20, 20)] * 2
    assert error(found, given_pixels) <= EXACT


def test_a_disk_without_room_has_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutOfMemoryError, match="no room") as caught:
        store.Store(0).take((1, 8, 8))
    assert "TMPDIR" in str(caught.value)
