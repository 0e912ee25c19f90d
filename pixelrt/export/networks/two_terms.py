"""A convolution that loses little where products are computed in bf16."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class TwoTermConv(nn.Module):
    """The function of ``source``, whose weights become the sum of two terms.

    The first is the weight rounded to bf16, the second the rest. The bias is added to the sum
    of both results: after the last product of a graph OpenVINO computes in fp32, so that
    only differences to the bias (the mean of all pictures, in the networks that end so) are
    ever rounded. For convolutions with few output channels: it doubles them.
    """

    bias: Tensor

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        assert source.bias is not None
        weight = source.weight.detach()
        coarse = weight.bfloat16().float()
        self.conv = copy.deepcopy(source)
        self.conv.out_channels *= 2
        terms = torch.cat((coarse, weight - coarse))
        self.conv.weight = nn.Parameter(terms, requires_grad=False)
        self.conv.bias = None
        self.register_buffer("bias", source.bias.detach().view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        coarse, rest = self.conv(x).chunk(2, dim=1)
        y: Tensor = coarse + rest + self.bias
        return y
