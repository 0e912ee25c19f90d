"""Parts of a graph that stay float32 whatever is measured, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

SCALING = ("Add", "Div", "Mul", "Sub")
Find = Callable[[ir.Node], Iterable[ir.Node]]


def just_it(anchor: ir.Node) -> Iterable[ir.Node]:
    """The node and nothing around it."""
    return (anchor,)


@dataclass(frozen=True)
class Island:
    """``find`` gives the nodes that stay float32 around each node whose operator is in ``ops``."""

    name: str
    reason: str
    ops: frozenset[str]
    find: Find = just_it


def island_nodes(graph: ir.Graph, islands: Iterable[Island]) -> dict[str, str]:
    """Name of every node on an island to the reason; the first island that has it counts."""
    found: dict[str, str] = {}
    for island in islands:
        for anchor in graph:
            if anchor.op_type in island.ops:
                for node in island.find(anchor):
                    found.setdefault(str(node.name), f"{island.name}: {island.reason}")
    return found


def around_statistic(anchor: ir.Node) -> Iterator[ir.Node]:
    """A reduction, the squares it sums, and what is done up to where it is applied.

    Before: the product of a value with itself, ``Pow`` or ``Abs``. After: bounds, epsilon and
    root, up to and with the division, difference or product that uses the statistic.
    """
    yield anchor
    for node in _producers(anchor):
        if node.op_type in ("Pow", "Abs") or _is_square(node):
            yield node
    yield from _after(
        anchor, frozenset(["Add", "Clip", "Max", "Sqrt", "Reciprocal", "Expand", "Unsqueeze"])
    )


def scores(anchor: ir.Node) -> Iterator[ir.Node]:
    """Element-wise nodes between the product of query and key and its softmax."""
    todo = list(_producers(anchor))
    seen: set[ir.Node] = set()
    while todo:
        node = todo.pop()
        if node in seen or node.op_type not in ("Add", "Mul", "Div", "Sub", "Reshape", "Where"):
            continue
        seen.add(node)
        if node.op_type != "Reshape":
            yield node
        todo += _producers(node)


def levels(anchor: ir.Node) -> Iterator[ir.Node]:
    """A rounding to image levels and the scaling and clamping before it."""
    yield anchor
    node: ir.Node | None = anchor
    steps = ("Mul", "Clip", "Transpose", "Round", "Add")
    while node is not None:
        node = next((p for p in _producers(node) if p.op_type in steps), None)
        if node is not None:
            yield node
        if node is not None and node.op_type == "Clip":
            return


def input_scaling(anchor: ir.Node) -> Iterator[ir.Node]:
    """The node, where it is one of the steps that bring the graph's input to its range."""
    if _scales_input(anchor):
        yield anchor


def arguments(anchor: ir.Node) -> Iterator[ir.Node]:
    """A sine or cosine, and the products and sums that its argument is made of."""
    yield anchor
    steps = (*SCALING, "Cast", "Concat", "Expand", "Reshape", "Unsqueeze")
    todo = _producers(anchor)
    while todo:
        node = todo.pop()
        if node.op_type in steps:
            if node.op_type in SCALING:
                yield node
            todo += _producers(node)


def _scales_input(node: ir.Node) -> bool:
    data = [value for value in node.inputs if value is not None and value.const_value is None]
    if len(data) != 1:
        return False
    before = data[0].producer()
    if before is None:
        return bool(data[0].is_graph_input())
    steps = (*SCALING, "Cast", "Transpose")
    return before.op_type in steps and _scales_input(before)


def _producers(node: ir.Node) -> list[ir.Node]:
    found = [value.producer() for value in node.inputs if value is not None]
    return [producer for producer in found if producer is not None]


def _is_square(node: ir.Node) -> bool:
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def _after(node: ir.Node, on_the_way: frozenset[str]) -> Iterator[ir.Node]:
    for value in node.outputs:
        for user, _ in value.uses():
            if user.op_type in on_the_way:
                yield user
                yield from _after(user, on_the_way)
            elif user.op_type in ("Div", "Sub", "Mul"):
                yield user


NORMS = Island(
    "normalisation",
    "its mean and variance sum over many values; float16 loses the small ones and overflows",
    frozenset(
        [
            "InstanceNormalization",
            "LayerNormalization",
            "GroupNormalization",
            "LpNormalization",
            "MeanVarianceNormalization",
            "RMSNormalization",
        ]
    ),
)
STATISTICS = Island(
    "statistic",
    "sums, squares and roots over many values, with an epsilon below float16's smallest value",
    frozenset(
        ["ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"]
    ),
    around_statistic,
)
POWERS = Island(
    "power",
    "exponentials and powers turn a small relative error into a large one, and overflow early",
    frozenset(["Exp", "Log", "Pow", "CumSum"]),
)
SOFTMAX = Island(
    "softmax",
    "exponentials of scores, summed",
    frozenset({"Softmax", "LogSoftmax"}),
)
LOGIT_SCALE = Island(
    "logit scale",
    "scores times a scale of up to 100 plus bias and mask: in float16 their step is 0.06",
    frozenset({"Softmax", "LogSoftmax"}),
    scores,
)
INPUT = Island(
    "input scaling",
    "2x - 1 near 0 is the difference of two numbers near 1 and keeps their rounding",
    frozenset(SCALING),
    input_scaling,
)
ANGLES = Island(
    "angle",
    "sines of large arguments: near 1000, the last timestep, float16 has a step of half a radian",
    frozenset({"Sin", "Cos"}),
    arguments,
)
LEVELS = Island(
    "image levels",
    "float16 has a step of 0.125 at 255: which level a value rounds to would change",
    frozenset({"Round"}),
    levels,
)

DEFAULT_ISLANDS = (INPUT, NORMS, STATISTICS, POWERS, ANGLES, SOFTMAX, LOGIT_SCALE, LEVELS)
FUSED_ATTENTION_ISLANDS = (INPUT, NORMS, STATISTICS, POWERS, ANGLES, LEVELS)
"""Without softmax and logit scale: all of an attention in one type, as a fused kernel may
ask for. Such kernels keep their own softmax in float32; the fidelity search still decides."""
