"""Which inputs and outputs of a node may become float16 or bfloat16, by ONNX's own schemas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

MOVES = frozenset(
    [
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Concat",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Operators that only move values: rounding before or after them is the same."""

ANY_TYPE = frozenset({"Cast", "Shape", "Size"})
"""Operators that take every float type as it comes and need no cast before them."""

SMALL_INTEGERS = (ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.BOOL)
"""Integers that float16 and bfloat16 hold exactly (bfloat16: up to 256)."""

SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
}
"""Inputs that are sizes, indices or factors, not data."""


@dataclass(frozen=True)
class Lowered:
    """Positions of the float32 inputs and outputs that change type with the node."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def is_cast_to(node: ir.Node | None, dtype: ir.DataType) -> bool:
    return (
        node is not None
        and node.op_type == "Cast"
        and not node.domain
        and node.attributes["to"].as_int() == dtype
    )


def lowered(node: ir.Node, opsets: dict[str, int], low: ir.DataType) -> Lowered | None:
    """What of ``node`` can be ``low``; ``None`` where it has to stay as it is.

    Everything that ONNX types with one variable changes together. Sizes and factors
    (``SHAPE_INPUTS``) never change. Of the operators that carry their type in an
    attribute only two can change: a cast from a small integer, and ``ConstantOfShape``.
    """
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    if any(attribute.type in graphs for attribute in node.attributes.values()):
        return None
    if node.op_type == "Cast":
        exact = node.inputs[0].dtype in SMALL_INTEGERS
        plain = is_cast_to(node, ir.DataType.FLOAT)
        return Lowered(frozenset(), frozenset({0})) if exact and plain else None
    if node.op_type == "ConstantOfShape":
        fits = node.outputs[0].dtype == ir.DataType.FLOAT and _fill_fits(node, low)
        return Lowered(frozenset(), frozenset({0})) if fits else None
    if "dtype" in node.attributes or node.op_type == "CastLike":
        return None
    return _by_schema(node, opsets, low)


def fixed_nodes(model: ir.Model, low: ir.DataType) -> dict[str, str]:
    """Nodes with float32 inputs or outputs that no policy can convert: name to reason."""
    opsets = dict(model.graph.opset_imports)
    shapes = shape_nodes(model.graph)
    fixed = {}
    for node in model.graph:
        if not _has_float(node) or node.op_type in ANY_TYPE:
            continue
        if node in shapes:
            fixed[str(node.name)] = "it computes sizes, which float16 cannot count exactly"
        elif lowered(node, opsets, low) is None:
            fixed[str(node.name)] = f"{node.op_type} has no {low.name.lower()} form here"
    return fixed


def _has_float(node: ir.Node) -> bool:
    return any(
        v is not None and v.dtype == ir.DataType.FLOAT for v in (*node.inputs, *node.outputs)
    )


def shape_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Everything between ``Shape`` and an input that is a size."""
    todo = [
        value.producer()
        for node in graph.all_nodes()
        for index in SHAPE_INPUTS.get(node.op_type, ())
        if index < len(node.inputs) and (value := node.inputs[index]) is not None
    ]
    found: set[ir.Node] = set()
    while todo:
        node = todo.pop()
        if node is None or node in found or node.op_type in ("Shape", "Size"):
            continue
        found.add(node)
        todo += [value.producer() for value in node.inputs if value is not None]
    return found


def _fill_fits(node: ir.Node, low: ir.DataType) -> bool:
    fill = node.attributes.get("value")
    if fill is None:
        return False
    value = fill.as_tensor().numpy()
    with np.errstate(over="ignore"):
        return bool((value.astype(low.numpy()).astype(value.dtype) == value).all())


def _by_schema(node: ir.Node, opsets: dict[str, int], low: ir.DataType) -> Lowered | None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = opsets.get(domain, opsets.get("ai.onnx", 1))
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    name = f"tensor({low.name.lower()})"
    fits = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if name in constraint.allowed_type_strs
    }
    if "stash_type" in node.attributes:
        fits.discard("U")
    fixed = SHAPE_INPUTS.get(node.op_type, ()) if not domain else ()
    inputs = _positions(node.inputs, schema.inputs, fits) - frozenset(fixed)
    outputs = _positions(node.outputs, schema.outputs, fits)
    return Lowered(inputs, outputs) if inputs or outputs else None


def _positions(
    values: Sequence[ir.Value | None],
    formals: Sequence[onnx.defs.OpSchema.FormalParameter],
    fits: set[str],
) -> frozenset[int]:
    """Float32 values whose formal parameter (the last may be repeated) is in ``fits``."""
    return frozenset(
        index
        for index, value in enumerate(values)
        if value is not None
        and value.dtype == ir.DataType.FLOAT
        and formals[min(index, len(formals) - 1)].type_str in fits
    )
