"""Models as ONNX text, run and checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


def parse(body: str, *, opset: int = 18) -> ir.Model:
    """Model of ``g (inputs) => (outputs) <weights> { nodes }``."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]>\n{body}')
    return typed(ir.from_proto(proto))


def typed(model: ir.Model) -> ir.Model:
    """With the type of every value and a name for every node, as exporters write it."""
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), check_type=True)
    model = ir.from_proto(proto)
    common.NameFixPass()(model)
    return model


def weight(model: ir.Model, name: str, array: Any) -> None:
    """Give an input-less weight declared in the text its values."""
    old = model.graph.initializers[name]
    old.const_value = ir.tensor(np.asarray(array, np.float32), name=name)
    old.shape = ir.Shape(np.shape(array))


def session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    graph = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, **feed: Any) -> list[Any]:
    return session(model).run(None, feed)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def node_of(model: ir.Model, op: str, at: int = 0) -> ir.Node:
    return [node for node in model.graph if node.op_type == op][at]


def signature(model: ir.Model) -> list[Any]:
    values = [*model.graph.inputs, *model.graph.outputs]
    return [(value.name, value.dtype) for value in values]


def assert_sound(model: ir.Model, *, loads: bool = True) -> None:
    """Checker, strict inference, strong types, unique names; onnxruntime loads it."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    assert not type_faults(model)
    nodes = [node.name for node in model.graph]
    values = [v.name for node in model.graph for v in node.outputs]
    values += [v.name for v in model.graph.inputs] + list(model.graph.initializers)
    for names in (nodes, values):
        assert len(set(names)) == len(names), "names are not unique"
    if loads:
        session(model)


def type_faults(model: ir.Model) -> list[str]:
    """Nodes whose inputs and outputs bind one type variable of ONNX to two types."""
    faults = []
    for node in model.graph.all_nodes():
        version = model.graph.opset_imports[node.domain]
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        bound: dict[str, Any] = {}
        for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
            for at, value in enumerate(values):
                if value is None or value.dtype not in FLOATS:
                    continue
                formal = formals[min(at, len(formals) - 1)].type_str
                kind = f"tensor({value.dtype.name.lower()})"
                if formal.startswith("tensor("):
                    wrong = formal != kind
                else:
                    wrong = bound.setdefault(formal, kind) != kind
                if wrong:
                    faults.append(f"{node.op_type} {node.name}: {value.name} is {kind}")
    return faults


def casts_of(model: ir.Model, value: str) -> int:
    return sum(n.op_type == "Cast" and n.inputs[0].name == value for n in model.graph)
