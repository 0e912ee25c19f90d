"""Optimisation profiles of networks whose tensors have named axes: a range for each name. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from pixelrt.errors import UsageError
from pixelrt.plans.profiles import LARGEST, AxisRange, axis_of
from pixelrt.spec import TensorSpec

_AXIS = re.compile(r"([A-Za-z_]\w*)=(\d{1,6})(?:,(\d{1,6}),(\d{1,6}))?")
_EXPECTED = "NAME=LENGTH or NAME=MIN,OPT,MAX such as h=64 or h=32,64,96"


@dataclass(frozen=True)
class Lengths:
    """One length for every dynamic axis, by name; ordered as the profile is."""

    axes: tuple[tuple[str, int], ...]

    @property
    def lengths(self) -> dict[str, int]:
        return dict(self.axes)

    def __str__(self) -> str:
        return " ".join(f"{name}={length}" for name, length in self.axes)


@dataclass(frozen=True)
class AxisProfile:
    """What one optimisation profile takes: a range for every dynamic axis of the network."""

    ranges: tuple[tuple[str, AxisRange], ...]

    @property
    def shapes(self) -> tuple[Lengths, Lengths, Lengths]:
        """Minimum, optimum and maximum."""
        return (
            Lengths(tuple((name, axis.minimum) for name, axis in self.ranges)),
            Lengths(tuple((name, axis.optimum) for name, axis in self.ranges)),
            Lengths(tuple((name, axis.maximum) for name, axis in self.ranges)),
        )

    @property
    def static(self) -> bool:
        return all(axis.fixed for _, axis in self.ranges)

    def as_static(self) -> AxisProfile:
        """The optimum only."""
        return AxisProfile(
            tuple((name, AxisRange(*[axis.optimum] * 3)) for name, axis in self.ranges)
        )

    def nearest(self, lengths: Mapping[str, int]) -> dict[str, int]:
        """What is within this profile and closest to ``lengths`` on every axis."""
        return {name: axis.nearest(lengths[name]) for name, axis in self.ranges}

    def holds(self, lengths: Mapping[str, int]) -> bool:
        return all(axis.minimum <= lengths[name] <= axis.maximum for name, axis in self.ranges)

    def __str__(self) -> str:
        return " ".join(f"{name}={axis}" for name, axis in self.ranges)


def parse_axis(text: str) -> tuple[str, AxisRange]:
    """``NAME=LENGTH`` or ``NAME=MIN,OPT,MAX``. Raises ``UsageError``."""
    found = _AXIS.fullmatch(text.strip())
    if not found:
        raise UsageError(f"{text!r} is no range of an axis", expected=_EXPECTED)
    least = int(found[2])
    axis = AxisRange(least, int(found[3] or least), int(found[4] or least))
    if axis.maximum > LARGEST:
        raise UsageError(
            f"axis {found[1]} is too long", found=str(axis.maximum), expected=f"at most {LARGEST}"
        )
    return found[1], axis


def parse_axes(text: str) -> AxisProfile:
    """A profile as it prints itself: ranges with spaces between them. Raises ``UsageError``."""
    ranges = [parse_axis(part) for part in text.split()]
    if len({name for name, _ in ranges}) < len(ranges):
        raise UsageError(f"{text!r} is no profile", found="an axis is given twice")
    return AxisProfile(tuple(ranges))


def axis_names(tensors: Iterable[TensorSpec]) -> tuple[str, ...]:
    """Names of the dynamic axes in their order; of ``8*h`` it is ``h``."""
    axes = [axis_of(axis)[1] for tensor in tensors for axis in tensor.shape]
    return tuple(dict.fromkeys(name for name in axes if name))


def lengths_of(
    tensors: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Length of every dynamic axis in the dimensions of the inputs, by name.

    Raises ``UsageError`` where an input is missing, has other dimensions than its tensor, or
    where two of them do not agree.
    """
    found: dict[str, int] = {}
    for tensor in tensors:
        dims = shapes.get(tensor.name)
        if dims is None or len(dims) != len(tensor.shape):
            raise UsageError(f"an input is not {tensor}", found=str(dims or "nothing"))
        for axis, length in zip(tensor.shape, dims, strict=True):
            step, name = axis_of(axis)
            base, rest = divmod(length, step)
            known = found.setdefault(name, base) if name else 1
            if rest or base != known:
                hint = f"the others say {name} = {known}" if name and base != known else ""
                raise UsageError(f"an input is not {tensor}", found=str(dims), hint=hint)
    return found


def choose_axes(profiles: Sequence[AxisProfile], lengths: Mapping[str, int]) -> int:
    """Index of the profile that holds ``lengths`` and is tuned for the closest number of
    elements. Raises ``UsageError`` where none does."""
    holding = [index for index, profile in enumerate(profiles) if profile.holds(lengths)]
    if not holding:
        asked = " ".join(f"{name}={length}" for name, length in lengths.items())
        raise UsageError(
            f"{asked} is outside every profile of the plan",
            found=f"profiles {'; '.join(map(str, profiles))}",
            hint="build a plan with --axis ranges that hold it",
        )

    def distance(index: int) -> int:
        best = profiles[index].shapes[1].lengths
        return abs(prod(best.values()) - prod(lengths.values()))

    return min(holding, key=distance)
