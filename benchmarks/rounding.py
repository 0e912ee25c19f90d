"""A float32 graph in which the products see bfloat16: what rounding alone costs.

Everything else stays float32, sums included: what is lost is lost by the factors alone, whoever
computes the products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LOW = ir.DataType.BFLOAT16


@dataclass(frozen=True)
class Rounding:
    """``weights``, ``inputs``: a factor becomes the sum of so many bfloat16 numbers, each the
    nearest to what is left; 0 leaves it. Inputs are what is computed in a run. Biases are
    added, not multiplied, and stay."""

    name: str
    weights: int
    inputs: int


ROUNDINGS = (
    Rounding("weights", 1, 0),
    Rounding("inputs", 0, 1),
    Rounding("inputs, two-term weights", 2, 1),
    Rounding("both", 1, 1),
    Rounding("both of two terms", 2, 2),
)
"""The last takes three products in place of one (the fourth, of the rests, adds nothing)."""


def with_rounding(model: ir.Model, rounding: Rounding) -> ir.Model:
    """A copy of a float32 ``model`` with its weights inside. Names of inputs and outputs stay."""
    model = ir.external_data.load_to_model(model.clone())
    rounded: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type not in PRODUCTS:
            continue
        for at, value in enumerate(node.inputs[:2]):
            assert value is not None
            if value.const_value is not None:
                if rounding.weights:
                    _round_weight(value, rounding.weights)
            elif rounding.inputs:
                if value not in rounded:
                    rounded[value] = _insert_terms(model.graph, node, value, rounding.inputs)
                node.replace_input_with(at, rounded[value])
    return model


def sum_of_terms(array: NDArray[np.float32], terms: int) -> NDArray[np.float32]:
    """The sum of ``terms`` bfloat16 numbers, each the nearest to what is left."""
    total = np.zeros_like(array)
    for _ in range(terms):
        total += (array - total).astype(LOW.numpy()).astype(np.float32)
    return total


def _round_weight(value: ir.Value, terms: int) -> None:
    """A weight that two products share is rounded twice, which changes nothing."""
    assert value.const_value is not None
    array = sum_of_terms(value.const_value.numpy(), terms)
    value.const_value = ir.tensor(array, name=value.name)


def _insert_terms(graph: ir.Graph, node: ir.Node, value: ir.Value, terms: int) -> ir.Value:
    """``sum_of_terms`` of what is computed, before ``node``."""

    def insert(kind: str, inputs: list[ir.Value], to: ir.DataType | None = None) -> ir.Value:
        made = ir.node(kind, inputs, {"to": to} if to else {})
        graph.insert_before(node, made)
        return made.outputs[0]

    total: ir.Value | None = None
    for _ in range(terms):
        rest = insert("Sub", [value, total]) if total else value
        term = insert("Cast", [insert("Cast", [rest], LOW)], ir.DataType.FLOAT)
        total = insert("Add", [total, term]) if total else term
    assert total is not None
    return total
