"""Graph pass: take out what does nothing."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

WIDER: dict[ir.DataType, frozenset[ir.DataType]] = {
    ir.DataType.FLOAT16: frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE}),
    ir.DataType.BFLOAT16: frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE}),
    ir.DataType.FLOAT: frozenset({ir.DataType.DOUBLE}),
    ir.DataType.UINT8: frozenset(
        {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}
    ),
    ir.DataType.INT32: frozenset({ir.DataType.INT64, ir.DataType.DOUBLE}),
}
"""Types that hold every value of the key exactly."""


def clean(model: ir.Model) -> ir.Model:
    """A copy of ``model`` that computes the same, bit for bit, with fewer nodes.

    Goes: dead nodes and weights, ``Identity``, casts that change nothing, casts through a type
    that loses nothing, equal weights, equal nodes on equal inputs. Inputs and outputs keep
    names, types and order.
    """
    model = model.clone()
    ir.external_data.load_to_model(model)
    common.IdentityEliminationPass()(model)
    _simplify_casts(model)
    common.DeduplicateHashedInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    unused_removed(model)
    return model


def unused_removed(model: ir.Model) -> None:
    """Remove, in place, dead nodes, weights and operator sets."""
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)


def _simplify_casts(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.op_type == "Cast" and not node.domain:
            _shorten(node)
            _bypass(node)


def _shorten(node: ir.Node) -> None:
    """``a → wider → b`` is ``a → b``."""
    source = node.inputs[0]
    before = source.producer() if source is not None else None
    if before is None or before.op_type != "Cast" or before.domain:
        return
    origin = before.inputs[0]
    assert source is not None
    if origin is not None and source.dtype in WIDER.get(origin.dtype, frozenset()):
        node.replace_input_with(0, origin)


def _bypass(node: ir.Node) -> None:
    """Read past a cast to the type that its input has; a graph output keeps the cast."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None or source.dtype is None or source.dtype != node.attributes["to"].as_int():
        return
    for user, at in list(result.uses()):
        user.replace_input_with(at, source)
