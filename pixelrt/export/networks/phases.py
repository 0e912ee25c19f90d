"""Transposed convolutions as convolutions, for backends that run only these on matrix units."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F  # noqa: N812  (the name everybody uses)
from torch import Tensor, nn

TAPS = 3
OUTERMOST = 3
"""Deeper levels are small pictures with large weights: reading 9/4 of these costs more."""


class PhaseConv(nn.Module):
    """The function of a doubling transposed convolution (kernel 4, stride 2, padding 1).

    Each output pixel of one phase (even or odd row and column) is a sum over 3x3 input
    pixels at most: one convolution makes the four phases, a pixel shuffle interleaves them.
    """

    def __init__(self, source: nn.ConvTranspose2d) -> None:
        super().__init__()
        assert is_doubling(source)
        inputs, outputs = source.in_channels, source.out_channels
        given = source.weight.detach()
        weight = torch.zeros(outputs, 2, 2, inputs, TAPS, TAPS)
        for row, down, top in _taps():
            for column, right, left in _taps():
                weight[:, row, column, :, down, right] = given[:, :, top, left].T
        self.conv = nn.Conv2d(inputs, 4 * outputs, TAPS, padding=1, bias=source.bias is not None)
        self.conv.weight = nn.Parameter(weight.flatten(0, 2), requires_grad=False)
        if source.bias is not None:
            bias = source.bias.detach().repeat_interleave(4)
            self.conv.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


def _taps() -> list[tuple[int, int, int]]:
    """``(phase, tap of the 3, tap of the 4)`` along one axis.

    Output ``2*i + phase`` has the share of input ``i + tap - 1`` that stands at ``k`` with
    ``2*(i + tap - 1) - 1 + k == 2*i + phase``.
    """
    found = [(phase, tap, phase + 3 - 2 * tap) for phase in (0, 1) for tap in range(TAPS)]
    return [(phase, tap, k) for phase, tap, k in found if 0 <= k < 4]


def is_doubling(module: nn.Module) -> bool:
    """Whether this is a transposed convolution that :class:`PhaseConv` can stand for."""
    return (
        isinstance(module, nn.ConvTranspose2d)
        and module.kernel_size == (4, 4)
        and module.stride == (2, 2)
        and module.padding == (1, 1)
        and module.output_padding == (0, 0)
        and module.dilation == (1, 1)
        and module.groups == 1
    )


def with_phases(net: nn.Module) -> nn.Module:
    """A copy of ``net`` with its outermost (last) transposed convolutions as phases.

    OpenVINO's CPU plugin computes a transposed convolution in fp32 whatever the precision
    asked for: in bf16 this form of a U-Net is 2.5 times as fast. Where fp32 is asked for it
    is a fifth slower.
    """
    net = copy.deepcopy(net)
    names = [name for name, module in net.named_modules() if is_doubling(module)]
    for name in names[-OUTERMOST:]:
        source = net.get_submodule(name)
        assert isinstance(source, nn.ConvTranspose2d)
        net.set_submodule(name, PhaseConv(source))
    return net.eval()
