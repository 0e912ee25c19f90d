"""Graph pass: a mixed graph to a float32 graph that rounds where the mixed one would.

onnxruntime on the CPU computes chains of float16 nodes in float32 and drops the casts
between them (1.31: 1.0 * 300 * 300 / 300 in float16 gives 300, not infinity). Run as it is, a
float16 graph looks better there than on any GPU. Here every rounding is written out as a
cast down and up again, which onnxruntime keeps, so each intermediate value is the one
that float16 can hold, for bfloat16 too. Not modelled: accumulation inside an operator,
which is float32 here; TensorRT chooses for itself, and keeps values between fused
operators unrounded.
"""

from __future__ import annotations

import onnx_ir as ir

from pixelrt.engines.passes.formals import MOVES
from pixelrt.engines.passes.weights import retyped

FLOAT = ir.DataType.FLOAT
LOWS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def emulate(model: ir.Model) -> ir.Model:
    """A copy of a mixed ``model`` in float32 only; names of values stay.

    Inputs and outputs of the graph keep their names and become float32 where they were not;
    such an input is rounded where it is read.
    """
    model = model.clone()
    graph = model.graph
    nodes = list(graph)
    for value in graph.initializers.values():
        _widen(value)
    for value in graph.inputs:
        if value.dtype in LOWS and value.const_value is None and nodes:
            _round_input(graph, nodes[0], value)
    for node in nodes:
        if _produces(node) in LOWS:
            _round_outputs(graph, node)
    return model


def _produces(node: ir.Node) -> ir.DataType | None:
    return next((v.dtype for v in node.outputs if v.dtype in LOWS), None)


def _widen(value: ir.Value) -> None:
    if value.dtype in LOWS:
        value.type = ir.TensorType(FLOAT)
        tensor = value.const_value
        if tensor is not None:
            value.const_value = retyped(tensor, FLOAT, str(value.name))


def _round_input(graph: ir.Graph, first: ir.Node, value: ir.Value) -> None:
    users, low = list(value.uses()), value.dtype
    value.type = ir.TensorType(FLOAT)
    down, up = _casts(value, low)
    up.outputs[0].name = f"{value.name}__rounded"
    for user, at in users:
        user.replace_input_with(at, up.outputs[0])
    graph.insert_before(first, [down, up])


def _round_outputs(graph: ir.Graph, node: ir.Node) -> None:
    if node.op_type == "ConstantOfShape":
        fill = node.attributes["value"].as_tensor()
        array = fill.numpy().astype("float32")
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array, dtype=FLOAT))
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", FLOAT)
    for value in node.outputs:
        low = value.dtype
        if low not in LOWS:
            continue
        value.type = ir.TensorType(FLOAT)
        if node.op_type not in MOVES:
            _round(graph, node, value, low)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, low: ir.DataType) -> None:
    """Read ``value`` rounded everywhere; the rounded value takes over its name."""
    users = list(value.uses())
    down, up = _casts(value, low)
    result = up.outputs[0]
    result.name = value.name
    value.name = f"{value.name}__exact"
    for user, at in users:
        user.replace_input_with(at, result)
    for at, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[at] = result
    graph.insert_after(node, [down, up])


def _casts(value: ir.Value, low: ir.DataType) -> tuple[ir.Node, ir.Node]:
    """Down to ``low`` and up again; the name of the last output is left to the caller."""
    down = ir.node("Cast", [value], {"to": low}, name=f"{value.name}__down")
    up = ir.node("Cast", [down.outputs[0]], {"to": FLOAT}, name=f"{value.name}__up")
    down.outputs[0].name, down.outputs[0].type = f"{value.name}__low", ir.TensorType(low)
    up.outputs[0].type, up.outputs[0].shape = ir.TensorType(FLOAT), value.shape
    return down, up
