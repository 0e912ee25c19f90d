"""Graph pass: compute once what depends on constants only.

Swin2SR's position bias (relative coordinates, a small network) is such a part: it is the
same in every run, and a large share of the nodes. onnxscript's folding does the work.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants as fold

from pixelrt.engines.passes.clean import unused_removed
from pixelrt.engines.passes.weights import retyped

MAX_RESULT = 2**22
"""Numbers in the largest tensor that may be stored (16 MiB in float32)."""
MAX_INPUT = 2**26
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def fold_constants(model: ir.Model, *, max_result: int = MAX_RESULT) -> ir.Model:
    """A copy of ``model`` in which constant parts are weights.

    A result of more than ``max_result`` numbers is left to be computed, unless the weights
    that it makes superfluous are larger. Weights stored in half precision always become float32
    again: the precision of the graph is decided later. Random nodes are never folded. Names and
    declared types of inputs and outputs stay.
    """
    model = model.clone()
    ir.external_data.load_to_model(model)
    widen_weights(model)
    fold(model, input_size_limit=MAX_INPUT, output_size_limit=max_result)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    unused_removed(model)
    return model


def widen_weights(model: ir.Model) -> None:
    """Take out casts of weights in half precision to float32, in place.

    A weight keeps its name, so that the graph is that of the same network stored in float32.
    """
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Cast" and not node.domain else None
        if source is None or not source.is_initializer():
            continue
        tensor, result = source.const_value, node.outputs[0]
        if tensor is None or tensor.dtype not in HALVES or result.is_graph_output():
            continue
        if node.attributes["to"].as_int() != ir.DataType.FLOAT:
            continue
        alone = len(list(source.uses())) == 1 and not source.is_graph_output()
        name, shape = str(source.name if alone else result.name), ir.Shape(tensor.shape)
        kind = ir.TensorType(ir.DataType.FLOAT)
        wide = retyped(tensor, ir.DataType.FLOAT, name)
        value = ir.Value(name=name, type=kind, shape=shape, const_value=wide)
        for user, at in list(result.uses()):
            user.replace_input_with(at, value)
        model.graph.remove(node, safe=True)
        if alone:
            del model.graph.initializers[name]
        model.graph.register_initializer(value)
