"""Cleaning: what goes, and what looks like it but must stay. Results are equal bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pixelrt.engines.passes.clean import clean
from tests.engines.passes.graphs import assert_sound, ops, parse, run, signature

X = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)


def cleaned(text: str, x: Any = X) -> ir.Model:
    model = parse(text)
    before = ir.to_proto(model).SerializeToString()
    result = clean(model)
    assert ir.to_proto(model).SerializeToString() == before, "the input was changed"
    assert_sound(result)
    assert signature(result) == signature(model)
    for mine, theirs in zip(run(result, x=x), run(model, x=x), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    return result


GOES = {
    "dead nodes": ("a = Exp(x)  b = Sqrt(a)  y = Relu(x)", ["Relu"]),
    "identity": ("a = Identity(x)  b = Identity(a)  y = Relu(b)", ["Relu"]),
    "identity before an output": ("a = Relu(x)  y = Identity(a)", ["Relu"]),
    "a cast to its own type": ("a = Cast<to = 1>(x)  y = Relu(a)", ["Relu"]),
    "a cast up and down": (
        "h = Cast<to = 10>(x)  r = Relu(h)  f = Cast<to = 1>(r)  g = Cast<to = 10>(f)  "
        "n = Neg(g)  y = Cast<to = 1>(n)",
        ["Cast", "Relu", "Neg", "Cast"],
    ),
    "equal nodes": ("a = Exp(x)  b = Exp(x)  y = Add(a, b)", ["Exp", "Add"]),
    "equal casts": (
        "a = Cast<to = 10>(x)  b = Cast<to = 10>(x)  c = Mul(a, b)  y = Cast<to = 1>(c)",
        ["Cast", "Mul", "Cast"],
    ),
}


@pytest.mark.parametrize("case", GOES)
def test_goes(case: str) -> None:
    nodes, expected = GOES[case]
    assert ops(cleaned(f"g (float[N, 4] x) => (float[N, 4] y) {{ {nodes} }}")) == expected


STAYS = {
    "a cast that rounds": (
        "a = Cast<to = 10>(x)  b = Cast<to = 1>(a)  y = Relu(b)",
        ["Cast", "Cast", "Relu"],
    ),
    "a cast through an integer": (
        "a = Cast<to = 7>(x)  b = Cast<to = 1>(a)  y = Relu(b)",
        ["Cast", "Cast", "Relu"],
    ),
    "nodes that differ in an attribute": (
        "a = Elu<alpha = 1.0>(x)  b = Elu<alpha = 2.0>(x)  y = Add(a, b)",
        ["Elu", "Elu", "Add"],
    ),
    "a cast to its own type that is an output": ("y = Cast<to = 1>(x)", ["Cast"]),
    "identity from input to output": ("y = Identity(x)", ["Identity"]),
}


@pytest.mark.parametrize("case", STAYS)
def test_stays(case: str) -> None:
    nodes, expected = STAYS[case]
    assert ops(cleaned(f"g (float[N, 4] x) => (float[N, 4] y) {{ {nodes} }}")) == expected


def test_random_nodes_are_not_merged() -> None:
    model = parse(
        "g (float[2, 4] x) => (float[2, 4] y) { a = RandomNormalLike(x) "
        "b = RandomNormalLike(x)  y = Sub(a, b) }"
    )
    assert ops(clean(model)).count("RandomNormalLike") == 2


def test_equal_weights_are_merged_and_unused_ones_go() -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y)
        <float[4] v = {1, 2, 3, 4}, float[4] w = {1, 2, 3, 4}, float[4] u = {1, 2, 3, 5},
         float[4] dead = {0, 0, 0, 0}> { a = Mul(x, v)  b = Add(a, w)  y = Add(b, u) }"""
    assert len(cleaned(text).graph.initializers) == 2


def test_uint8_cast_through_float32_is_direct() -> None:
    text = """g (uint8[N, 4] x) => (float16[N, 4] y) {
        a = Cast<to = 1>(x)  b = Cast<to = 10>(a)  y = Relu(b)
    }"""
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 4)
    assert ops(cleaned(text, pixels)) == ["Cast", "Relu"]


def test_two_outputs_of_one_value_keep_their_names() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Relu(x)  z = Relu(x) }"
    cleaned(text)
