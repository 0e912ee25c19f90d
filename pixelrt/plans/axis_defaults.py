"""Which lengths the plans of a pipeline's networks take: defaults from its settings, and what a
user asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixelrt.errors import UsageError
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.plans.axis_profiles import AxisProfile, axis_names, parse_axis
from pixelrt.plans.profiles import AxisRange, Profile, axis_of, parse_profile
from pixelrt.spec import TensorSpec

COUNTS = ("B", "N")
"""Names of the axis that counts pictures or prompts. A run of more goes through in several."""
TOKENS = "T"
SIDES = ("h", "w")
PICTURES = ("vae", "movq")
"""Beginnings of the names of networks that work on whole pictures, whose memory is large."""
PIXELS = ("pixels", "control")
"""Beginnings of the names of inputs whose sides are those of pictures."""
WINDOWS = 3
"""Of the text encoder: the longest prompt that a plan takes by default."""

Ranges = dict[str, AxisRange]


def pipeline_profiles(
    bundle: PipelineBundle,
    names: Sequence[str],
    shapes: Sequence[str] = (),
    axes: Sequence[str] = (),
    *,
    static: bool = False,
) -> dict[str, tuple[AxisProfile, ...]]:
    """The profiles of each of the networks ``names``.

    ``shapes``: sides of the pictures in pixels as ``parse_profile`` takes them, a profile for
    each. ``axes``: ``NAME=MIN,OPT,MAX``, which overrule both these and the defaults in every
    network that has the axis. ``static``: the optimum only. Raises ``UsageError``.
    """
    settings = bundle.manifest.settings
    asked = dict(map(parse_axis, axes))
    if len(asked) < len(axes):
        raise UsageError("an axis is given twice", found=", ".join(axes))
    alternatives = [_latents(parse_profile(text), settings) for text in shapes] or [{}]
    known: set[str] = set()
    found: dict[str, tuple[AxisProfile, ...]] = {}
    for name in names:
        network = _Network(name, bundle.network(name).component.graph("network").inputs, settings)
        dynamic = axis_names(network.inputs)
        known |= set(dynamic)
        profiles = (
            AxisProfile(tuple((axis, network.range_of(axis, asked, sides)) for axis in dynamic))
            for sides in alternatives
        )
        made = [profile.as_static() if static else profile for profile in profiles]
        found[name] = tuple(dict.fromkeys(made))
    if unknown := [name for name in asked if name not in known]:
        raise UsageError(
            f"no network has an axis {unknown[0]}", expected=f"some of {', '.join(sorted(known))}"
        )
    return found


@dataclass(frozen=True)
class _Network:
    """A network by name with its inputs, and the settings of its pipeline."""

    name: str
    inputs: Sequence[TensorSpec]
    settings: Mapping[str, Any]

    def range_of(self, axis: str, asked: Ranges, sides: Ranges) -> AxisRange:
        """As a user asks for it, else by ``sides`` of latents, else the default."""
        found = asked.get(axis)
        unit = self.unit(axis) if axis in SIDES else 1
        if found is None and axis in sides:
            found = _over(sides[axis], unit)
        if found is None:
            found = default_range(self.name, axis, self.settings, unit)
        if found is None:
            raise UsageError(
                f"the settings of the bundle do not say how long axis {axis} of {self.name} is",
                hint=f"say it: --axis {axis}=MIN,OPT,MAX",
            )
        least = -(-_least(self.settings) // unit)
        if axis in SIDES and found.minimum < least:
            raise UsageError(
                f"{self.name} does not take so small a picture",
                found=f"{axis}={found.minimum}",
                expected=f"at least {least}",
            )
        return found

    def unit(self, axis: str) -> int:
        """Latents for each one of a side: some networks count in blocks of them."""
        for tensor in self.inputs:
            for step, name in map(axis_of, tensor.shape):
                if name == axis:
                    pixels = tensor.name.startswith(PIXELS)
                    scale = int(self.settings.get("latent_scale", 1)) if pixels else 1
                    return max(1, step // scale)
        return 1


def default_range(
    network: str, axis: str, settings: Mapping[str, Any], unit: int = 1
) -> AxisRange | None:
    """Of one axis, or ``None`` where the settings do not tell.

    Counts: 1 to 8, tuned for the pair of guidance (StyleGAN2: for one); of whole pictures 1
    and 2. Sides, in ``unit`` latents: from the least that the network takes to half as much again
    as it was trained for, which is what it is tuned for. Text: one window to ``WINDOWS`` of the
    text encoder.
    """
    if axis in COUNTS:
        if network.startswith(PICTURES):
            return AxisRange(1, 1, 2)
        return AxisRange(1, 2 if "text" in settings else 1, 8)
    if axis in SIDES and settings.get("sample_size"):
        best = max(1, int(settings["sample_size"]) // unit)
        return AxisRange(min(-(-_least(settings) // unit), best), best, best + best // 2)
    if axis == TOKENS and settings.get("text"):
        text = settings["text"]
        first = text[0] if isinstance(text, list) else text
        window = int(first["tokenizer"]["model_max_length"])
        return AxisRange(window, window, WINDOWS * window)
    return None


def _least(settings: Mapping[str, Any]) -> int:
    """Of the sides of the latents."""
    return max(1, -(-int(settings.get("minimum", 1)) // int(settings.get("latent_scale", 1))))


def _latents(profile: Profile, settings: Mapping[str, Any]) -> Ranges:
    """Sides of pictures as those of latents."""
    scale = int(settings.get("latent_scale", 0))
    if not scale:
        raise UsageError(
            "the pictures of this pipeline have one size", hint="leave --shapes out; --axis sets N"
        )
    if profile.batch.maximum > 1:
        raise UsageError(
            f"--shapes {profile} sets a batch",
            expected="sides of a picture",
            hint=f"--axis B={profile.batch} sets it",
        )
    return dict(zip(SIDES, (_over(s, scale) for s in (profile.height, profile.width)), strict=True))


def _over(side: AxisRange, scale: int) -> AxisRange:
    ends = (side.minimum, side.optimum, side.maximum)
    if any(end % scale for end in ends):
        raise UsageError(
            "a side of --shapes is off the grid",
            found=f"{side} in steps of {scale}",
            expected="no remainder",
        )
    return AxisRange(*(end // scale for end in ends))
