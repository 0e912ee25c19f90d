"""Mixed precision: what becomes float16, what stays float32, and why.

Three things decide, in this order. Islands: parts known to need float32 (``islands.py``).
Calibration: values and weights that on real images do not fit the type. The target: the
converted graph is compared with the float32 one on every sample, and where it falls
short, the smallest set of further nodes that has to stay float32 is searched for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript.version_converter import convert_version

from pixelrt.engines.calibrate import Feed, Range, Runner, measure, measure_shapes
from pixelrt.engines.flops import multiply_adds
from pixelrt.engines.islands import DEFAULT_ISLANDS, Island, island_nodes
from pixelrt.engines.passes.emulate import LOWS, emulate
from pixelrt.engines.passes.formals import ANY_TYPE, MOVES, fixed_nodes
from pixelrt.engines.passes.fp16 import DTYPES, Io, Low, normalised, to_low
from pixelrt.engines.search import Keep, smallest_keep
from pixelrt.errors import FidelityError, UsageError
from pixelrt.fidelity import Comparison, compare, compare_relative

MARGIN = 4.0
"""A value may reach this part of the type's largest number: other images go further."""
WORST_ERROR = 4.0
"""Relative rounding error of a whole tensor, in units of the type's roundoff."""

LIMITS = {
    ir.DataType.FLOAT16: (65504.0, 2.0**-11),
    ir.DataType.BFLOAT16: (3.3895e38, 2.0**-8),
}
"""Largest number and unit roundoff of a type."""
BFLOAT16_OPSET = 22
"""ONNX lets convolutions and most others take bfloat16 from this operator set on."""


@dataclass(frozen=True)
class Policy:
    """What to ask of a conversion.

    ``target_db``: least PSNR against float32 on every sample. ``io``: ``keep`` the declared
    types of inputs and outputs, or make them ``low`` too. ``evaluations``: most attempts of
    the search to give a kept part back. ``relative``: outputs are tensors without a scale of
    their own, each judged in units of its largest magnitude. ``kept``: these nodes and no others
    stay float32, as another conversion of the same graph decided; nothing is searched for.
    """

    dtype: Low = "float16"
    target_db: float = 60.0
    islands: tuple[Island, ...] = DEFAULT_ISLANDS
    io: Io = "keep"
    evaluations: int = 64
    relative: bool = False
    kept: tuple[Kept, ...] | None = None


@dataclass(frozen=True)
class Kept:
    """A node that stayed float32."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Converted:
    """A mixed graph and how it compares with the float32 one.

    ``kept`` is in graph order. ``fidelity`` has one entry per sample, that of its worst output,
    with every intermediate value rounded as the graph says and float32 accumulation
    (``passes/emulate.py``). ``fp16_share``: part of the multiply-adds of convolutions and
    matrix products that is in ``dtype``; ``casts``: Cast nodes in the graph.
    """

    model: ir.Model
    kept: tuple[Kept, ...]
    fidelity: tuple[Comparison, ...]
    fp16_share: float
    casts: int
    dtype: Low

    def describe(self) -> str:
        """A few lines for a report: share, fidelity, and what was kept by reason."""
        worst = min(self.fidelity, key=lambda c: c.psnr)
        lines = [
            f"{self.dtype}: {self.fp16_share:.1%} of multiply-adds, {self.casts} casts, "
            f"{worst} on the worst of {len(self.fidelity)} samples"
        ]
        groups = Counter((kept.reason, kept.op) for kept in self.kept)
        lines += [
            f"  float32: {number} x {op} ({reason})" for (reason, op), number in groups.items()
        ]
        return "\n".join(lines)


def convert(model: ir.Model, samples: Sequence[Feed], policy: Policy | None = None) -> Converted:
    """Convert a float32 graph; ``model`` is not changed.

    ``samples`` map the graph's input names to arrays: real images, small ones, since all
    intermediate values are looked at. An integer output is judged before it is rounded to
    levels, on the scale 0 to 255; a float one on the scale 0 to 1, or as ``policy.relative``
    says. For bfloat16 the graph is raised to operator set 22.
    Raises ``UsageError`` without samples, ``FidelityError`` where the float32 graph itself
    gives NaN or infinity, or where inputs and outputs in ``dtype`` alone, or the nodes that
    ``policy.kept`` leaves, miss the target.
    """
    policy = policy or Policy()
    if not samples:
        raise UsageError("mixed precision needs at least one sample image")
    work = _Work(_prepared(model, policy.dtype), samples, policy)
    if policy.kept is not None:
        return _as_decided(work, policy, {one.node: one.reason for one in policy.kept})
    keep = work.decide()
    missing = work.convertible(keep)
    limit = 10 ** (-policy.target_db / 10)
    if missing and work.error(frozenset(keep)) > limit:
        keep |= work.search(keep, missing, limit)
    result = work.finish(keep)
    worst = min(result.fidelity, key=lambda c: c.psnr)
    if worst.psnr < policy.target_db:
        raise FidelityError(
            f"the graph misses its target even with all nodes in float32: {worst}",
            expected=f"{policy.target_db:g} dB",
            hint='keep inputs and outputs in float32 (io="keep")',
        )
    return result


def _as_decided(work: _Work, policy: Policy, keep: dict[str, str]) -> Converted:
    result = work.finish(keep)
    worst = min(result.fidelity, key=lambda c: c.psnr)
    if worst.psnr < policy.target_db:
        raise FidelityError(
            "with these weights the graph needs other nodes in float32 than the plan has",
            found=f"{worst} on the worst of {len(result.fidelity)} samples",
            expected=f"{policy.target_db:g} dB",
            hint="build a plan of its own: leave --refit-from out",
        )
    return result


def _prepared(model: ir.Model, dtype: Low) -> ir.Model:
    model = normalised(model)
    if dtype == "bfloat16" and model.graph.opset_imports.get("", 1) < BFLOAT16_OPSET:
        convert_version(model, BFLOAT16_OPSET)
    return model


class _Work:
    """One conversion: the normalised graph and what is measured on it."""

    def __init__(self, model: ir.Model, samples: Sequence[Feed], policy: Policy) -> None:
        self.model = model
        self.samples = samples
        self.policy = policy
        self.low = DTYPES[policy.dtype]
        self.probes = [_probe(output) for output in model.graph.outputs]
        self.expected = self._results(model)
        if any(not np.isfinite(a).all() for sample in self.expected for a in sample):
            raise FidelityError(
                "the float32 graph gives NaN or infinity on a sample",
                expected="finite outputs to compare with",
            )
        self.shapes = measure_shapes(model, samples[0])
        self.cost = multiply_adds(model.graph, self.shapes)

    def decide(self) -> dict[str, str]:
        """Nodes kept by necessity, islands and calibration: name to reason."""
        keep = fixed_nodes(self.model, self.low)
        for name, reason in island_nodes(self.model.graph, self.policy.islands).items():
            keep.setdefault(name, reason)
        ranges = measure(self.model, self.samples, self.low, self.shapes)
        for name, reason in fenced(self.model.graph, ranges, self.low).items():
            keep.setdefault(name, reason)
        return keep

    def convertible(self, keep: Iterable[str]) -> list[str]:
        """Computing nodes that are converted with these kept."""
        mixed = self._convert(frozenset(keep))
        names = {node.name for node in self.model.graph}
        return [str(n.name) for n in mixed.graph if _computes_low(n) and n.name in names]

    def error(self, keep: Keep) -> float:
        comparisons = self._compare(self._convert(keep))
        return max(float("inf") if c.non_finite else 10 ** (-c.psnr / 10) for c in comparisons)

    def search(self, keep: dict[str, str], nodes: list[str], limit: float) -> dict[str, str]:
        base = frozenset(keep)
        alone = smallest_keep(
            nodes,
            self.cost,
            lambda more: self.error(base | more),
            limit,
            self.policy.evaluations,
        )
        return {
            name: f"fidelity: {_decibels(error)} with only its part of the graph "
            f"in {self.policy.dtype}, target {self.policy.target_db:g} dB"
            for name, error in alone.items()
        }

    def finish(self, keep: dict[str, str]) -> Converted:
        mixed = self._convert(frozenset(keep))
        low = {str(node.name) for node in mixed.graph if _computes_low(node)}
        total = sum(self.cost.values())
        inside = sum(cost for name, cost in self.cost.items() if name in low)
        kept = tuple(
            Kept(str(node.name), node.op_type, keep[str(node.name)])
            for node in self.model.graph
            if node.name in keep and node.op_type not in ANY_TYPE
        )
        return Converted(
            model=mixed,
            kept=kept,
            fidelity=tuple(self._compare(mixed)),
            fp16_share=inside / total if total else 1.0,
            casts=sum(node.op_type == "Cast" for node in mixed.graph),
            dtype=self.policy.dtype,
        )

    def _convert(self, keep: Keep) -> ir.Model:
        return to_low(self.model, keep, dtype=self.policy.dtype, io=self.policy.io)

    def _compare(self, mixed: ir.Model) -> list[Comparison]:
        results = self._results(emulate(mixed))
        return [
            min(map(self._judge, range(len(self.probes)), want, got), key=lambda c: c.psnr)
            for want, got in zip(self.expected, results, strict=True)
        ]

    def _judge(self, output: int, want: np.ndarray, got: np.ndarray) -> Comparison:
        if self.policy.relative:
            return compare_relative(want, got)
        return compare(want, got, peak=self.probes[output][1])

    def _results(self, model: ir.Model) -> list[list[np.ndarray]]:
        names = [name for name, _ in self.probes]
        runner = Runner(model, list(dict.fromkeys(names)))
        results = [runner(sample) for sample in self.samples]
        return [[result[name] for name in names] for result in results]


def fenced(graph: ir.Graph, ranges: dict[str, Range], low: ir.DataType) -> dict[str, str]:
    """Nodes that make or read a value which does not fit ``low``: name to reason."""
    found: dict[str, str] = {}
    values = [*graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    for value in values:
        reason = _misfit(str(value.name), ranges.get(str(value.name)), low)
        if not reason:
            continue
        nodes = [user for user, _ in value.uses() if user.graph is graph]
        producer = value.producer()
        for node in nodes if producer is None else [producer, *nodes]:
            if node.op_type not in ANY_TYPE:
                found.setdefault(str(node.name), reason)
    return found


def _misfit(name: str, found: Range | None, low: ir.DataType) -> str:
    if found is None:
        return ""
    kind = low.name.lower()
    largest, roundoff = LIMITS[low]
    if found.max_abs > largest / MARGIN:
        return f"range: {name} reaches {found.max_abs:.3g}, {kind} ends at {largest:.3g}"
    if found.error > WORST_ERROR * roundoff:
        return (
            f"rounding: {name} in {kind} has a relative error of {found.error:.1e}; "
            f"its values go from {found.low:.1e} to {found.max_abs:.1e}"
        )
    return ""


def _computes_low(node: ir.Node) -> bool:
    """Does arithmetic on float16 or bfloat16 values."""
    if node.op_type in MOVES or node.op_type in ANY_TYPE:
        return False
    return any(v is not None and v.dtype in LOWS for v in (*node.inputs, *node.outputs))


def _probe(output: ir.Value) -> tuple[str, float]:
    """Value to compare for an output, and its peak: levels before they are rounded."""
    node, value = output.producer(), output
    if output.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE, *LOWS):
        return str(output.name), 1.0
    while node is not None and node.op_type in ("Cast", "Transpose", "Round"):
        first = node.inputs[0]
        assert first is not None
        node, value = first.producer(), first
    return str(value.name), 255.0


def _decibels(error: float) -> str:
    return "NaN or infinity" if error == float("inf") else f"{-10 * np.log10(error):.1f} dB"
