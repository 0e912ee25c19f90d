"""Ranges of tensors and of the values of a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from pixelrt.engines import calibrate
from pixelrt.engines.calibrate import Range, Runner, measure, measure_shapes, tensor_range
from pixelrt.errors import BackendError
from tests.engines.passes.graphs import parse

HALF = ir.DataType.FLOAT16


def test_range_of_a_tensor() -> None:
    values = np.linspace(-2, 2, 1001, dtype=np.float32)
    found = tensor_range(values, HALF)
    assert found.max_abs == 2
    assert 0 < found.low < 0.05
    assert 0 < found.error < 2**-11


@pytest.mark.parametrize("array", [[], [0.0, 0.0], [np.nan, np.inf]])
def test_nothing_to_measure(array: list[float]) -> None:
    assert tensor_range(np.array(array, np.float32), HALF) == Range(0.0, 0.0, 0.0)


def test_overflow_and_underflow() -> None:
    assert tensor_range(np.array([1, 70000], np.float32), HALF).error == float("inf")
    assert tensor_range(np.array([1e-9, 2e-9], np.float32), HALF).error == 1
    assert tensor_range(np.array([3e38, 1], np.float32), ir.DataType.BFLOAT16).error < 2**-8


def test_ranges_join() -> None:
    assert Range(1, 0, 0.1) | Range(2, 0.5, 0.05) == Range(2, 0.5, 0.1)


NET = """g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {
    a = Mul(x, w)  s = Shape(a)  b = Exp(a)  y = Neg(b)
}"""


@pytest.mark.parametrize("budget", [1, 2**20])
def test_ranges_of_a_graph(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ranges whether values are measured one by one or all at once."""
    monkeypatch.setattr(calibrate, "CHUNK_BYTES", budget)
    model = parse(NET)
    samples = [{"x": np.full((n, 4), float(n), np.float32)} for n in (1, 2)]
    shapes = measure_shapes(model, samples[1])
    assert shapes == {"x": (2, 4), "a": (2, 4), "s": (2,), "b": (2, 4), "y": (2, 4)}
    found = measure(model, samples, HALF, shapes)
    assert set(found) == {"w", "a", "b", "y"}
    assert [found[name].max_abs for name in "wa"] == [4, 8]
    assert found["b"].max_abs == pytest.approx(np.exp(8), rel=1e-6)


def test_a_graph_that_onnxruntime_refuses() -> None:
    model = parse(NET)
    next(iter(model.graph)).op_type = "Nonsense"
    with pytest.raises(BackendError, match="could not load the graph"):
        Runner(model, ["y"])


def test_a_sample_of_the_wrong_shape() -> None:
    runner = Runner(parse(NET), ["y"])
    with pytest.raises(BackendError, match="could not run the graph"):
        runner({"x": np.zeros((1, 5), np.float32)})


def test_large_graphs_go_through_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "INLINE_BYTES", 0)
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(Runner(parse(NET), ["a"])({"x": x})["a"], [[1, 2, 3, 4]])
