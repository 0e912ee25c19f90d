"""Layers with zero channels added, for processors that multiply in blocks of channels.

A row of an AMX tile holds 32 numbers of bf16, an AVX-512 register 16 of fp32. A product over
180 channels ends in a part of a block, in kernels of its own; one over 192 does not. The
channels that are added hold zeros from layer to layer: they change no other number.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F  # noqa: N812  (the name everybody uses)
from torch import Tensor, nn

BLOCK = 32
LARGEST_GROWTH = 1.1


def whole_blocks(channels: int) -> int:
    """The next multiple of 32 where that adds a tenth at most, else ``channels``."""
    wide = -(-channels // BLOCK) * BLOCK
    return wide if wide <= channels * LARGEST_GROWTH else channels


def grown(values: Tensor, *sizes: int) -> Tensor:
    """``values`` with zeros behind its first axes, which become ``sizes`` long."""
    new = torch.zeros(*sizes, *values.shape[len(sizes) :], dtype=values.dtype)
    new[tuple(slice(length) for length in values.shape)] = values.detach()
    return new


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A frozen float32 layer with these weights ``(out, in)``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().float().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().float().contiguous(), requires_grad=False)
    return layer


def wide_linear(layer: nn.Linear, out: int = 0, into: int = 0) -> nn.Linear:
    """``layer`` with ``out`` channels from ``into``; 0: as many as it has."""
    out, into = out or layer.out_features, into or layer.in_features
    bias = None if layer.bias is None else grown(layer.bias, out)
    return linear(grown(layer.weight, out, into), bias)


def wide_conv(conv: nn.Module, width: int) -> nn.Module:
    """A convolution, or a sequence that begins and ends in one, from and to ``width``."""
    if isinstance(conv, nn.Sequential):
        first, *between, last = conv.children()
        return nn.Sequential(_wide(first, into=width), *between, _wide(last, out=width))
    return _wide(conv, width, width)


def _wide(conv: nn.Module, out: int = 0, into: int = 0) -> nn.Conv2d:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    new = copy.deepcopy(conv)
    new.out_channels, new.in_channels = out or conv.out_channels, into or conv.in_channels
    weight = grown(conv.weight, new.out_channels, new.in_channels)
    new.weight = nn.Parameter(weight, requires_grad=False)
    new.bias = nn.Parameter(grown(conv.bias, new.out_channels), requires_grad=False)
    return new


class Widen(nn.Module):
    """``(M, channels)`` to ``(M, channels + more)``."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.more))


class Narrow(nn.Module):
    """``(M, width)`` to ``(M, channels)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.channels]
