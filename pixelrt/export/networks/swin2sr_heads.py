"""What makes the picture of Swin2SR's features, and convolutions folded into each other.

A head takes ``features (N, C, H, W)``, ``pixels`` (the input) and ``normalised`` (the input
less its mean, times its range), both ``(N, channels_in, H, W)``, and gives
``(N, channels_out, scale*H, scale*W)``. The closing ``/ range + mean`` of the published
networks is in the weights of its last convolution.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812  (the name everybody uses)
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Swin2SRForImageSuperResolution

Maths = Literal["transformers", "authors"]
"""Whose formulas are followed where the two published implementations differ.

=====================  ======================================  =============================
where                  transformers                            authors (mv-lab/swin2sr)
=====================  ======================================  =============================
mask between regions   -200 (-100, added twice)                -100
``pixelshuffle_aux``   enlarges the pixels as they are         enlarges normalised pixels
no upsampler           ``(x + residual) / range + mean``       ``x + residual / range``
=====================  ======================================  =============================
"""


class Direct(nn.Module):
    """One convolution and a pixel shuffle (the light models)."""

    def __init__(self, source: Any, divisor: float, mean: Tensor) -> None:
        super().__init__()
        self.scale = int(source.pixel_shuffle.upscale_factor)
        self.conv = rescaled(source.conv, divisor, mean.repeat_interleave(self.scale**2))

    def forward(self, features: Tensor, pixels: Tensor, normalised: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(features), self.scale)


class Shuffle(nn.Module):
    """Convolutions and pixel shuffles in turn, then one more convolution."""

    def __init__(self, source: Any, divisor: float, mean: Tensor) -> None:
        super().__init__()
        self.before = nn.Sequential(source.conv_before_upsample, nn.LeakyReLU())
        self.steps = nn.Sequential(*source.upsample.children())
        self.last = rescaled(source.final_convolution, divisor, mean)

    def forward(self, features: Tensor, pixels: Tensor, normalised: Tensor) -> Tensor:
        y: Tensor = self.last(self.steps(self.before(features)))
        return y


class ShuffleAux(nn.Module):
    """As :class:`Shuffle`, through a small image, beside the image enlarged bicubically."""

    def __init__(self, source: Any, divisor: float, mean: Tensor, maths: Maths) -> None:
        super().__init__()
        self.maths = maths
        self.scale = int(source.upscale)
        self.bicubic = source.conv_bicubic
        self.small = nn.Sequential(source.conv_before_upsample, nn.LeakyReLU(), source.conv_aux)
        self.steps = nn.Sequential(
            source.conv_after_aux[0], nn.LeakyReLU(), *source.upsample.children()
        )
        self.last = rescaled(source.final_convolution, divisor, mean)

    def forward(self, features: Tensor, pixels: Tensor, normalised: Tensor) -> Tensor:
        given = normalised if self.maths == "authors" else pixels
        large = F.interpolate(
            given, scale_factor=float(self.scale), mode="bicubic", align_corners=False
        )
        y: Tensor = self.last(self.steps(self.small(features)) + self.bicubic(large))
        return y


class Nearest(nn.Module):
    """Twice enlarged by repetition, with convolutions between (the real-world models)."""

    def __init__(self, source: Any, divisor: float, mean: Tensor) -> None:
        super().__init__()
        self.steps = nn.Sequential(
            source.conv_before_upsample,
            nn.LeakyReLU(),
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            source.conv_up1,
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            source.conv_up2,
            nn.LeakyReLU(0.2),
            source.conv_hr,
            nn.LeakyReLU(0.2),
        )
        self.last = rescaled(source.final_convolution, divisor, mean)

    def forward(self, features: Tensor, pixels: Tensor, normalised: Tensor) -> Tensor:
        y: Tensor = self.last(self.steps(features))
        return y


class Residual(nn.Module):
    """No upsampler: the network gives the difference to its input."""

    def __init__(self, source: Any, divisor: float, mean: Tensor, maths: Maths) -> None:
        super().__init__()
        authors = maths == "authors"
        self.divisor = 1.0 if authors else divisor
        self.last = rescaled(source, divisor, torch.zeros_like(mean) if authors else mean)

    def forward(self, features: Tensor, pixels: Tensor, normalised: Tensor) -> Tensor:
        kept = pixels / self.divisor if self.divisor != 1 else pixels
        y: Tensor = kept + self.last(features)
        return y


def head_of(source: Swin2SRForImageSuperResolution, maths: Maths) -> nn.Module:
    """The head of a transformers model."""
    body, config = source.swin2sr, source.config
    divisor = float(body.img_range)
    mean = body.mean.detach().flatten().expand(config.num_channels_out)
    if config.upsampler == "pixelshuffledirect":
        return Direct(source.upsample, divisor, mean)
    if config.upsampler == "pixelshuffle":
        return Shuffle(source.upsample, divisor, mean)
    if config.upsampler == "pixelshuffle_aux":
        return ShuffleAux(source.upsample, divisor, mean, maths)
    if config.upsampler == "nearest+conv":
        return Nearest(source.upsample, divisor, mean)
    return Residual(source.final_convolution, divisor, mean, maths)


def with_pointwise(conv: nn.Module, point: nn.Conv2d) -> nn.Module:
    """The convolution (or a sequence that ends in one) followed by a 1x1 convolution, in one."""
    if isinstance(conv, nn.Sequential):
        *before, last = conv.children()
        return nn.Sequential(*before, with_pointwise(last, point))
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    assert point.bias is not None
    matrix = point.weight.detach().double()[:, :, 0, 0]
    weight = torch.einsum("oc,cikl->oikl", matrix, conv.weight.detach().double())
    bias = matrix @ conv.bias.detach().double() + point.bias.detach().double()
    return changed(conv, weight, bias)


def rescaled(conv: nn.Conv2d, divisor: float, offset: Tensor) -> nn.Conv2d:
    """``conv(x) / divisor + offset`` as one convolution; ``offset`` ``(channels_out,)``."""
    assert conv.bias is not None
    bias = conv.bias.detach().double() / divisor + offset.double()
    return changed(conv, conv.weight.detach().double() / divisor, bias)


def changed(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution like this one with other weights of the same shape."""
    new = copy.deepcopy(conv)
    assert new.bias is not None
    with torch.no_grad():
        new.weight.copy_(weight)
        new.bias.copy_(bias)
    return new
