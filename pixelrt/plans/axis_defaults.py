"""Which lengths the plans of a pipeline's networks take: defaults from its settings, and what a
user asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pixelrt.errors import UsageError
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.plans.axis_profiles import AxisProfile, axis_names, parse_axis
from pixelrt.plans.profiles import AxisRange, Profile, parse_profile

COUNTS = ("B", "N")
"""Names of the axis that counts pictures or prompts. A run of more goes through in several."""
TOKENS = "T"
SIDES = ("h", "w")
PICTURES = ("vae", "movq")
"""Beginnings of the names of networks that work on whole pictures, whose memory is large."""
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
        dynamic = axis_names(bundle.network(name).component.graph("network").inputs)
        known |= set(dynamic)
        profiles = (
            AxisProfile(tuple((axis, _range(name, axis, given, settings)) for axis in dynamic))
            for given in ({**sides, **asked} for sides in alternatives)
        )
        made = [profile.as_static() if static else profile for profile in profiles]
        found[name] = tuple(dict.fromkeys(made))
    if unknown := [name for name in asked if name not in known]:
        raise UsageError(
            f"no network has an axis {unknown[0]}", expected=f"some of {', '.join(sorted(known))}"
        )
    return found


def _range(network: str, axis: str, given: Ranges, settings: Mapping[str, Any]) -> AxisRange:
    found = given.get(axis) or default_range(network, axis, settings)
    if found is None:
        raise UsageError(
            f"the settings of the bundle do not say how long axis {axis} of {network} is",
            hint=f"say it: --axis {axis}=MIN,OPT,MAX",
        )
    if axis in SIDES and found.minimum < _least(settings):
        raise UsageError(
            f"{network} does not take so small a picture",
            found=f"{axis}={found.minimum}",
            expected=f"at least {_least(settings)}",
        )
    return found


def default_range(network: str, axis: str, settings: Mapping[str, Any]) -> AxisRange | None:
    """Of one axis, or ``None`` where the settings do not tell.

    Counts: 1 to 8, tuned for the pair of guidance (StyleGAN2: for one); of whole pictures 1
    and 2. Sides: from the least that the network takes to half as much again as it was trained
    for, which is what it is tuned for. Text: one window to ``WINDOWS`` of the text encoder.
    """
    if axis in COUNTS:
        if network.startswith(PICTURES):
            return AxisRange(1, 1, 2)
        return AxisRange(1, 2 if "text" in settings else 1, 8)
    if axis in SIDES and settings.get("sample_size"):
        best = int(settings["sample_size"])
        return AxisRange(min(_least(settings), best), best, best + best // 2)
    if axis == TOKENS and settings.get("text"):
        window = int(settings["text"][0]["tokenizer"]["model_max_length"])
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
            found=str(side),
            expected=f"multiples of {scale}",
        )
    return AxisRange(*(end // scale for end in ends))
