"""Graph pass for TensorRT: write InstanceNormalization out as statistics and a product.

As one operator it costs TensorRT a transpose, a library call and a kernel of its own for
what follows. Written out, a convolution is followed by one kernel that sums and one that
applies the statistics together with the activation and the padding that come next. Over
large pictures TensorRT splits a sum and first clears its counters, once per sum; there the
sums go by rows, then both at once by columns.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from pixelrt.engines.flops import Shapes
from pixelrt.engines.passes.clean import unused_removed

LARGE = 2**15
"""Pixels from which TensorRT splits a sum over rows and columns into several launches."""


def write_out_instance_norms(model: ir.Model, shapes: Shapes) -> ir.Model:
    """A copy of ``model`` without InstanceNormalization; equal to rounding in float32.

    ``shapes``: of every value, in the run for which the engine is made. Inputs are
    (N, C, H, W), or (N, C, L) where a group norm was made of one. Small pictures and lines: the
    variance is the mean of squared deviations. Large pictures: the mean of squares less the
    square of the mean, of values less the first pixel of their channel, so that a large
    common offset costs no digits.
    """
    model = model.clone()
    for node in list(model.graph):
        if node.op_type == "InstanceNormalization" and not node.domain:
            _write_out(model.graph, node, shapes)
    unused_removed(model)
    return model


def _write_out(graph: ir.Graph, node: ir.Node, shapes: Shapes) -> None:
    source = node.inputs[0]
    assert source is not None
    sides = shapes[str(source.name)][2:]
    writer = _Writer(graph, node, len(sides))
    large = len(sides) == 2 and prod(sides) >= LARGE
    deviation, variance = writer.by_rows(source) if large else writer.at_once(source)
    epsilon = writer.constant("epsilon", _epsilon(node))
    root = writer.add("Sqrt", "root", writer.add("Add", "safe", variance, epsilon))
    result = writer.affine(writer.add("Div", "normal", deviation, root), *node.inputs[1:])
    result.name, node.outputs[0].name = node.outputs[0].name, f"{node.outputs[0].name}_old"
    result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
    node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
    graph.insert_before(node, writer.nodes)
    graph.remove(node, safe=True)


def _epsilon(node: ir.Node) -> float:
    given = node.attributes.get("epsilon")
    return 1e-5 if given is None else given.as_float()


class _Writer:
    """Nodes and constants that take the place of one norm, named after it."""

    def __init__(self, graph: ir.Graph, norm: ir.Node, sides: int) -> None:
        self.graph = graph
        self.sides = [*range(2, 2 + sides)]
        self.name = norm.name
        self.nodes: list[ir.Node] = []

    def add(self, op: str, part: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes or None, name=f"{self.name}_{part}")
        node.outputs[0].name = f"{node.name}_out"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, part: str, value: float | list[int]) -> ir.Value:
        array = np.array(value, np.float32 if isinstance(value, float) else np.int64)
        name = f"{self.name}_{part}"
        tensor = ir.tensor(array, name=name)
        made = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        self.graph.register_initializer(made)
        return made

    def mean(self, part: str, value: ir.Value, axes: list[int]) -> ir.Value:
        return self.add("ReduceMean", part, value, self.constant(f"{part}_axes", axes), keepdims=1)

    def at_once(self, source: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Deviations from the mean, and their mean square."""
        deviation = self.add("Sub", "deviation", source, self.mean("mean", source, self.sides))
        square = self.add("Mul", "square", deviation, deviation)
        return deviation, self.mean("variance", square, self.sides)

    def by_rows(self, source: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The same from both sums by rows, laid side by side, then by columns."""
        shifted = self.add("Sub", "shifted", source, self._first_pixel(source))
        square = self.add("Mul", "square", shifted, shifted)
        rows = [self.mean("rows", shifted, [3]), self.mean("square_rows", square, [3])]
        both = self.mean("both", self.add("Concat", "beside", *rows, axis=1), [2])
        split = ir.node("Split", [both], {"axis": 1, "num_outputs": 2}, num_outputs=2)
        split.name = f"{self.name}_split"
        for output, part in zip(split.outputs, ("mean", "mean_square"), strict=True):
            output.name = f"{self.name}_{part}_out"
        self.nodes.append(split)
        mean, mean_square = split.outputs
        variance = self.add("Sub", "variance", mean_square, self.add("Mul", "of_mean", mean, mean))
        return self.add("Sub", "deviation", shifted, mean), variance

    def _first_pixel(self, source: ir.Value) -> ir.Value:
        parts = (("start", [0, 0]), ("end", [1, 1]), ("axes", [2, 3]))
        return self.add("Slice", "first", source, *(self.constant(n, v) for n, v in parts))

    def affine(self, value: ir.Value, scale: ir.Value | None, bias: ir.Value | None) -> ir.Value:
        """Times scale plus bias per channel, where they are not one and nothing."""
        for op, part, given, neutral in (("Mul", "scale", scale, 1), ("Add", "bias", bias, 0)):
            if given is None or _is_all(given, neutral):
                continue
            shape = self.constant(f"{part}_shape", [1, -1, *(1 for _ in self.sides)])
            value = self.add(op, part, value, self.add("Reshape", f"{part}_chw", given, shape))
        return value


def _is_all(value: ir.Value, number: float) -> bool:
    return value.const_value is not None and bool((value.const_value.numpy() == number).all())
