"""How large the values of a network in segments are, how long they live, what a run holds."""

from __future__ import annotations

from dataclasses import dataclass

from pixelrt.errors import InputError
from pixelrt.geometry import Size
from pixelrt.manifest import Network, Segment

BYTES = 4
"""Of a float32."""
MARGIN = 1.15
"""What allocators take beyond what is asked of them."""


@dataclass(frozen=True)
class Step:
    """A segment at one size of the picture.

    ``units``: the grid that is cut into tiles. ``size``, ``channels``: of the output.
    ``whole``: pixels of an input that is read whole. ``done``: values that nothing reads
    later. ``place``: the one of them whose memory the output takes, or an empty string.
    ``held``: bytes of the values that live meanwhile and are no part of ``memory``.
    """

    segment: Segment
    units: Size
    size: Size
    channels: int
    whole: int
    done: tuple[str, ...]
    place: str
    held: int

    @property
    def output(self) -> str:
        return self.segment.graph.outputs[0].name

    @property
    def memory(self) -> int:
        """Bytes that a run of the graph holds for each unit of a tile."""
        return self.segment.memory + self.segment.memory_pair * self.whole


def layout(network: Network, size: Size) -> tuple[Step, ...]:
    """The segments of ``network`` for an input of ``size``.

    Raises ``InputError`` where a side does not divide as a segment needs it.
    """
    source = network.component.graphs[0].inputs[0].name
    last = _last_uses(network.segments)
    sizes, channels = {source: size}, {source: 0}
    steps = []
    for number, segment in enumerate(network.segments):
        (tiled, *_) = (sizes[name] for name in segment.halo)
        units = _units(segment, tiled)
        output = segment.graph.outputs[0]
        sizes[output.name] = units.scaled(segment.pixels[1])
        channels[output.name] = int(output.shape[1])
        done = tuple(name for name, end in last.items() if end == number and name != source)
        counted = {output.name, *segment.halo}
        held = sum(_bytes(channels[name], sizes[name]) for name in sizes if name not in counted)
        whole = [sizes[name].pixels for name in inputs_of(segment) if name not in segment.halo]
        steps.append(
            Step(
                segment,
                units,
                sizes[output.name],
                channels[output.name],
                max(whole, default=0),
                done,
                _place(segment, done, channels),
                held,
            )
        )
        for name in done:
            del sizes[name]
    return tuple(steps)


def whole_need(network: Network, size: Size) -> int:
    """Estimated bytes for a run of the untiled network over one picture of ``size``, its weights
    left out."""
    most = max(step.held + step.memory * step.units.pixels for step in layout(network, size))
    return int(most * MARGIN)


def inputs_of(segment: Segment) -> list[str]:
    """Names of the values that a segment reads."""
    names = [spec.name for spec in segment.graph.inputs]
    return names[:-2] if segment.norm else names


def _last_uses(segments: list[Segment]) -> dict[str, int]:
    return {name: n for n, segment in enumerate(segments) for name in inputs_of(segment)}


def _units(segment: Segment, size: Size) -> Size:
    step = segment.pixels[0]
    if size.height % step or size.width % step:
        raise InputError(
            "the picture does not divide into tiles of whole units",
            found=f"{size} at {segment.graph.file}",
            expected=f"multiples of {step}",
        )
    return Size(size.height // step, size.width // step)


def _place(segment: Segment, done: tuple[str, ...], channels: dict[str, int]) -> str:
    """A value that the output may overwrite: nothing reads it later, and tiles read no more of
    it than what they own, so that no tile meets what another has written."""
    wanted = channels[segment.graph.outputs[0].name]
    if segment.pixels[0] != segment.pixels[1]:
        return ""
    fits = (n for n in done if segment.halo.get(n) == 0 and channels[n] >= wanted)
    return next(fits, "")


def _bytes(channels: int, size: Size) -> int:
    return channels * size.pixels * BYTES
