"""Swin2SR in the form that OpenVINO's CPU plugin runs fastest.

The same function as :class:`swin2sr.Swin2SR`. What differs, and why (measured per operation,
AVX-512 and AMX, 128x128 pixels):

- Query, key and value are three products. Nothing then stands between a product and the
  attention but a reshape and a transpose, which the plugin draws into its fused attention;
  one joint product needs a transpose and a split, both copies.
- Scores, not vectors, are divided by the norms. The squared norms come from a matrix product
  with ones; a reduction over a last axis of 10 or 30 numbers fills no vector register.
- The linear layers before a LayerNorm give outputs of mean zero (the mean is taken out of
  their weights), so that the norm is an RMS norm: one kernel instead of three.
- A layer adds both its branches to its input at once. In bf16 each sum rounds the stream of
  features, and those roundings are the larger part of the error: half as many give 1 dB.
- Channels and the numbers of a head are filled up with zeros to whole blocks of the
  processor's products where that adds little (``zero_channels``).
- The kinds of the windows' masks seem to depend on the image. For one shape the plugin would
  make one constant of mask and bias for every layer, head and window: 20 kB a pixel.
- The weights of the last convolution are the sum of two terms that bf16 holds, and its bias
  is added outside, where the plugin computes in fp32: 3 dB in bf16.

TensorRT fuses other patterns: there this form has more kernels than the plain one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pixelrt.export.networks.swin2sr import Layer, Stage, Swin2SR, position_bias
from pixelrt.export.networks.two_terms import TwoTermConv
from pixelrt.export.networks.zero_channels import (
    Narrow,
    Widen,
    grown,
    linear,
    whole_blocks,
    wide_conv,
    wide_linear,
)

if TYPE_CHECKING:
    from transformers import Swin2SRForImageSuperResolution

    from pixelrt.export.networks.swin2sr_heads import Maths

SMALLEST = 1e-24
"""Bound of a squared norm; that of the norm is 1e-12, as in ``F.normalize``."""


def centred(layer: nn.Linear) -> nn.Linear:
    """``layer(x) - layer(x).mean(-1)`` as one layer."""
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    return linear(weight - weight.mean(0), bias - bias.mean())


class SquaredNorms(nn.Module):
    """``(M, heads * size)`` to ``(M, heads)``: the squared norm of each head, times ``factor``."""

    def __init__(self, heads: int, size: int, factor: Tensor) -> None:
        super().__init__()
        self.sum = linear(torch.kron(torch.diag(factor.double().flatten()), torch.ones(1, size)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(self.sum(x * x), min=SMALLEST)


class ThreeProducts(nn.Module):
    """Cosine attention in windows: ``(M, C)`` to ``(M, C)``, tokens in window order.

    The result has mean zero over C: it goes into a norm that would take the mean out.
    """

    bias: Tensor

    def __init__(self, source: Any, width: int) -> None:
        super().__init__()
        own = source.self
        self.heads = int(own.num_attention_heads)
        given = int(own.attention_head_size)
        self.head_size = whole_blocks(given)
        self.tokens = int(own.window_size[0] * own.window_size[1])
        parts = (own.query, own.key, own.value)
        self.query, self.key, self.value = (self.wide(part, width) for part in parts)
        out = centred(source.output.dense)
        self.out = wide_linear(linear(self.wide_heads(out.weight.T).T, out.bias), width)
        scale = torch.exp(own.logit_scale.detach().double().clamp(max=math.log(1.0 / 0.01)))
        self.query_norms = SquaredNorms(self.heads, self.head_size, scale**-2)
        self.key_norms = SquaredNorms(self.heads, self.head_size, torch.ones(self.heads))
        self.register_buffer("bias", position_bias(own), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key = self.query(x), self.key(x)
        over_query = torch.rsqrt(self.query_norms(query)).reshape(-1, self.tokens, self.heads, 1)
        over_key = torch.rsqrt(self.key_norms(key)).reshape(-1, self.tokens, 1, self.heads)
        scores = self.by_head(query).transpose(1, 2) @ self.by_head(key).permute(0, 2, 3, 1)
        scores = scores * over_query.transpose(1, 2) * over_key.permute(0, 3, 2, 1) + self.bias
        if mask is not None:
            scores = scores + mask
        context = torch.softmax(scores, dim=-1) @ self.by_head(self.value(x)).transpose(1, 2)
        y: Tensor = self.out(context.transpose(1, 2).reshape(-1, self.heads * self.head_size))
        return y

    def wide(self, layer: nn.Linear, width: int) -> nn.Linear:
        bias = None if layer.bias is None else self.wide_heads(layer.bias)
        return wide_linear(linear(self.wide_heads(layer.weight), bias), into=width)

    def wide_heads(self, rows: Tensor) -> Tensor:
        """``(heads * size, ...)`` with zeros behind each head's rows."""
        by_head = rows.reshape(self.heads, -1, *rows.shape[1:])
        return grown(by_head, self.heads, self.head_size).flatten(0, 1)

    def by_head(self, x: Tensor) -> Tensor:
        """``(M, C)`` to ``(windows, tokens, heads, head_size)``."""
        return x.reshape(-1, self.tokens, self.heads, self.head_size)


class CentredNorm(nn.Module):
    """A LayerNorm for inputs ``(M, width)`` of mean zero, without its bias.

    The mean of the squares is over the channels that are not zeros: eps and the weights
    make up for those that are.
    """

    def __init__(self, source: nn.LayerNorm, width: int) -> None:
        super().__init__()
        share = source.weight.shape[0] / width
        weight = grown(source.weight.detach().double() * math.sqrt(share), width)
        self.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.eps = source.eps * share

    def forward(self, x: Tensor) -> Tensor:
        # In this order the plugin knows it as its RMS operation.
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class OneSumLayer(Layer):
    """``swin2sr.Layer`` with both branches added to its input in one sum, ``(M, width)``."""

    bias1: Tensor
    bias2: Tensor

    def __init__(self, source: Any, width: int) -> None:
        super().__init__(source)
        self.own_attention = ThreeProducts(source.attention, width)
        del self.attention
        hidden = whole_blocks(self.up.out_features)
        self.up = wide_linear(self.up, hidden, width)
        self.down = wide_linear(centred(self.down), width, hidden)
        first = self.norm1.bias.detach()
        self.register_buffer("bias1", grown(first, width), persistent=False)
        both = grown(first + self.norm2.bias.detach(), width)
        self.register_buffer("bias2", both, persistent=False)
        self.norm1, self.norm2 = CentredNorm(self.norm1, width), CentredNorm(self.norm2, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        first = self.norm1(self.own_attention(x, mask))
        middle = x + (first + self.bias1)
        second = self.norm2(self.down(self.activation(self.up(middle))))
        y: Tensor = x + (second + self.bias2) + first
        return y


class OpenVINOSwin2SR(Swin2SR):
    """A transformers model rebuilt; the contract is that of :class:`swin2sr.Swin2SR`."""

    def __init__(self, source: Swin2SRForImageSuperResolution, maths: Maths) -> None:
        super().__init__(source, maths)
        channels = int(source.config.embed_dim)
        width = whole_blocks(channels)
        for stage, given in zip(self.stages, source.swin2sr.encoder.stages, strict=True):
            assert isinstance(stage, Stage)
            stage.layers = nn.ModuleList(OneSumLayer(layer, width) for layer in given.layers)
            stage.conv = wide_conv(stage.conv, width)
        if width != channels:
            self.patch_norm = nn.Sequential(self.patch_norm, Widen(width - channels))
            self.norm = nn.Sequential(Narrow(channels), self.norm)
        closing = "conv" if hasattr(self.head, "conv") else "last"
        setattr(self.head, closing, TwoTermConv(getattr(self.head, closing)))
        self.eval()

    def kinds(self, shallow: Tensor) -> Tensor:
        """With a zero added that only a run gives."""
        zero = (shallow[:1, :1, :1, :1] > math.inf).to(torch.int64).reshape(1)
        return super().kinds(shallow) + zero
