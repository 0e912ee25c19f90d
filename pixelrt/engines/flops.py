"""Multiply-adds of a graph, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx_ir as ir

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a value to its shape in one run, as ``calibrate.measure_shapes`` gives it."""

COUNTED = ("Attention", "Conv", "ConvTranspose", "Gemm", "MatMul")


def multiply_adds(graph: ir.Graph, shapes: Shapes) -> dict[str, int]:
    """Name of each convolution or matrix product to its multiply-adds.

    Nodes with inputs or outputs missing from ``shapes`` (and from the weights) raise
    ``KeyError``. Bias and activation are not counted. ``Attention`` (ONNX 23) counts its two
    products without past keys.
    """
    return {str(node.name): _count(node, shapes) for node in graph if node.op_type in COUNTED}


def _count(node: ir.Node, shapes: Shapes) -> int:
    first, second, out = (
        _shape(node.inputs[0], shapes),
        _shape(node.inputs[1], shapes),
        _shape(node.outputs[0], shapes),
    )
    if node.op_type == "Conv":
        return prod(out) * prod(second[1:])
    if node.op_type == "ConvTranspose":
        return prod(first) * prod(second[1:])
    if node.op_type == "MatMul":
        return prod(out) * first[-1]
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transA")
        return prod(out) * first[0 if transposed is not None and transposed.as_int() else 1]
    return (prod(first) + prod(out)) * second[-2]


def _shape(value: ir.Value | None, shapes: Shapes) -> tuple[int, ...]:
    assert value is not None
    if value.const_value is not None:
        return tuple(int(side) for side in value.const_value.shape.numpy())
    return shapes[str(value.name)]
