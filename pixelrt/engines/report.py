"""What TensorRT made of a graph: its engine layers, from the builder's own words.

With detailed profiling verbosity the builder's log ends in one line per engine layer, with
inputs and outputs, data types and the ONNX nodes that the layer came from. The engine
inspector prints the same lines. This proves which precision runs; no GPU is needed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec

from pixelrt.errors import BackendError, CheckError, InputError

Precision = Literal["float32", "float16", "bfloat16"]

LEAST_SHARE = 0.9
"""Of the multiply-adds; what a network in half precision may keep in float32 is below a tenth."""

_DTYPES = {
    "float": "float32",
    "fp32": "float32",
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp8": "float8",
    **{name: name for name in ("int64", "int32", "int8", "uint8", "bool")},
}
_SIZES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2}
_FLOATS = ("float32", "float16", "bfloat16", "float8")

_NEXT_SECTIONS = ("I/O Tensors:", "Bindings:", "Engine Metadata:")
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), "
    r"Inputs: \[(?P<inputs>|.*?\})\], (?:Constants: \[(?P<constants>|.*?\})\], )?"
    r"Outputs: \[(?P<outputs>|.*?\})\](?P<rest>, .*|$)"
)
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<dims>[-\d,]*)\]"
    r"(?:, Strides: [^\]]*\], StrideOrder: [^\]]*\])?"
    r", (?:Datatype|Format/Datatype): (?P<dtype>[^,}]+)"
)
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\x1f|\[ONNX Layer: |[,;\s]|$)")
_PRODUCT = re.compile(r"corr|conv|gemm|matmul|matrixmultiply|mha|runtime_fusion", re.IGNORECASE)
_ATTENTION = re.compile(r"_mha|attention", re.IGNORECASE)


@dataclass(frozen=True)
class Tensor:
    """An operand of an engine layer; -1 stands for a dimension known at run time only."""

    name: str
    dims: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int | None:
        if any(dim < 0 for dim in self.dims):
            return None
        return math.prod(self.dims) * _SIZES.get(self.dtype, 1)


@dataclass(frozen=True)
class Layer:
    """One launch of the engine; ``nodes``: the ONNX nodes it came from."""

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The type that its products run in; empty where nothing is floating-point.

        That of two inputs that agree (attention, a residual); else of the weights, since a
        cast may be fused in front of the inputs; else of the first input. A constant in
        an attention is a bias or mask and says nothing.
        """
        inputs = [t.dtype for t in self.inputs if t.dtype in _FLOATS]
        weights = [t for t in self.constants if t.dtype in _FLOATS and _is_matrix(t)]
        if inputs and (_ATTENTION.search(self.name) or inputs[:1] == inputs[1:2]):
            return inputs[0]
        if weights:
            return max(weights, key=lambda t: math.prod(t.dims)).dtype
        outputs = [t.dtype for t in self.outputs if t.dtype in _FLOATS]
        return next(iter(inputs + outputs), "")


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product of the graph and the type it was asked to run in."""

    node: str
    multiply_adds: int
    dtype: str


@dataclass(frozen=True)
class EngineReport:
    """Layers of an engine, and the products of the graph that they carry out.

    ``shape``: the batch, height and width at which ``products`` were counted.
    """

    layers: tuple[Layer, ...]
    products: tuple[Product, ...] = ()
    shape: str = ""

    @property
    def by_kind(self) -> dict[str, int]:
        return dict(Counter(layer.kind for layer in self.layers).most_common())

    @property
    def bytes_written(self) -> int | None:
        """Of all outputs of all layers; ``None`` where a dimension is known at run time only."""
        sizes = [tensor.bytes for layer in self.layers for tensor in layer.outputs]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    @property
    def fused_attentions(self) -> int:
        return sum(bool(_ATTENTION.search(layer.name)) for layer in self.layers)

    @property
    def nodes(self) -> dict[str, list[str]]:
        """ONNX node → the engine layers that came from it."""
        found: dict[str, list[str]] = {}
        for layer in self.layers:
            for node in layer.nodes:
                found.setdefault(node, []).append(layer.name)
        return found

    def runs_in(self) -> Iterator[tuple[Product, str]]:
        """Each product with the type it runs in; empty where no layer names its node.

        Products of constants alone are computed by the builder and are in no layer.
        """
        homes: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for node in layer.nodes:
                homes.setdefault(node, []).append(layer)
        for product in self.products:
            layers = homes.get(product.node, [])
            real = [x for x in layers if _PRODUCT.search(x.kind) or _PRODUCT.search(x.name)]
            chosen = (real or layers)[:1]
            yield product, chosen[0].precision if chosen else ""

    @property
    def multiply_adds(self) -> dict[str, int]:
        """By the type they run in; ``unplaced`` for those of no layer."""
        total: Counter[str] = Counter()
        for product, dtype in self.runs_in():
            total[dtype or "unplaced"] += product.multiply_adds
        return dict(total.most_common())

    def share(self, dtype: str) -> float:
        """Of the multiply-adds that are in a layer, 0 to 1."""
        work = {name: count for name, count in self.multiply_adds.items() if name != "unplaced"}
        return work.get(dtype, 0) / max(sum(work.values()), 1)

    def as_json(self) -> dict[str, Any]:
        return {
            "layers": len(self.layers),
            "layers_by_kind": self.by_kind,
            "bytes_written": self.bytes_written,
            "fused_attentions": self.fused_attentions,
            "multiply_adds": self.multiply_adds,
            "multiply_adds_at": self.shape,
            "nodes": self.nodes,
            "products": [asdict(product) for product in self.products],
            "engine_layers": [asdict(layer) for layer in self.layers],
        }

    def text(self) -> str:
        """The table for a person."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.by_kind.items())
        written = self.bytes_written
        rows = [
            ("engine layers", f"{len(self.layers)} ({kinds})"),
            ("written", "not known for a dynamic plan" if written is None else megabytes(written)),
            ("attention", f"{self.fused_attentions} fused"),
            ("multiply-adds", self._work_text()),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _work_text(self) -> str:
        work = self.multiply_adds
        total = max(sum(work.values()), 1)
        parts = [f"{100 * count / total:.1f} % {name}" for name, count in work.items()]
        return f"{total / 1e9:.3f} G at {self.shape}: {', '.join(parts)}" if work else "none"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def report_of(raw: bytes) -> EngineReport:
    """A report from the JSON of its ``as_json``. Raises ``InputError`` for anything else."""

    class Written(msgspec.Struct):
        engine_layers: tuple[Layer, ...]
        products: tuple[Product, ...]
        multiply_adds_at: str

    try:
        told = msgspec.json.decode(raw, type=Written)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise InputError("this is no report of a build", found=str(exc)) from exc
    return EngineReport(told.engine_layers, told.products, told.multiply_adds_at)


def node_table(report: EngineReport) -> str:
    """One line per ONNX node: the engine layers that came from it."""
    nodes = report.nodes
    width = max((len(node) for node in nodes), default=0)
    return "\n".join(f"{node:<{width}}  {', '.join(layers)}" for node, layers in nodes.items())


def parse_layers(text: str) -> tuple[Layer, ...]:
    """The layers of a build log's or an inspector's "Layers:" section.

    Raises ``BackendError`` where there is no such section or a line of it is not understood:
    a report that silently leaves a layer out would prove nothing.
    """
    lines = iter(text.split("\n"))
    for line in lines:
        if line.strip() == "Layers:":
            break
    else:
        raise BackendError("TensorRT said nothing about its layers", found=text[:200])
    layers = []
    for line in lines:
        if line.strip() in _NEXT_SECTIONS:
            break
        if line.strip():
            layers.append(_parse_layer(line))
    return tuple(layers)


def _parse_layer(line: str) -> Layer:
    found = _LAYER.match(line)
    if not found:
        raise BackendError("a line of TensorRT's layer information is new to us", found=line[:200])
    inputs, constants, outputs = (
        _parse_tensors(found[part] or "") for part in ("inputs", "constants", "outputs")
    )
    metadata = found["rest"].partition("Metadata: ")[2]
    nodes = tuple(dict.fromkeys(_NODE.findall(metadata)))
    return Layer(found["name"], found["kind"], inputs, constants, outputs, nodes)


def _parse_tensors(text: str) -> tuple[Tensor, ...]:
    tensors = tuple(_parse_tensor(found) for found in _TENSOR.finditer(text))
    if len(tensors) != text.count("{ Name: "):
        raise BackendError("a tensor of TensorRT's layer information is new to us", found=text)
    return tensors


def _parse_tensor(found: re.Match[str]) -> Tensor:
    dims = tuple(int(dim) for dim in found["dims"].split(",") if dim)
    return Tensor(found["name"], dims, _dtype(found["dtype"]))


def _dtype(words: str) -> str:
    """``Half``, or ``Row major linear FP16 format`` as TensorRT 10 says it."""
    said = words.strip().lower()
    return next((_DTYPES[word] for word in said.split() if word in _DTYPES), said)


def _is_matrix(tensor: Tensor) -> bool:
    return sum(dim > 1 for dim in tensor.dims) >= 2


def check_precision(
    report: EngineReport, requested: Precision, *, least_share: float = LEAST_SHARE
) -> None:
    """Raise ``CheckError`` where the engine does not run as it was asked to.

    Every product must run in the type that its node has in the graph, and at least
    ``least_share`` of the multiply-adds in ``requested``. A graph without products passes.
    """
    placed = [(product, dtype) for product, dtype in report.runs_in() if dtype]
    if report.products and not placed:
        raise CheckError(
            "which precision the engine runs in cannot be told",
            found=f"none of {len(report.products)} products is in an engine layer by name",
        )
    wrong = [(product, dtype) for product, dtype in placed if dtype != product.dtype]
    if wrong:
        names = [f"{p.node} in {dtype} instead of {p.dtype}" for p, dtype in wrong]
        raise CheckError(
            "TensorRT runs parts of the graph in another precision than the graph says",
            found=_some(names),
        )
    if placed and report.share(requested) < least_share:
        raise CheckError(
            f"the engine does not run in {requested}",
            found=f"{100 * report.share(requested):.1f} % of the multiply-adds",
            expected=f"at least {100 * least_share:.0f} %",
            hint="TensorRT takes the types of the graph: convert the graph before the build",
        )


def _some(names: Sequence[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
