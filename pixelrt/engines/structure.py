"""What a plan is bound to of its graph, and what can be replaced in it: the weights.

TensorRT replaces the values of floating-point initializers and nothing else. Numbers that decide
a shape, and single numbers (an exponent, an epsilon, a bound), may be built into its kernels.
"""

from __future__ import annotations

import hashlib

import msgspec
import onnx_ir as ir

from pixelrt.engines.passes.formals import SHAPE_INPUTS, shape_nodes
from pixelrt.errors import InputError

FLOATS = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)
PLAIN = (
    ir.AttributeType.FLOAT,
    ir.AttributeType.INT,
    ir.AttributeType.STRING,
    ir.AttributeType.FLOATS,
    ir.AttributeType.INTS,
    ir.AttributeType.STRINGS,
)
"""Attributes whose values are said; of all others (tensors, subgraphs) the digest."""


class Structure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``parts``: every part of a graph by name, in words that are equal for equal parts alone;
    of weights, type and shape. ``weights``: SHA-256 of the values that may differ, by name.
    ``folded``: those of them that TensorRT joins with others and knows by no name of ours."""

    parts: dict[str, str]
    weights: dict[str, str]
    folded: list[str]

    def check(self, other: Structure, what: str) -> None:
        """Raise ``InputError`` unless ``other`` differs in the values of weights alone.

        ``what``: the two graphs in words, this one first.
        """
        names = [
            n for n in {**self.parts, **other.parts} if self.parts.get(n) != other.parts.get(n)
        ]
        if not names:
            return
        more = f" (and {len(names) - 1} parts more)" if len(names) > 1 else ""
        raise InputError(
            f"{what} differ in more than their weights",
            found=f"{names[0]}: {other.parts.get(names[0], 'nothing')}{more}",
            expected=self.parts.get(names[0], "nothing"),
            hint="build a plan of its own: leave --refit-from out",
        )

    def changed(self, other: Structure) -> list[str]:
        """Weights whose values ``other`` has others of, as far as TensorRT knows their names."""
        return [
            name
            for name, digest in other.weights.items()
            if self.weights.get(name) != digest and name not in other.folded
        ]


def structure_of(model: ir.Model) -> Structure:
    """Of a graph; external weights are read one after the other."""
    graph = model.graph
    parts = {
        "operator sets": str(sorted(graph.opset_imports.items())),
        "inputs": ", ".join(map(_typed, graph.inputs)),
        "outputs": ", ".join(map(_typed, graph.outputs)),
    }
    for key, function in model.functions.items():
        parts[f"function {key}"] = _digest(ir.serde.serialize_function(function))
    for node in graph:
        parts[f"what gives {', '.join(str(v.name) for v in node.outputs)}"] = _node(node)
    weights, sizes = {}, shape_nodes(graph)
    for name, value in graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        digest, kind = hashlib.sha256(tensor.tobytes()).hexdigest(), _kind(tensor)
        if _replaceable(value, sizes):
            parts[f"weights {name}"], weights[name] = kind, digest
        else:
            parts[f"constant {name}"] = f"{kind} of sha256 {digest}"
    return Structure(parts, weights, [name for name in weights if _folded(graph, name)])


def encode_structure(structure: Structure) -> bytes:
    return msgspec.json.encode(structure)


def decode_structure(raw: bytes | memoryview, place: str) -> Structure:
    """Raises ``InputError``; ``place`` is for its message."""
    try:
        return msgspec.json.decode(raw, type=Structure)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise InputError(
            f"what the plan in {place} was built from is not described",
            found=str(exc),
            hint="build it again with `pixelrt build --refit`",
        ) from exc


def _replaceable(value: ir.Value, sizes: set[ir.Node]) -> bool:
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype not in FLOATS or not tensor.shape.rank():
        return False
    return not any(
        node in sizes or at in SHAPE_INPUTS.get(node.op_type, ()) for node, at in value.uses()
    )


def _folded(graph: ir.Graph, name: str) -> bool:
    """A batch norm's four: TensorRT's parser makes one scale and one bias of them."""
    users = {node.op_type for node, _ in graph.initializers[name].uses()}
    return users == {"BatchNormalization"}


def _node(node: ir.Node) -> str:
    inputs = ", ".join("" if value is None else str(value.name) for value in node.inputs)
    operator = f"{node.domain}.{node.op_type}".removeprefix(".")
    attributes = sorted(f"{name}={_attribute(one)}" for name, one in node.attributes.items())
    return f"{node.name} = {operator}({inputs}) {' '.join(attributes)}".rstrip()


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type in PLAIN and not attribute.is_ref():
        return repr(attribute.value)
    return _digest(ir.serde.serialize_attribute(attribute))


def _typed(value: ir.Value) -> str:
    return f"{value.name}: {value.dtype}{value.shape}"


def _kind(tensor: ir.TensorProtocol) -> str:
    return f"{tensor.dtype}{tensor.shape}"


def _digest(proto: object) -> str:
    raw: bytes = proto.SerializeToString(deterministic=True)  # type: ignore[attr-defined]
    return f"sha256 {hashlib.sha256(raw).hexdigest()}"
