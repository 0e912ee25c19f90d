"""The file of a whole run: what comes back, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrt.errors import BundleError
from pixelrt.whole_run import WholeRun, encode_run, read_run


def made() -> WholeRun:
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal((1, 4, 3, 3), np.float32) for _ in range(12)]
    images = rng.integers(0, 256, (1, 24, 24, 3), np.uint8)
    return WholeRun({"image": images[0]}, noise, noise[:3], images)


def test_round_trip(tmp_path: Path) -> None:
    run = made()
    (tmp_path / "a.npz").write_bytes(encode_run(run))
    found = read_run(tmp_path / "a.npz")
    assert list(found.given) == ["image"]
    assert np.array_equal(found.given["image"], run.given["image"])
    assert np.array_equal(found.images, run.images)
    assert len(found.noise) == 12  # in order, past ten too
    for mine, other in zip([*found.noise, *found.steps], [*run.noise, *run.steps], strict=True):
        assert np.array_equal(mine, other)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "images"),
        ({"images": np.zeros((1, 2, 2, 3))}, "float64"),
        ({"images": np.zeros((2, 2, 3), np.uint8)}, "(2, 2, 3)"),
        (
            {"images": np.zeros((1, 2, 2, 3), np.uint8), "step.1": np.zeros(1, np.float32)},
            "step.0",
        ),
        ({"images": np.zeros((1, 2, 2, 3), np.uint8), "noise.0": np.zeros(1)}, "float32"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BundleError, match="no run of a whole pipeline") as caught:
        read_run(tmp_path / "a.npz")
    assert words in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no npz")
    with pytest.raises(BundleError):
        read_run(tmp_path / "a.npz")
