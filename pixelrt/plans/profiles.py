"""Optimisation profiles: which image sizes a plan takes, and which one it is tuned for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pixelrt.errors import UsageError
from pixelrt.geometry import round_up
from pixelrt.spec import ImageSpec, TensorSpec

DEFAULT_TILE = 256
LARGEST = 16384
"""A longer side is a slip: TensorRT counts the elements of a tensor in 31 bits."""

_AXIS = re.compile(r"(?:(\d+)\*)?([A-Za-z_]\w*)")
_SHAPE = re.compile(r"(?:(\d{1,6})x)?(\d{1,6})x(\d{1,6})")
_EXPECTED = "MIN,OPT,MAX such as 64x64,256x256,512x512 or 1x64x64,1x256x256,4x512x512"


@dataclass(frozen=True)
class AxisRange:
    """``minimum <= optimum <= maximum`` of one axis; equal all three where it is fixed."""

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise UsageError(
                "the shapes of a profile are not in order",
                found=f"minimum {self.minimum}, optimum {self.optimum}, maximum {self.maximum}",
                expected="1 <= minimum <= optimum <= maximum on every axis",
            )

    @property
    def fixed(self) -> bool:
        return self.minimum == self.maximum

    def nearest(self, value: int) -> int:
        return min(max(value, self.minimum), self.maximum)

    def __str__(self) -> str:
        ends = (self.minimum, self.optimum, self.maximum)
        return str(self.minimum) if self.fixed else ",".join(map(str, ends))


@dataclass(frozen=True)
class Shape:
    """A batch of images that all have one size."""

    batch: int
    height: int
    width: int

    @property
    def lengths(self) -> dict[str, int]:
        """Of the axes of images, by the names that bundles give them."""
        return {"N": self.batch, "H": self.height, "W": self.width}

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Profile:
    """What one optimisation profile takes."""

    batch: AxisRange
    height: AxisRange
    width: AxisRange

    @classmethod
    def between(cls, minimum: Shape, optimum: Shape, maximum: Shape) -> Profile:
        three = minimum, optimum, maximum
        return cls(
            AxisRange(*(shape.batch for shape in three)),
            AxisRange(*(shape.height for shape in three)),
            AxisRange(*(shape.width for shape in three)),
        )

    @property
    def axes(self) -> tuple[AxisRange, AxisRange, AxisRange]:
        return self.batch, self.height, self.width

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """Minimum, optimum and maximum."""
        return (
            Shape(*(axis.minimum for axis in self.axes)),
            Shape(*(axis.optimum for axis in self.axes)),
            Shape(*(axis.maximum for axis in self.axes)),
        )

    @property
    def static(self) -> bool:
        return all(axis.fixed for axis in self.axes)

    def as_static(self) -> Profile:
        """The optimum only."""
        best = self.shapes[1]
        return Profile.between(best, best, best)

    def nearest(self, shape: Shape) -> Shape:
        """The shape within this profile that is closest to ``shape`` on every axis."""
        return Shape(
            self.batch.nearest(shape.batch),
            self.height.nearest(shape.height),
            self.width.nearest(shape.width),
        )

    def holds(self, shape: Shape) -> bool:
        return self.nearest(shape) == shape

    def __str__(self) -> str:
        if self.static:
            return str(self.shapes[0])
        return ",".join(map(str, self.shapes))


def parse_profile(text: str) -> Profile:
    """A profile from ``MIN,OPT,MAX`` or from one fixed shape; ``HxW`` or ``NxHxW`` each.

    Raises ``UsageError``.
    """
    shapes = [_parse_shape(part.strip(), text) for part in text.lower().split(",")]
    if len(shapes) == 1:
        shapes *= 3
    if len(shapes) != 3:
        raise UsageError(
            f"{text!r} is no profile", found=f"{len(shapes)} shapes", expected=_EXPECTED
        )
    return Profile.between(*shapes)


def _parse_shape(part: str, text: str) -> Shape:
    found = _SHAPE.fullmatch(part)
    if not found:
        raise UsageError(f"{text!r} is no profile", found=repr(part), expected=_EXPECTED)
    return Shape(int(found[1] or 1), int(found[2]), int(found[3]))


def default_profile(spec: ImageSpec, *, tile: int = DEFAULT_TILE, batch: int = 1) -> Profile:
    """From the network's smallest image to twice the tile, tuned for the tile."""
    best = max(spec.minimum, round_up(tile, spec.multiple))
    side = AxisRange(spec.minimum, best, max(best, round_up(2 * tile, spec.multiple)))
    return Profile(AxisRange(1, batch, batch), side, side)


def check_profiles(profiles: Sequence[Profile], spec: ImageSpec) -> None:
    """Raise ``UsageError`` where the network does not take a shape of a profile."""
    if not profiles:
        raise UsageError("a plan needs at least one profile", expected=_EXPECTED)
    for profile in profiles:
        for shape in profile.shapes:
            for name, side in (("height", shape.height), ("width", shape.width)):
                _check_side(name, side, profile, spec)


def _check_side(name: str, side: int, profile: Profile, spec: ImageSpec) -> None:
    if side % spec.multiple or side < spec.minimum:
        fitting = max(spec.minimum, round_up(side, spec.multiple))
        raise UsageError(
            f"the network does not take a shape of profile {profile}",
            found=f"{name} {side}",
            expected=f"multiples of {spec.multiple}, at least {spec.minimum}",
            hint=f"use {fitting}",
        )
    if side > LARGEST:
        raise UsageError(
            f"profile {profile} is too large",
            found=f"{name} {side}",
            expected=f"at most {LARGEST}",
            hint="larger images run in tiles",
        )


def nearest_profile(profiles: Sequence[Profile], shape: Shape) -> tuple[int, Shape]:
    """Index of the profile that ``shape`` is closest to, and its nearest shape.

    Of several that hold the shape, the one whose optimum has the closest number of pixels.
    """

    def distance(index: int) -> tuple[int, int, int]:
        near, best = profiles[index].nearest(shape), profiles[index].shapes[1]
        sides = abs(near.height - shape.height) + abs(near.width - shape.width)
        return sides, abs(near.batch - shape.batch), abs(_pixels(best) - _pixels(shape))

    index = min(range(len(profiles)), key=distance)
    return index, profiles[index].nearest(shape)


def _pixels(shape: Shape) -> int:
    return shape.batch * shape.height * shape.width


def choose_profile(profiles: Sequence[Profile], shape: Shape) -> int:
    """Index of the best profile that holds ``shape``; ``UsageError`` where none does."""
    index, near = nearest_profile(profiles, shape)
    if near != shape:
        raise UsageError(
            f"the shape {shape} is outside every profile of the plan",
            found=f"profiles {'; '.join(map(str, profiles))}",
            expected=f"the nearest shape is {near}, of profile {index} ({profiles[index]})",
            hint="tile or pad the image, or build a plan with --shapes that hold it",
        )
    return index


def axis_of(axis: int | str) -> tuple[int, str]:
    """Step and name of an axis: ``(8, "h")`` of ``8*h``; a number has no name and is the step.

    Raises ``UsageError`` for an axis of another form.
    """
    if isinstance(axis, int):
        return axis, ""
    found = _AXIS.fullmatch(axis)
    if not found:
        raise UsageError(
            f"the axis {axis!r} cannot be told",
            expected="a number, a name, or multiples of a name such as 8*h",
        )
    return int(found[1] or 1), found[2]


class NamedLengths(Protocol):
    """One length for every dynamic axis: a ``Shape``, or ``axis_profiles.Lengths``."""

    @property
    def lengths(self) -> Mapping[str, int]: ...


def tensor_shape(tensor: TensorSpec, shape: NamedLengths) -> tuple[int, ...]:
    """The dimensions of a tensor such as ``("N", "H", "W", 3)`` or ``("B", 3, "8*h", "8*w")``."""
    values, dims = shape.lengths, []
    for axis in tensor.shape:
        step, name = axis_of(axis)
        if name and name not in values:
            raise UsageError(
                f"the input {tensor} has an axis that no profile sets",
                found=name,
                expected=f"{', '.join(values)} and fixed numbers",
            )
        dims.append(step * values[name] if name else step)
    return tuple(dims)
