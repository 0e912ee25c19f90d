"""From what the user asked for and what the machine has to a tile plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil
from typing import Literal

from msgspec.structs import replace

from pixelrt.errors import OutOfMemoryError, UsageError
from pixelrt.geometry import Size, TilePlan, choose_tile, plan_tiles, round_up
from pixelrt.grid import grid_size, library_size
from pixelrt.manifest import Manifest
from pixelrt.runtime.machine import available_memory

MEMORY_SHARE = 0.5
"""Share of the free memory that a run may take when no limit is given."""


@dataclass(frozen=True)
class RunOptions:
    """How to run an image.

    ``tile``: ``auto``, ``off`` (the whole image at once) or a side length in input pixels.
    ``halo``: ``exact``, a number of input pixels, or a fidelity such as ``60dB`` for which
    the bundle holds a measured halo. ``max_memory``: bytes for the network's working
    memory: the device's where the network runs on one. ``pad``: ``grid`` (only what the
    network needs) or ``library`` (as the original library pads). ``streams``: tiles that a
    device computes at the same time; a backend without streams ignores it.
    """

    tile: Literal["auto", "off"] | int = "auto"
    halo: Literal["exact"] | str | int = "exact"
    max_memory: int | None = None
    pad: Literal["grid", "library"] = "grid"
    streams: int = 1


def padded_size(size: Size, manifest: Manifest, pad: str) -> Size:
    """The size that goes into the tile plan. Raises ``UsageError`` for unknown ``pad``."""
    if pad == "grid":
        return grid_size(size, manifest.image)
    if pad != "library":
        raise UsageError(f"unknown padding {pad!r}", expected="grid or library")
    if not manifest.image.library_divisor:
        raise UsageError(
            f"{manifest.family} networks have no padding of their own library",
            hint="use --pad grid",
        )
    return library_size(size, manifest.image)


def memory_budget(options: RunOptions) -> int:
    """Bytes that a run may take: what was asked for, or a share of what is free now."""
    return options.max_memory or int(available_memory() * MEMORY_SHARE)


def memory_need(manifest: Manifest, pixels: int) -> int:
    """Estimated bytes for a run of the network over ``pixels`` input pixels."""
    return manifest.memory.fixed + manifest.memory.per_pixel * pixels


def with_memory_share(manifest: Manifest, share: float) -> Manifest:
    """The manifest with its estimate per pixel scaled to what a backend takes of it."""
    need = manifest.memory
    return replace(manifest, memory=replace(need, per_pixel=ceil(need.per_pixel * share)))


def resolve_halo(halo: str | int, manifest: Manifest) -> int:
    """The halo in input pixels, a multiple of the alignment."""
    field = manifest.receptive_field
    if field.halo is None:
        raise UsageError(f"{manifest.name} sees the whole image: no halo makes its tiles right")
    if halo == "exact":
        return field.halo
    text = str(halo)
    if text.isdigit():
        return round_up(int(text), field.alignment)
    if re.fullmatch(r"\d+dB", text) and text in field.curve:
        return field.curve[text]
    known = ", ".join(["exact", *field.curve, "a number of pixels"])
    raise UsageError(f"unknown halo {text!r}", expected=known)


def plan_image(size: Size, manifest: Manifest, options: RunOptions) -> TilePlan:
    """The tile plan for an image of ``size`` (not yet padded).

    Raises ``OutOfMemoryError`` with the numbers where not even the smallest tile fits, or
    where a network with whole-image statistics would need more than there is.
    """
    image = padded_size(size, manifest, options.pad)
    budget = memory_budget(options)
    if manifest.receptive_field.halo is None:
        return _whole(image, manifest, options, budget)
    if options.tile == "off":
        return plan_tiles(image, image, 0)
    halo = resolve_halo(options.halo, manifest)
    grid = max(manifest.image.multiple, manifest.receptive_field.alignment)
    if options.tile != "auto":
        return plan_tiles(image, asked_tile(options.tile, image, halo, grid), halo)
    need = manifest.memory
    tile = choose_tile(image, halo, grid, max(0, budget - need.fixed) // max(1, need.per_pixel))
    if tile is None:
        side = 2 * halo + grid
        smallest = min(side, image.height) * min(side, image.width)
        raise OutOfMemoryError(
            "the memory given is too small for one tile",
            found=f"{_mib(budget)} to work in",
            expected=f"{_mib(memory_need(manifest, smallest))} for a tile of {side}x{side} "
            f"(halo {halo})",
            hint="raise --max-memory, or lower the fidelity with --halo 60dB",
        )
    return plan_tiles(image, tile, halo)


def _whole(image: Size, manifest: Manifest, options: RunOptions, budget: int) -> TilePlan:
    why = f"{manifest.name} normalises with statistics of the whole image"
    if options.tile not in ("auto", "off"):
        raise UsageError(
            f"{why}: tiles would change the picture", hint="leave --tile out, or use --tile off"
        )
    need = memory_need(manifest, image.pixels)
    if options.tile == "auto" and need > budget:
        raise OutOfMemoryError(
            f"{why}, so {image} has to run at once and does not fit",
            found=f"{_mib(budget)} to work in",
            expected=f"about {_mib(need)}",
            hint="use a smaller image (--resize), raise --max-memory, or insist with --tile off",
        )
    return plan_tiles(image, image, 0)


def asked_tile(side: int, image: Size, halo: int, grid: int) -> Size:
    """A square tile of ``side``, rounded up to the grid."""
    if side < 1:
        raise UsageError(f"a tile of {side} pixels", expected="a positive number")
    length = round_up(side, grid)
    smallest = 2 * halo + grid
    if length < smallest and (length < image.height or length < image.width):
        raise UsageError(
            f"a tile of {side} is too small",
            found=f"halo {halo} on each cut side",
            expected=f"at least {smallest}",
            hint="use a larger --tile, or a smaller --halo such as 60dB",
        )
    return Size(length, length)


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
