"""Graph pass: a float32 graph to a strongly typed float16 (or bfloat16) and float32 graph.

TensorRT 11 takes every precision from the graph. After this pass each node computes in
one of the two types, and casts stand where they meet. What stays float32 is the caller's
decision (``keep``); the pass adds only what cannot be otherwise (``fixed_nodes``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import onnx_ir as ir
import onnx_ir.passes.common as common

from pixelrt.engines.passes.formals import (
    ANY_TYPE,
    MOVES,
    Lowered,
    fixed_nodes,
    is_cast_to,
    lowered,
)
from pixelrt.engines.passes.weights import retyped, rounded

Low = Literal["float16", "bfloat16"]
Io = Literal["keep", "low"]
DTYPES: dict[Low, ir.DataType] = {
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
FLOAT = ir.DataType.FLOAT
SOURCES = ("Cast", "ConstantOfShape")
"""Convertible nodes that read no float: their values are exact in both types."""


def to_low(
    model: ir.Model, keep: Collection[str], *, dtype: Low = "float16", io: Io = "keep"
) -> ir.Model:
    """A copy of ``model`` that computes in ``dtype`` but for the nodes named in ``keep``.

    ``model`` is as ``normalised`` gives it. Every value gets at most one cast per
    direction, every weight is rounded once, and is held in float32 as well only where a
    float32 node reads it. ``io``: ``keep`` leaves the declared types of inputs and outputs,
    ``low`` makes the float32 ones ``dtype``. Applied to its own result it changes nothing.
    """
    model = model.clone()
    _Conversion(model, frozenset(keep), DTYPES[dtype], io).run()
    common.RemoveUnusedNodesPass()(model)
    return model


def normalised(model: ir.Model) -> ir.Model:
    """A copy without functions and ``Constant`` nodes, all nodes and values named and typed.

    External weights are read, so that the copy stands alone.
    """
    model = model.clone()
    ir.external_data.load_to_model(model)
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    if any(v.dtype is None for node in model.graph.all_nodes() for v in node.outputs if v.uses()):
        model = common.ShapeInferencePass()(model).model
    return model


class _Conversion:
    """One run of the pass. Types are read from ``was_float`` while the graph changes."""

    def __init__(self, model: ir.Model, keep: frozenset[str], low: ir.DataType, io: Io) -> None:
        self.graph = model.graph
        self.low = low
        self.io_low = io == "low"
        self.names = _names(model)
        self.was_float = _float_values(model)
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        keep |= fixed_nodes(model, low).keys()
        opsets = dict(self.graph.opset_imports)
        self.forms: dict[ir.Node, Lowered] = {}
        for node in self.graph:
            form = None if node.name in keep else lowered(node, opsets, low)
            if form is not None:
                self.forms[node] = form

    def run(self) -> None:
        self._leave_moves_between_float_nodes()
        self._set_types()
        self._declare_outputs()
        for node in list(self.graph.all_nodes()):
            self._connect(node)
        self._drop_unused_weights()

    def _leave_moves_between_float_nodes(self) -> None:
        """What only moves or makes data stays where that saves a cast or a rounding."""
        stay = True
        while stay:
            stay = False
            for node in list(self.forms):
                if self._better_float(node):
                    del self.forms[node]
                    stay = True

    def _better_float(self, node: ir.Node) -> bool:
        if node.op_type not in (*MOVES, *SOURCES):
            return False
        wanted = self._readers(node)
        if node.op_type in MOVES and self._from_float(node) and FLOAT in wanted:
            return True
        return self.low not in wanted and (node.op_type in SOURCES or self._from_float(node))

    def _from_float(self, node: ir.Node) -> bool:
        """Reads a float32 value, or only what is exact or rounded once in either type."""
        data = [v for v in node.inputs if v in self.was_float and not self._is_source(v)]
        return not data or any(not self._stored_low(value) for value in data)

    def _is_source(self, value: ir.Value) -> bool:
        node = value.producer()
        return _is_weight(value) or (node in self.forms and node.op_type in SOURCES)

    def _readers(self, node: ir.Node) -> list[ir.DataType | None]:
        wanted = [self._wanted(user, at) for v in node.outputs for user, at in v.uses()]
        return wanted + [self._declared for v in node.outputs if v.is_graph_output()]

    def _stored_low(self, value: ir.Value) -> bool:
        node = value.producer()
        if node is None:
            return self.io_low and value.is_graph_input()
        form = self.forms.get(node)
        return form is not None and value.index() in form.outputs

    def _wanted(self, node: ir.Node, at: int) -> ir.DataType | None:
        """Type in which ``node`` reads a float32 input; ``None``: any."""
        if node.op_type in ANY_TYPE:
            return None
        form = self.forms.get(node)
        return self.low if form is not None and at in form.inputs else FLOAT

    @property
    def _declared(self) -> ir.DataType:
        return self.low if self.io_low else FLOAT

    def _set_types(self) -> None:
        for value in self.was_float:
            if self._stored_low(value):
                value.type = ir.TensorType(self.low)
        for node in self.forms:
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", self.low)
            elif node.op_type == "ConstantOfShape":
                fill = node.attributes["value"].as_tensor()
                node.attributes["value"] = ir.AttrTensor("value", rounded(fill, self.low, None))

    def _declare_outputs(self) -> None:
        """Casts at the end take the declared names; the values before them get new ones."""
        for at, value in enumerate(self.graph.outputs):
            if value not in self.was_float or value.dtype == self._declared:
                continue
            if value.is_graph_input() or _is_weight(value):
                continue
            name = str(value.name)
            if (value, self._declared) not in self.casts:
                value.name = self._unique(f"{name}_{_short(value.dtype)}")
                cast = self._cast(value, self._declared, self._unique(f"{name}_out"))
                cast.name = name
                self.casts[value, self._declared] = cast
            self.graph.outputs[at] = self.casts[value, self._declared]

    def _connect(self, node: ir.Node) -> None:
        for at, value in enumerate(node.inputs):
            if value is None or value not in self.was_float:
                continue
            wanted = self._wanted(node, at)
            if wanted is not None and value.dtype != wanted:
                node.replace_input_with(at, self._as(value, wanted))

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if (value, dtype) not in self.casts:
            self.casts[value, dtype] = self._make(value, dtype)
        return self.casts[value, dtype]

    def _make(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = self._unique(f"{value.name}_{_short(dtype)}")
        if _is_weight(value):
            return self._make_weight(value, dtype, name)
        before = value.producer()
        if is_cast_to(before, FLOAT) and before is not None and before.inputs[0] is not None:
            narrow = before.inputs[0]
            if narrow.dtype == dtype:
                return narrow
        return self._cast(value, dtype, name)

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        before = value.producer()
        cast = ir.node("Cast", [value], {"to": dtype}, name=self._unique(f"cast_{name}"))
        result = cast.outputs[0]
        result.name, result.shape, result.type = name, value.shape, ir.TensorType(dtype)
        if before is None:
            self.graph.insert_before(self.graph[0], cast)
        else:
            self.graph.insert_after(before, cast)
        return result

    def _make_weight(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        assert value.const_value is not None
        tensor = retyped(value.const_value, dtype, name)
        weight = ir.Value(
            name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor
        )
        self.graph.register_initializer(weight)
        return weight

    def _drop_unused_weights(self) -> None:
        for (value, _), copy in self.casts.items():
            if not _is_weight(value) or value.uses() or value.is_graph_output():
                continue
            name = str(value.name)
            del self.graph.initializers[name]
            del self.graph.initializers[str(copy.name)]
            copy.name = name
            assert copy.const_value is not None
            copy.const_value.name = name
            self.graph.register_initializer(copy)

    def _unique(self, name: str) -> str:
        number, candidate = 1, name
        while candidate in self.names:
            number, candidate = number + 1, f"{name}_{number}"
        self.names.add(candidate)
        return candidate


def _short(dtype: ir.DataType | None) -> str:
    assert dtype is not None
    return {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}[dtype.name]


def _is_weight(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input()


def _names(model: ir.Model) -> set[str]:
    names = {str(node.name) for node in model.graph.all_nodes()}
    names |= {str(v.name) for node in model.graph.all_nodes() for v in node.outputs}
    for graph in (model.graph, *model.graph.subgraphs()):
        names |= {str(value.name) for value in graph.inputs} | set(graph.initializers)
    return names


def _float_values(model: ir.Model) -> dict[ir.Value, None]:
    """Float32 values that the main graph owns, in order."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph for value in node.outputs]
    return {value: None for value in values if value.dtype == FLOAT}
