"""Names, shapes and scales of rosinality/stylegan2-pytorch (``model.py``), as NVIDIA's."""

from __future__ import annotations

import math
import re

import torch

from pixelrt.export.families._weights import check_parameters
from pixelrt.export.networks.stylegan2 import START, fir_filter
from pixelrt.export.recipe import Tensors

NOISE_SEED = 0
_NOISE = re.compile(r"noises\.noise_\d+")
_PLACE = re.compile(r"synthesis\.b(\d+)\.(?:(conv0|conv1|torgb)\.)?(.+)")
_LAYER = {
    "affine.weight": "conv.modulation.weight",
    "affine.bias": "conv.modulation.bias",
    "weight": "conv.weight",
    "noise_strength": "noise.weight",
    "bias": "activate.bias",
}
_RGB = {**_LAYER, "bias": "bias"}


def from_rosinality(tensors: Tensors, expected: Tensors) -> dict[str, torch.Tensor]:
    """``tensors`` with the names, shapes and scales of ``expected``, NVIDIA's state dict of the
    same network (its values do not matter). Without ``mapping.w_avg``.

    Convolution weights get the factor of equalised learning rate that NVIDIA's code leaves
    out before a demodulation; the epsilon of the demodulation makes that a difference.
    Old checkpoints have no noise; then it is drawn, the same each time.
    Raises CheckpointError naming each of rosinality's parameters that does not fit.
    """
    names = {name: theirs for name in expected if (theirs := rosinality_name(name))}
    shapes = {
        theirs: torch.empty(_their_shape(name, expected[name]), device="meta")
        for name, theirs in names.items()
    }
    if not any(_NOISE.fullmatch(name) for name in tensors):
        tensors = {**tensors, **_drawn(shapes)}
    check_parameters(shapes, tensors)
    found = {
        name: _scaled(name, tensors[theirs].float().reshape(expected[name].shape))
        for name, theirs in names.items()
    }
    filters = [name for name in expected if name.endswith("resample_filter")]
    return {**{name: fir_filter() for name in filters}, **found}


def rosinality_name(name: str) -> str | None:
    """Rosinality's name of NVIDIA's parameter ``name``; None if it has none."""
    if match := re.fullmatch(r"mapping\.fc(\d+)\.(weight|bias)", name):
        return f"style.{int(match[1]) + 1}.{match[2]}"
    if name == f"synthesis.b{START}.const":
        return "input.input"
    match = _PLACE.fullmatch(name)
    if match is None:
        return None
    level, layer, rest = int(match[1]).bit_length() - START.bit_length(), match[2], match[3]
    if layer is None or layer == "torgb":
        where = f"to_rgbs.{level - 1}" if level else "to_rgb1"
        if layer is None:
            return f"{where}.upsample.kernel" if level else None
        return f"{where}.{_RGB[rest]}"
    row = 2 * level - 1 + int(layer == "conv1") if level else 0
    if rest == "noise_const":
        return f"noises.noise_{row}"
    where = f"convs.{row - 1}" if level else "conv1"
    if rest == "resample_filter":
        return f"{where}.conv.blur.kernel" if layer == "conv0" else None
    return f"{where}.{_LAYER[rest]}"


def _their_shape(name: str, tensor: torch.Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    if name.endswith(("const", "noise_strength")) or len(shape) == 4:
        shape = (1, *shape)
    if name.endswith("noise_const"):
        shape = (1, *shape)
    return (1, *shape, 1, 1) if name.endswith("torgb.bias") else shape


def _scaled(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith("resample_filter"):
        return tensor / 4
    if re.search(r"conv[01]\.weight$", name):
        return tensor / math.sqrt(tensor[0].numel())
    return tensor


def _drawn(shapes: Tensors) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(NOISE_SEED)
    return {
        name: torch.randn(shape.shape, generator=generator)
        for name, shape in shapes.items()
        if _NOISE.fullmatch(name)
    }
