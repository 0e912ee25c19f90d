"""What a manifest may say about segments."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from pixelrt.manifest import Network, Segment
from pixelrt.segments.layout import inputs_of


def problems_of(network: Network) -> Iterator[str]:
    """What is wrong with the segments of a network, each in words; nothing where it has none."""
    if not network.segments:
        return
    graph = network.component.graphs[0]
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        yield f"network {network.component.name} has segments but not one input and one output"
        return
    chain = _Chain(graph.inputs[0].name)
    for segment in network.segments:
        for problem in (*_facts(segment), *chain.add(segment)):
            yield f"segment {segment.graph.file} {problem}"
    last = network.segments[-1].graph.outputs
    if [spec.name for spec in last] != [graph.outputs[0].name] or chain.unread != {last[0].name}:
        yield f"the segments of {network.component.name} do not end in its output alone"


def _facts(segment: Segment) -> Iterator[str]:
    """Of a segment by itself."""
    specs = [*segment.graph.inputs, *segment.graph.outputs]
    if segment.graph.role != "network" or len(segment.graph.outputs) != 1:
        yield "is not of role network with one output"
    if any(len(s.shape) != 4 or not isinstance(s.shape[1], int) for s in specs):
        yield "has an input or output that is not (B, channels, H, W)"
    if not segment.halo or min(segment.halo.values()) < 0:
        yield "has no halo, or a negative one"
    if min(*segment.pixels, segment.memory) < 1 or segment.memory_pair < 0:
        yield "has units or memory of less than nothing"


class _Chain:
    """Values in the order in which segments give them, with their scale to the input."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._scales = {source: Fraction(1)}
        self._channels: dict[str, object] = {}
        self._groups: dict[str, int] = {}
        self.unread: set[str] = {source}

    def add(self, segment: Segment) -> Iterator[str]:
        names = inputs_of(segment)
        missing = [name for name in names if name not in self._scales]
        if missing or not set(segment.halo) <= set(names):
            yield f"reads {', '.join(missing) or 'other values than it has a halo for'}"
            return
        scales = {self._scales[name] for name in segment.halo}
        if len(scales) > 1:
            yield "reads values of different sizes in tiles"
        if any(self._channels.get(s.name, s.shape[1]) != s.shape[1] for s in segment.graph.inputs):
            yield "reads a value with other channels than it has"
        yield from self._norm(segment)
        output = segment.graph.outputs[0] if segment.graph.outputs else None
        if output is None or output.name in self._scales:
            yield "gives nothing new"
            return
        self._scales[output.name] = max(scales, default=Fraction(1)) * Fraction(
            segment.pixels[1], max(1, segment.pixels[0])
        )
        self._channels[output.name] = output.shape[1]
        self.unread = (self.unread - set(names)) | {output.name}

    def _norm(self, segment: Segment) -> Iterator[str]:
        norm = segment.norm
        if norm is None:
            return
        channels = self._channels.get(norm.value)
        if norm.value not in segment.halo or not isinstance(channels, int):
            yield f"normalises {norm.value}, which no segment gives or which it reads whole"
        elif norm.groups < 1 or channels % norm.groups:
            yield f"normalises {channels} channels in {norm.groups} groups"
        elif self._groups.setdefault(norm.value, norm.groups) != norm.groups:
            yield f"normalises {norm.value} in other groups than another segment"
