"""One segment of a network as a graph, with what its tiles need to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from pixelrt.export.to_onnx import OPSET
from pixelrt.manifest import GroupNorm
from pixelrt.spec import TensorSpec

IR_VERSION = 10
MEAN, INVERSE = "mean", "inverse"
BYTES = 4
Span = tuple[int, int]
"""Pixels ``first <= p < end`` along one axis."""
Spans = dict[str, Span]
"""Of every input that is read in tiles: what some pixels of a value depend on."""
PROBE = 1000
"""A unit so far from the picture's edges that nothing ends there."""


@dataclass(frozen=True, eq=False)
class Flow:
    """A value in a segment: (B, channels, H, W) with ``pixels`` of them to a unit, on each axis;
    0 where it is read whole. ``reads``: from some of its pixels to what they depend on."""

    value: ir.Value
    channels: int
    pixels: int
    reads: Callable[[Span], Spans]

    @property
    def bytes(self) -> int:
        return self.channels * self.pixels**2 * BYTES


@dataclass(frozen=True)
class Built:
    """A finished segment; the fields are those of ``manifest.Segment``."""

    model: ir.Model
    inputs: list[TensorSpec]
    output: TensorSpec
    pixels: tuple[int, int]
    halo: dict[str, int]
    memory: int
    memory_pair: int
    norm: GroupNorm | None


@dataclass
class SegmentGraph:
    """Puts a segment together; every method adds what it says and gives the result.

    ``pixels``: of the inputs that are read in tiles, to a unit.
    """

    pixels: int = 1
    _inputs: list[Flow] = field(default_factory=list)
    _nodes: list[ir.Node] = field(default_factory=list)
    _weights: list[ir.Value] = field(default_factory=list)
    _largest: int = 0
    _norm: GroupNorm | None = None
    _pair: int = 0

    def value(self, name: str, channels: int, *, whole: bool = False) -> Flow:
        """An input; ``whole``: read whole instead of in tiles."""
        prefix = f"{self.pixels}*" if self.pixels > 1 else ""
        sides = ["k", "l"] if whole else [f"{prefix}h", f"{prefix}w"]
        value = _value(name, ["B", channels, *sides])
        flow = Flow(value, channels, 0 if whole else self.pixels, lambda span: {name: span})
        self._inputs.append(flow)
        return flow

    def norm(self, x: Flow, norm: nn.GroupNorm) -> Flow:
        """``x``, an input, normalised with statistics that are inputs of their own."""
        assert self._norm is None
        assert x.value.name is not None
        self._norm = GroupNorm(x.value.name, norm.num_groups, float(norm.eps))
        mean, inverse = (_value(name, ["B", x.channels, 1, 1]) for name in (MEAN, INVERSE))
        self._inputs += [Flow(each, x.channels, 0, lambda span: {}) for each in (mean, inverse)]
        shape = (1, x.channels, 1, 1)
        scale = self._node("Mul", [inverse, self._weight(norm.weight.reshape(shape))])
        centred = self._node("Sub", [x.value, mean])
        scaled = self._node("Mul", [centred, scale])
        shifted = self._node("Add", [scaled, self._weight(norm.bias.reshape(shape))])
        return self._same(shifted, x)

    def silu(self, x: Flow) -> Flow:
        return self._same(self._node("Mul", [x.value, self._node("Sigmoid", [x.value])]), x)

    def add(self, x: Flow, y: Flow) -> Flow:
        total = self._node("Add", [x.value, y.value])

        def reads(span: Span) -> Spans:
            return _joined(x.reads(span), y.reads(span))

        return self._made(Flow(total, x.channels, x.pixels, reads))

    def conv(self, x: Flow, conv: nn.Conv2d, pads: Sequence[int] | None = None) -> Flow:
        """``pads`` (top, left, bottom, right): zeros beyond the picture, in place of the
        convolution's own."""
        size, step = conv.kernel_size[0], conv.stride[0]
        assert isinstance(conv.padding, tuple)
        assert conv.kernel_size == (size, size)
        assert conv.stride == (step, step)
        top, left, bottom, right = pads or [*conv.padding, *conv.padding]
        attributes = {
            "kernel_shape": [size, size],
            "strides": [step, step],
            "pads": [top, left, bottom, right],
        }
        weights = [self._weight(one) for one in (conv.weight, conv.bias) if one is not None]
        made = self._node("Conv", [x.value, *weights], attributes)
        before = max(top, left)

        def reads(span: Span) -> Spans:
            first, end = span
            return x.reads((first * step - before, (end - 1) * step - before + size))

        return self._made(Flow(made, conv.out_channels, x.pixels // step, reads))

    def linear(self, x: Flow, linear: nn.Linear) -> Flow:
        """Over the channels of every pixel."""
        weight = self._weight(linear.weight[:, :, None, None])
        bias = [self._weight(linear.bias)] if linear.bias is not None else []
        made = self._node("Conv", [x.value, weight, *bias], {"kernel_shape": [1, 1]})
        return self._made(Flow(made, linear.out_features, x.pixels, x.reads))

    def doubled(self, x: Flow) -> Flow:
        """Every pixel four times, as nearest interpolation does."""
        scales = self._constant(np.array([1, 1, 2, 2], np.float32))
        attributes = {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        }
        made = self._node("Resize", [x.value, None, scales], attributes)

        def reads(span: Span) -> Spans:
            return x.reads((span[0] // 2, -(-span[1] // 2)))

        return self._made(Flow(made, x.channels, 2 * x.pixels, reads))

    def attend(self, query: Flow, key: Flow, value: Flow) -> Flow:
        """Attention of one head: ``softmax(q k / sqrt(C)) v`` for every pixel of ``query`` over
        all pixels of ``key`` and ``value``, which are read whole."""
        flat = self._constant(np.array([0, 0, -1], np.int64))
        scale = self._constant(np.array(query.channels**-0.5, np.float32))
        sides = self._node("Shape", [query.value])
        sides.type = ir.TensorType(ir.DataType.INT64)
        rows, columns, values = (
            self._node("Reshape", [each.value, flat]) for each in (query, key, value)
        )
        scaled = self._node("Mul", [rows, scale])
        scores = self._node("MatMul", [self._turned(scaled), columns])
        shares = self._node("Softmax", [scores], {"axis": -1})
        found = self._node("MatMul", [shares, self._turned(values)])
        made = self._node("Reshape", [self._turned(found), sides])
        self._pair = 2 * BYTES  # scores and shares
        return self._same(made, query)

    def built(self, x: Flow, name: str) -> Built:
        """The segment that gives ``x`` under ``name``."""
        prefix = f"{x.pixels}*" if x.pixels > 1 else ""
        x.value.name = name
        x.value.type = ir.TensorType(ir.DataType.FLOAT)
        x.value.shape = ir.Shape(["B", x.channels, f"{prefix}h", f"{prefix}w"])
        # Norms last, as the manifest wants them.
        inputs = sorted((f.value for f in self._inputs), key=lambda v: v.name in (MEAN, INVERSE))
        graph = ir.Graph(
            inputs,
            [x.value],
            nodes=self._nodes,
            initializers=self._weights,
            opset_imports={"": OPSET},
            name=name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="pixelrt")
        specs = [_spec(value) for value in inputs]
        return Built(
            model,
            specs,
            _spec(x.value),
            (self.pixels, x.pixels),
            self._halo(x),
            self._memory(),
            self._pair,
            self._norm,
        )

    def _halo(self, x: Flow) -> dict[str, int]:
        """In units, for each input that is read in tiles."""
        spans = x.reads((PROBE * x.pixels, (PROBE + 1) * x.pixels))
        own = PROBE * self.pixels, (PROBE + 1) * self.pixels
        beyond = {name: max(own[0] - first, end - own[1]) for name, (first, end) in spans.items()}
        return {name: -(-pixels // self.pixels) for name, pixels in beyond.items()}

    def _memory(self) -> int:
        """Bytes to a unit: the inputs, and what a gate needs: two values to make a third."""
        return sum(flow.bytes for flow in self._inputs) + 3 * self._largest

    def _made(self, flow: Flow) -> Flow:
        self._largest = max(self._largest, flow.bytes)
        return flow

    def _same(self, value: ir.Value, x: Flow) -> Flow:
        """``value`` has the size of ``x`` and depends on the same pixels."""
        return self._made(Flow(value, x.channels, x.pixels, x.reads))

    def _turned(self, x: ir.Value) -> ir.Value:
        return self._node("Transpose", [x], {"perm": [0, 2, 1]})

    def _node(
        self, kind: str, inputs: list[ir.Value | None], attributes: dict[str, Any] | None = None
    ) -> ir.Value:
        node = ir.node(kind, inputs, attributes or {})
        node.outputs[0].name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    def _weight(self, weight: Tensor) -> ir.Value:
        return self._constant(weight.detach().numpy())

    def _constant(self, array: np.ndarray) -> ir.Value:
        name = f"weight_{len(self._weights)}"
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        self._weights.append(value)
        return value


def _value(name: str, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def _spec(value: ir.Value) -> TensorSpec:
    assert value.shape is not None
    dims = tuple(d if isinstance(d, int) else str(d) for d in value.shape)
    return TensorSpec(value.name or "", "float32", dims)


def _joined(a: Spans, b: Spans) -> Spans:
    spans = dict(a)
    for name, (first, end) in b.items():
        before = spans.get(name, (first, end))
        spans[name] = min(first, before[0]), max(end, before[1])
    return spans
