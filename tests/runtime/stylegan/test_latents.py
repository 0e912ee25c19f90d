"""Latents of StyleGAN2: seeds, truncation, mixing, editing, interpolation, and their checks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelrt.errors import InputError, UsageError
from pixelrt.runtime.stylegan.latents import (
    broadcast,
    edit,
    lerp,
    mix,
    one_hot,
    parse_layers,
    seeded_noise,
    seeded_z,
    slerp,
    truncate,
)

ROWS, DIM = 6, 4


def made(count: int, seed: int = 0) -> Any:
    shape = (count, ROWS, DIM)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Making them --------------------------------------------------------------------------------


def test_seeds_of_published_pictures() -> None:
    """``np.random.RandomState(seed).randn(1, z_dim)``, as in NVIDIA's generate.py."""
    z = seeded_z([85, 0], 512, "randomstate")
    assert z.shape == (2, 512)
    assert z.dtype == np.float32
    # The first normal numbers of the Mersenne Twister for seed 0, which never change.
    assert z[1, :3] == pytest.approx([1.76405235, 0.40015721, 0.97873798])
    assert np.array_equal(z[0], np.random.RandomState(85).randn(1, 512)[0].astype(np.float32))


def test_a_row_depends_on_its_seed_only() -> None:
    z = seeded_z([3, 4, 3], 1000)
    assert np.array_equal(z[0], z[2])
    assert np.array_equal(z[1], seeded_z([4], 1000)[0])
    assert not np.array_equal(z[0], z[1])
    assert not np.array_equal(z[0], seeded_z([3], 1000, "randomstate")[0])
    assert abs(z.mean()) < 0.1
    assert abs(z.std() - 1) < 0.1


def test_no_seeds() -> None:
    assert seeded_z([], 5).shape == (0, 5)


def test_seeds_out_of_range() -> None:
    with pytest.raises(UsageError, match="seed is out of range"):
        seeded_z([-1], 4)
    seeded_z([2**32], 4)
    with pytest.raises(UsageError, match="0 to 4294967295"):
        seeded_z([2**32], 4, "randomstate")


def test_noise() -> None:
    noise = seeded_noise((4, 8, 8), 2, seed=1)
    assert [n.shape for n in noise] == [(2, 1, 4, 4), (2, 1, 8, 8), (2, 1, 8, 8)]
    assert all(n.dtype == np.float32 for n in noise)
    assert np.array_equal(noise[2], seeded_noise((4, 8, 8), 2, seed=1)[2])
    assert not np.array_equal(noise[1], noise[2])


def test_labels() -> None:
    assert one_hot([2, 0], 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    with pytest.raises(UsageError, match="0 to 2"):
        one_hot([3], 3)
    with pytest.raises(UsageError, match="no labels"):
        one_hot([0], 0)


def test_broadcast() -> None:
    w = made(3)[:, 0]
    ws = broadcast(w, 5)
    assert ws.shape == (3, 5, DIM)
    assert (ws == w[:, None]).all()


# What is done with them ---------------------------------------------------------------------


def test_truncation() -> None:
    ws, average = made(2), np.arange(DIM, dtype=np.float32)
    assert np.array_equal(truncate(ws, average, 1), ws)
    assert np.array_equal(truncate(ws, average, 0), np.broadcast_to(average, ws.shape))
    half = truncate(ws, average, 0.5)
    assert half == pytest.approx((ws + average) / 2, abs=1e-6)
    beyond = truncate(ws, average, -1)
    assert beyond == pytest.approx(2 * average - ws, abs=1e-6)


def test_truncation_up_to_a_layer() -> None:
    ws, average = made(2), np.ones(DIM)
    cut = truncate(ws, average, 0.3, cutoff=2)
    assert np.array_equal(cut[:, :2], truncate(ws, average, 0.3)[:, :2])
    assert np.array_equal(cut[:, 2:], ws[:, 2:])
    assert np.array_equal(truncate(ws, average, 0.3, 0), ws)
    assert np.array_equal(truncate(ws, average, 0.3, ROWS), truncate(ws, average, 0.3))


def test_mixing() -> None:
    ws, styles = made(2, 1), made(2, 2)
    mixed = mix(ws, styles, range(2, 4))
    assert np.array_equal(mixed[:, 2:4], styles[:, 2:4])
    assert np.array_equal(mixed[:, [0, 1, 4, 5]], ws[:, [0, 1, 4, 5]])
    one = mix(ws, styles[:1], [5])
    assert np.array_equal(one[:, 5], styles[[0, 0], 5])
    assert np.array_equal(mix(ws, styles, []), ws)


def test_editing_along_a_direction() -> None:
    ws, direction = made(1), np.arange(1.0, DIM + 1)
    moved = edit(ws, direction, 2.0)
    assert moved == pytest.approx(ws + 2 * direction, abs=1e-5)
    some = edit(ws, direction[None], 2.0, layers=[0, 3])
    assert np.array_equal(some[:, [0, 3]], moved[:, [0, 3]])
    assert np.array_equal(some[:, [1, 2, 4, 5]], ws[:, [1, 2, 4, 5]])


def test_editing_in_steps() -> None:
    """As InterFaceGAN does for one latent; several latents take one strength each."""
    ws, direction = made(1), np.ones(DIM)
    steps = edit(ws, direction, np.linspace(-3, 3, 5))
    assert steps.shape == (5, ROWS, DIM)
    assert np.array_equal(steps[2], ws[0])
    assert steps[4] - steps[0] == pytest.approx(np.full((ROWS, DIM), 6.0), abs=1e-5)
    three = made(3)
    each = edit(three, direction, [0, 1, 2])
    assert (each - three)[:, 0, 0] == pytest.approx([0, 1, 2], abs=1e-5)


def test_a_direction_for_each_layer() -> None:
    ws, direction = made(2), made(1, 9)
    assert edit(ws, direction, 1) == pytest.approx(ws + direction, abs=1e-6)
    assert edit(ws, direction[0], 1, [2])[:, 2] == pytest.approx((ws + direction)[:, 2], abs=1e-6)


def test_line_between_two_ws() -> None:
    first, last = made(1, 1), made(1, 2)
    path = lerp(first, last, [0, 0.25, 1])
    assert np.array_equal(path[[0]], first)
    assert np.array_equal(path[[2]], last)
    assert path[1] == pytest.approx((0.75 * first + 0.25 * last)[0], abs=1e-6)


def test_arc_between_two_z() -> None:
    first, last = np.array([[2.0, 0, 0]]), np.array([[0, 2.0, 0]])
    path = slerp(first, last, np.linspace(0, 1, 7))
    assert np.linalg.norm(path, axis=1) == pytest.approx(np.full(7, 2.0), abs=1e-6)
    angles = np.arctan2(path[:, 1], path[:, 0])
    assert np.diff(angles) == pytest.approx(np.full(6, np.pi / 12), abs=1e-6)
    assert path[[0]] == pytest.approx(first)
    assert path[[6]] == pytest.approx(last, abs=1e-6)


def test_arc_between_parallel_and_opposite_z() -> None:
    z = seeded_z([1], 8)
    assert slerp(z, 2 * z, [0.5]) == pytest.approx(1.5 * z, abs=1e-5)
    assert slerp(z, z, [0.3]) == pytest.approx(z, abs=1e-6)
    with pytest.raises(InputError, match="opposite"):
        slerp(z, -z, [0.5])
    with pytest.raises(InputError, match="zeros"):
        slerp(z, 0 * z, [0.5])


def test_what_is_given_is_not_changed() -> None:
    ws, other = made(1, 1), made(1, 2)
    kept = ws.copy(), other.copy()
    for result in (
        truncate(ws, other[0, 0], 0.5),
        mix(ws, other, [1]),
        edit(ws, other[0, 0], 1),
        lerp(ws, other, 0),
        truncate(ws, other[0, 0], 1),
    ):
        assert result.dtype == np.float32
        result += 1
    assert np.array_equal(ws, kept[0])
    assert np.array_equal(other, kept[1])


# Checks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("0-3", (0, 1, 2, 3)),
        ("4-", (4, 5)),
        ("5", (5,)),
        ("3, 0,1", (3, 0, 1)),
        ("0-1,1-2, 4 - 5", (0, 1, 2, 4, 5)),
    ],
)
def test_layers_as_users_write_them(text: str, rows: tuple[int, ...]) -> None:
    assert parse_layers(text, ROWS) == rows


@pytest.mark.parametrize("text", ["", "a", "-3", "1--2", "1,,2", "0:3", "1.5", "٣x", "9" * 30])
def test_text_that_names_no_layers(text: str) -> None:
    with pytest.raises(UsageError, match="these are no layers"):
        parse_layers(text, ROWS)


@pytest.mark.parametrize("text", ["6", "0-6", "3-2", "0,7-", "999999999"])
def test_layers_that_are_not_there(text: str) -> None:
    with pytest.raises(UsageError, match="no such layers") as caught:
        parse_layers(text, ROWS)
    assert "0 to 5" in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_gives_layers_or_an_error(text: str) -> None:
    try:
        rows = parse_layers(text, ROWS)
    except UsageError:
        return
    assert rows
    assert all(0 <= row < ROWS for row in rows)


WS, FLAT = made(2), np.ones(DIM)
WRONG: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (InputError, r"\(2, 6\).*any, any, any", lambda: truncate(WS[..., 0], FLAT, 1)),
    (InputError, r"w_avg.*\(3,\).*\(4\)", lambda: truncate(WS, np.ones(3), 1)),
    (InputError, "not finite", lambda: truncate(WS * np.nan, FLAT, 1)),
    (InputError, "no real numbers", lambda: truncate(WS.astype(str), FLAT, 1)),
    (UsageError, "psi is not a number", lambda: truncate(WS, FLAT, float("nan"))),
    (UsageError, "cutoff.*7.*0 to 6", lambda: truncate(WS, FLAT, 1, 7)),
    (UsageError, "cutoff.*-1", lambda: truncate(WS, FLAT, 1, -1)),
    (InputError, r"styles.*\(2, 5, 4\).*any, 6, 4", lambda: mix(WS, WS[:, :5], [1])),
    (InputError, "3 for 2", lambda: mix(WS, made(3), [1])),
    (UsageError, "no such layers.*6", lambda: mix(WS, WS, [0, 6])),
    (UsageError, "no such layers.*-1", lambda: mix(WS, WS, [-1])),
    (InputError, r"direction.*\(5,\).*\(4,\)", lambda: edit(WS, np.ones(5), 1)),
    (InputError, r"direction.*\(2, 4\)", lambda: edit(WS, np.ones((2, DIM)), 1)),
    (InputError, "direction.*not finite", lambda: edit(WS, FLAT * np.inf, 1)),
    (InputError, "3 for 2", lambda: edit(WS, FLAT, [1, 2, 3])),
    (UsageError, "no such layers", lambda: edit(WS, FLAT, 1, [9])),
    (InputError, r"start.*\(2, 6, 4\).*1, any, any", lambda: lerp(WS, WS, 0)),
    (InputError, r"end.*\(1, 5, 4\).*1, 6, 4", lambda: lerp(WS[:1], WS[:1, :5], 0)),
    (InputError, "places.*not finite", lambda: lerp(WS[:1], WS[:1], np.nan)),
    (InputError, r"start.*\(4,\)", lambda: slerp(FLAT, FLAT, 0)),
    (InputError, r"w has a shape.*\(0, 4\)", lambda: broadcast(WS[:0, 0], 3)),
]


@pytest.mark.parametrize(("error", "pattern", "call"), WRONG)
def test_wrong_arrays_and_options(
    error: type[Exception], pattern: str, call: Callable[[], object]
) -> None:
    with pytest.raises(error) as caught:
        call()
    assert re.search(pattern, str(caught.value), re.DOTALL), str(caught.value)


def test_nothing_but_numpy_is_imported() -> None:
    code = (
        "import pixelrt.runtime.stylegan.latent_files, sys;"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'PIL') if m in sys.modules])"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.strip() == "[]"
