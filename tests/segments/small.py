"""A network in segments without graphs: functions of numpy stand in for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.manifest import Component, Graph, GroupNorm, Network, NetworkSample, Segment
from pixelrt.segments import Feeds
from pixelrt.spec import TensorSpec, Tolerance

Values = NDArray[np.float32]
EPSILON = 1e-3
GROUPS = 2


def conv(x: Values, channels: int, step: int = 1, before: int = 1) -> Values:
    """3x3, with other weights for every channel and place; zeros beyond the picture."""
    weights = 0.2 * np.random.default_rng(channels).normal(size=(channels, x.shape[1], 3, 3))
    after = 1 if step == 1 else 2 - before
    padded = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    found = np.einsum("bchwij,ocij->bohw", windows[:, :, ::step, ::step], weights)
    return np.tanh(found).astype(np.float32)


def normed(x: Values, mean: Values, inverse: Values) -> Values:
    return (x - mean) * inverse + np.float32(0.3)


def doubled(x: Values) -> Values:
    return x.repeat(2, axis=2).repeat(2, axis=3)


def first(f: Feeds) -> Values:
    return conv(f["pixels"], 4)


def down(f: Feeds) -> Values:
    return conv(normed(f["a"], f["mean"], f["inverse"]), 4, step=2, before=0)


def inner(f: Feeds) -> Values:
    return conv(normed(f["b"], f["mean"], f["inverse"]), 4)


def skip(f: Feeds) -> Values:
    return conv(normed(f["c"], f["mean"], f["inverse"]), 2) + f["b"][:, 2:]


def seen(f: Feeds) -> Values:
    """Depends on every pixel of ``c``."""
    return f["d"] + f["c"].max(axis=(2, 3), keepdims=True)[:, :2]


def up(f: Feeds) -> Values:
    return conv(doubled(normed(f["e"], f["mean"], f["inverse"])), 3)


FUNCTIONS: dict[str, Callable[[Feeds], Values]] = {
    "a": first,
    "b": down,
    "c": inner,
    "d": skip,
    "e": seen,
    "out": up,
}


def segment(
    output: str,
    inputs: Mapping[str, int],
    channels: int,
    halo: Mapping[str, int],
    norm: str = "",
    pixels: tuple[int, int] = (1, 1),
) -> Segment:
    def spec(name: str, count: int) -> TensorSpec:
        return TensorSpec(name, "float32", ("B", count, "h", "w"))

    specs = [spec(name, count) for name, count in inputs.items()]
    if norm:
        specs += [spec(name, inputs[norm]) for name in ("mean", "inverse")]
    graph = Graph("network", f"graphs/{output}.onnx", specs, [spec(output, channels)])
    return Segment(
        graph=graph,
        pixels=pixels,
        halo=dict(halo),
        memory=100,
        norm=GroupNorm(norm, GROUPS, EPSILON) if norm else None,
    )


def segments() -> list[Segment]:
    return [
        segment("a", {"pixels": 2}, 4, {"pixels": 1}),
        segment("b", {"a": 4}, 4, {"a": 1}, "a", (2, 1)),
        segment("c", {"b": 4}, 4, {"b": 1}, "b"),
        segment("d", {"c": 4, "b": 4}, 2, {"c": 1, "b": 0}, "c"),
        segment("e", {"d": 2, "c": 4}, 2, {"d": 0}),
        segment("out", {"e": 2}, 3, {"e": 1}, "e", (1, 2)),
    ]


def network(pieces: list[Segment] | None = None) -> Network:
    specs = [TensorSpec(n, "float32", ("B", c, "H", "W")) for n, c in (("pixels", 2), ("out", 3))]
    graph = Graph("network", "graphs/whole.onnx", specs[:1], specs[1:])
    return Network(
        component=Component("whole", "float32", [graph]),
        tolerance=Tolerance(1e-4),
        low_psnr=35.0,
        samples=[NetworkSample("s", "reference/s.npz")],
        segments=segments() if pieces is None else pieces,
    )


@contextmanager
def opener(piece: Segment) -> Iterator[Callable[[Feeds], Values]]:
    yield FUNCTIONS[piece.graph.outputs[0].name]


def untiled(pixels: Values) -> Values:
    """The network at once, with statistics as numpy has them."""
    values: dict[str, Any] = {"pixels": pixels}
    for piece in segments():
        feeds = {spec.name: values.get(spec.name) for spec in piece.graph.inputs}
        if piece.norm:
            feeds |= dict(
                zip(("mean", "inverse"), statistics(values[piece.norm.value]), strict=True)
            )
        values[piece.graph.outputs[0].name] = FUNCTIONS[piece.graph.outputs[0].name](feeds)
    found: Values = values["out"]
    return found


def statistics(x: Values, groups: int = GROUPS, epsilon: float = EPSILON) -> list[Values]:
    """Mean and ``1 / sqrt(variance + epsilon)`` of every channel's group, (B, C, 1, 1)."""
    batch, channels = x.shape[:2]
    grouped = x.astype(np.float64).reshape(batch, groups, -1)
    found = grouped.mean(axis=2), 1 / np.sqrt(grouped.var(axis=2) + epsilon)
    return [
        np.repeat(one, channels // groups, axis=1).reshape(batch, channels, 1, 1).astype(np.float32)
        for one in found
    ]
