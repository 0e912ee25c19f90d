"""The residual generators of CycleGAN (Zhu et al. 2017, arXiv:1703.10593).

``ChapterResNet`` has the parameter names of the book chapter's ``GeneratorResNet`` (the same
as eriklindernoren/PyTorch-GAN), ``DeconvResNet`` those of ``resnet_6blocks`` and
``resnet_9blocks`` of junyanz/pytorch-CycleGAN-and-pix2pix, so that their checkpoints load
unchanged. They differ in how they enlarge: nearest + convolution, or transposed convolution.
"""

from __future__ import annotations

import torch
from torch import nn

from pixelrt.export.networks.norm import Norm, norm_layer


def _branch(channels: int, norm: Norm, *, dropout: bool) -> nn.Sequential:
    """Two 3x3 convolutions, reflection-padded. Dropout is off but keeps its number."""
    bias = norm == "instance"
    return nn.Sequential(
        nn.ReflectionPad2d(1),
        nn.Conv2d(channels, channels, 3, bias=bias),
        norm_layer(norm, channels),
        nn.ReLU(),
        *([nn.Identity()] if dropout else []),
        nn.ReflectionPad2d(1),
        nn.Conv2d(channels, channels, 3, bias=bias),
        norm_layer(norm, channels),
    )


class ChapterBlock(nn.Module):
    """``(N, channels, H, W)``, H and W at least 2, to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = _branch(channels, "instance", dropout=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.block(x)
        return x + y


class DeconvBlock(nn.Module):
    """``(N, channels, H, W)``, H and W at least 2, to the same shape."""

    def __init__(self, channels: int, norm: Norm, *, dropout: bool) -> None:
        super().__init__()
        self.conv_block = _branch(channels, norm, dropout=dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv_block(x)
        return x + y


def _head(channels_in: int, width: int, norm: Norm) -> list[nn.Module]:
    """Layers 0 to 9: a 7x7 convolution, then two halvings to ``4 * width`` channels."""
    bias = norm == "instance"
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(channels_in, width, 7, bias=bias)]
    layers += [norm_layer(norm, width), nn.ReLU()]
    for before in (width, 2 * width):
        layers += [nn.Conv2d(before, 2 * before, 3, 2, 1, bias=bias)]
        layers += [norm_layer(norm, 2 * before), nn.ReLU()]
    return layers


def _tail(width: int, channels_out: int) -> list[nn.Module]:
    # The chapter writes its number of channels (3) for this padding; 3 is what a 7x7 needs.
    return [nn.ReflectionPad2d(3), nn.Conv2d(width, channels_out, 7), nn.Tanh()]


class ChapterResNet(nn.Module):
    """``(N, channels_in, H, W)`` to ``(N, channels_out, H, W)``, both in [-1, 1].

    H and W are multiples of 4 and at least 8. Instance norm everywhere.
    """

    def __init__(
        self, *, channels_in: int = 3, channels_out: int = 3, width: int = 64, blocks: int = 9
    ) -> None:
        super().__init__()
        layers = _head(channels_in, width, "instance")
        layers += [ChapterBlock(4 * width) for _ in range(blocks)]
        for after in (2 * width, width):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(2 * after, after, 3, padding=1)]
            layers += [nn.InstanceNorm2d(after), nn.ReLU()]
        self.model = nn.Sequential(*layers, *_tail(width, channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.model(x)
        return y


class DeconvResNet(nn.Module):
    """``(N, channels_in, H, W)`` to ``(N, channels_out, H, W)``, both in [-1, 1].

    H and W are multiples of 4 and at least 8. Convolutions have biases only beside
    instance norm; the last always.
    """

    def __init__(
        self,
        *,
        channels_in: int = 3,
        channels_out: int = 3,
        width: int = 64,
        blocks: int = 9,
        norm: Norm = "instance",
        dropout: bool = False,
    ) -> None:
        super().__init__()
        layers = _head(channels_in, width, norm)
        layers += [DeconvBlock(4 * width, norm, dropout=dropout) for _ in range(blocks)]
        bias = norm == "instance"
        for after in (2 * width, width):
            layers += [nn.ConvTranspose2d(2 * after, after, 3, 2, 1, 1, bias=bias)]
            layers += [norm_layer(norm, after), nn.ReLU()]
        self.model = nn.Sequential(*layers, *_tail(width, channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.model(x)
        return y
