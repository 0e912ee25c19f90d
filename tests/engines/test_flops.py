"""Multiply-adds, against counts done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pixelrt.engines.calibrate import measure_shapes
from pixelrt.engines.flops import multiply_adds
from tests.engines.passes.graphs import parse, weight

CASES = {
    "Conv": (
        "g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) <float[1] w = {1}> "
        "{ y = Conv<group = 2, strides = [2, 2], kernel_shape = [3, 3]>(x, w) }",
        (6, 2, 3, 3),
        (1, 4, 9, 11),
        4 * 5 * 6 * 2 * 9,
    ),
    "ConvTranspose": (
        "g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) <float[1] w = {1}> "
        "{ y = ConvTranspose<strides = [2, 2], kernel_shape = [4, 4]>(x, w) }",
        (4, 6, 4, 4),
        (1, 4, 5, 5),
        25 * 4 * 6 * 16,
    ),
    "MatMul": (
        "g (float[N, A, 8] x) => (float[N, A, 3] y) <float[1] w = {1}> { y = MatMul(x, w) }",
        (8, 3),
        (2, 5, 8),
        2 * 5 * 3 * 8,
    ),
    "Gemm": (
        "g (float[8, A] x) => (float[A, 3] y) <float[1] w = {1}> "
        "{ y = Gemm<transA = 1, transB = 1>(x, w) }",
        (3, 8),
        (8, 5),
        5 * 8 * 3,
    ),
}


@pytest.mark.parametrize("op", CASES)
def test_counts(op: str) -> None:
    text, weights, shape, expected = CASES[op]
    size = ", ".join(map(str, weights))
    values = ", ".join(["1"] * int(np.prod(weights)))
    model = parse(text.replace("float[1] w = {1}", f"float[{size}] w = {{{values}}}"))
    weight(model, "w", np.ones(weights))
    shapes = measure_shapes(model, {"x": np.zeros(shape, np.float32)})
    assert list(multiply_adds(model.graph, shapes).values()) == [expected]


def test_attention() -> None:
    text = """g (float[N, S, 12] q, float[N, T, 12] k, float[N, T, 24] v) => (float[N, S, 24] y) {
        y = Attention<q_num_heads = 3, kv_num_heads = 3>(q, k, v)
    }"""
    model = parse(text, opset=23)
    shapes = {"q": (2, 5, 12), "k": (2, 7, 12), "v": (2, 7, 24), "y": (2, 5, 24)}
    scores, values = 2 * 3 * 5 * 7 * 4, 2 * 3 * 5 * 7 * 8
    assert list(multiply_adds(model.graph, shapes).values()) == [scores + values]
