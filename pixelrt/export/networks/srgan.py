"""The SRResNet generator of SRGAN (Ledig et al. 2017, arXiv:1609.04802).

Parameter names and defaults are those of the public tutorial
sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution (``models.py``), so that checkpoints
trained with it load unchanged.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn


class ConvBlock(nn.Module):
    """Convolution, then optionally batch norm, then optionally an activation."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        norm: bool = False,
        activation: Literal["prelu", "tanh"] | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
        ]
        if norm:
            layers.append(nn.BatchNorm2d(channels_out))
        if activation is not None:
            layers.append(nn.PReLU() if activation == "prelu" else nn.Tanh())
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv_block(x)
        return y


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside an identity."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv_block1 = ConvBlock(channels, channels, kernel, norm=True, activation="prelu")
        self.conv_block2 = ConvBlock(channels, channels, kernel, norm=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv_block2(self.conv_block1(x))
        return y + x


class SubPixelBlock(nn.Module):
    """Doubles height and width by a convolution and a pixel shuffle."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * 4, kernel, padding=kernel // 2)
        self.pixel_shuffle = nn.PixelShuffle(2)
        self.prelu = nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.prelu(self.pixel_shuffle(self.conv(x)))
        return y


class SRResNet(nn.Module):
    """``(N, 3, H, W)``, ImageNet-normalised, to ``(N, 3, scale*H, scale*W)`` in [-1, 1].

    ``upsamplers`` is log2 of the scale: 1, 2 or 3 for scale 2, 4 or 8.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        blocks: int = 16,
        upsamplers: int = 2,
        large_kernel: int = 9,
        small_kernel: int = 3,
    ) -> None:
        super().__init__()
        self.conv_block1 = ConvBlock(3, channels, large_kernel, activation="prelu")
        self.residual_blocks = nn.Sequential(
            *(ResidualBlock(channels, small_kernel) for _ in range(blocks))
        )
        self.conv_block2 = ConvBlock(channels, channels, small_kernel, norm=True)
        self.subpixel_convolutional_blocks = nn.Sequential(
            *(SubPixelBlock(channels, small_kernel) for _ in range(upsamplers))
        )
        self.conv_block3 = ConvBlock(channels, 3, large_kernel, activation="tanh")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.conv_block1(x)
        y = self.conv_block2(self.residual_blocks(first)) + first
        z: torch.Tensor = self.conv_block3(self.subpixel_convolutional_blocks(y))
        return z
