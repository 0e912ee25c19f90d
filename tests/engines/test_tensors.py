"""Samples of networks of pipelines: repeated to a size, and read back as they were written."""

from __future__ import annotations

import io

import numpy as np

from pixelrt.engines.tensors import encode_tensors, repeated


def test_repeated_or_cut() -> None:
    array = np.arange(6).reshape(2, 3)
    assert repeated(array, (3, 2)).tolist() == [[0, 1], [3, 4], [0, 1]]
    assert repeated(array, (1, 7)).tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert repeated(array, (2, 3)).flags.c_contiguous


def test_written_and_read() -> None:
    inputs, outputs = {"ids": np.array([[1, 2]])}, {"hidden": np.ones((1, 2, 3), np.float32)}
    with np.load(io.BytesIO(encode_tensors(inputs, outputs)), allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    assert sorted(found) == ["in.ids", "out.hidden"]
    assert found["in.ids"].dtype == np.int64
    np.testing.assert_array_equal(found["out.hidden"], outputs["hidden"])
