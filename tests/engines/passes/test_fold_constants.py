"""Constant folding: same results, fewer nodes, and what must stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from pixelrt.bundle import Bundle
from pixelrt.engines.passes.fold_constants import fold_constants
from tests.engines.passes.graphs import assert_sound, ops, parse, run, signature
from tests.test_families import CASES


def same(text: str, **feed: np.ndarray) -> ir.Model:
    model = parse(text)
    folded = fold_constants(model)
    assert_sound(folded)
    assert signature(folded) == signature(model)
    for mine, theirs in zip(run(folded, **feed), run(model, **feed), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)
    return folded


X = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)


def test_a_constant_branch_becomes_a_weight() -> None:
    folded = same(
        """g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {
        a = Exp(w)  b = Sigmoid(a)  c = Constant<value = float {2.0}>()  d = Mul(b, c)
        y = Add(x, d)
    }""",
        x=X,
    )
    assert ops(folded) == ["Add"]
    assert len(folded.graph.initializers) == 1


def test_what_depends_on_an_input_stays() -> None:
    folded = same(
        """g (float[N, 4] x) => (float[N, 4] y, int64[2] s) {
        a = Exp(x)  y = Mul(a, x)  s = Shape(x)
    }""",
        x=X,
    )
    assert sorted(ops(folded)) == ["Exp", "Mul", "Shape"]


def test_random_values_stay() -> None:
    model = parse(
        "g (float[2, 4] x) => (float[2, 4] y) { a = RandomNormal<shape = [2, 4]>() y = Add(x, a) }"
    )
    assert ops(fold_constants(model)) == ["RandomNormal", "Add"]


def test_a_large_result_stays_computed() -> None:
    text = """g (float[4000] x) => (float[4000] y)
        <int64[1] n = {1000}, float[4] w = {1, 2, 3, 4}> { a = Tile(w, n)  y = Add(x, a) }"""
    assert ops(fold_constants(parse(text), max_result=100)) == ["Tile", "Add"]
    assert ops(fold_constants(parse(text))) == ["Add"]


def test_a_constant_output_stays_an_output() -> None:
    folded = same(
        """g (float[N, 4] x) => (float[N, 4] y, float[4] z) <float[4] w = {1, 2, 3, 4}> {
        z = Exp(w)  y = Add(x, z)
    }""",
        x=X,
    )
    assert signature(folded)[2][0] == "z"


def test_the_input_model_is_not_changed() -> None:
    model = parse(
        "g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> "
        "{ a = Exp(w)  y = Add(x, a) }"
    )
    before = ir.to_proto(model).SerializeToString()
    fold_constants(model)
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.slow
def test_swin2sr(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle(*CASES["swin2sr-pixelshuffle-x2"])
    graph = bundle.component.graph("core")
    model = ir.load(bundle.path(graph.file))
    folded = fold_constants(model)
    assert_sound(folded)
    assert len(ops(folded)) <= len(ops(model))
    ir.external_data.load_to_model(model)
    x = np.random.default_rng(0).random((1, 3, 24, 32), np.float32)
    mine, theirs = run(folded, pixels=x)[0], run(model, pixels=x)[0]
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
