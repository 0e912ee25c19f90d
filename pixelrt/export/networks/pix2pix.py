"""The U-Net generators of pix2pix (Isola et al. 2017, arXiv:1611.07004).

``ChapterUNet`` has the parameter names of the book chapter's ``GeneratorUNet`` (the same as
eriklindernoren/PyTorch-GAN), ``SkipUNet`` those of ``unet_128`` and ``unet_256`` of
junyanz/pytorch-CycleGAN-and-pix2pix, so that their checkpoints load unchanged. Dropout is
a training-time noise source: it is left out, as in eval mode.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn

from pixelrt.export.networks.norm import Norm, norm_layer

CHAPTER_DOWNS = 8


def level_widths(width: int, downs: int) -> list[int]:
    """Channels after each of the ``downs`` halvings: doubling, up to ``8 * width``."""
    return [width * min(2**level, 8) for level in range(downs)]


class UNetDown(nn.Module):
    """``(N, channels_in, H, W)`` to ``(N, channels_out, H/2, W/2)``."""

    def __init__(self, channels_in: int, channels_out: int, *, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels_in, channels_out, 4, 2, 1, bias=False)]
        if norm:
            layers.append(nn.InstanceNorm2d(channels_out))
        self.model = nn.Sequential(*layers, nn.LeakyReLU(0.2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.model(x)
        return y


class UNetUp(nn.Module):
    """``(N, channels_in, H, W)`` to ``(N, channels_out, 2*H, 2*W)``, then the skip appended."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1, bias=False),
            nn.InstanceNorm2d(channels_out),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.model(x), skip), 1)


class ChapterUNet(nn.Module):
    """``(N, channels_in, H, W)`` to ``(N, channels_out, H, W)``, both in [-1, 1].

    H and W are multiples of 256. Parameters: ``down1`` … ``down8``, ``up1`` … ``up7``, ``final``.
    """

    def __init__(self, *, channels_in: int = 3, channels_out: int = 3, width: int = 64) -> None:
        super().__init__()
        widths = level_widths(width, CHAPTER_DOWNS)
        for level, (before, after) in enumerate(pairwise([channels_in, *widths]), 1):
            # The first level is not normalised; the last is 1x1 at the smallest size.
            norm = level not in (1, CHAPTER_DOWNS)
            self.add_module(f"down{level}", UNetDown(before, after, norm=norm))
        incoming = widths[-1]
        for level, after in enumerate(reversed(widths[:-1]), 1):
            self.add_module(f"up{level}", UNetUp(incoming, after))
            incoming = 2 * after
        self.final = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.ZeroPad2d((1, 0, 1, 0)),
            nn.Conv2d(incoming, channels_out, 4, padding=1),
            nn.Tanh(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in range(1, CHAPTER_DOWNS + 1):
            x = self.get_submodule(f"down{level}")(x)
            skips.append(x)
        skips.pop()
        for level in range(1, CHAPTER_DOWNS):
            x = self.get_submodule(f"up{level}")(x, skips.pop())
        y: torch.Tensor = self.final(x)
        return y


class SkipBlock(nn.Module):
    """``(N, outer, H, W)`` to ``(N, 2*outer, H, W)``: the input and what the levels below make.

    ``inside`` is the next level, taking ``inner`` channels; ``None`` at the bottom.
    """

    def __init__(self, outer: int, inner: int, norm: Norm, inside: SkipBlock | None) -> None:
        super().__init__()
        bias = norm == "instance"
        below: list[nn.Module] = [] if inside is None else [norm_layer(norm, inner), inside]
        self.model = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Conv2d(outer, inner, 4, 2, 1, bias=bias),
            *below,
            nn.ReLU(),
            nn.ConvTranspose2d(2 * inner if below else inner, outer, 4, 2, 1, bias=bias),
            norm_layer(norm, outer),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The original's LeakyReLU works in place and so changes this skip too. The next
        # layer is always a ReLU, and ReLU(LeakyReLU(x)) = ReLU(x): the result is the same.
        return torch.cat((x, self.model(x)), 1)


class SkipUNet(nn.Module):
    """``(N, channels_in, H, W)`` to ``(N, channels_out, H, W)``, both in [-1, 1].

    H and W are multiples of ``2 ** downs``; ``downs`` is at least 2 (8: ``unet_256``,
    7: ``unet_128``). Convolutions have biases only beside instance norm; the last always.
    """

    def __init__(
        self,
        *,
        channels_in: int = 3,
        channels_out: int = 3,
        width: int = 64,
        downs: int = 8,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        inside: SkipBlock | None = None
        for outer, inner in reversed(list(pairwise(level_widths(width, downs)))):
            inside = SkipBlock(outer, inner, norm, inside)
        assert inside is not None
        levels = nn.Sequential(
            nn.Conv2d(channels_in, width, 4, 2, 1, bias=norm == "instance"),
            inside,
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, channels_out, 4, 2, 1),
            nn.Tanh(),
        )
        self.model = nn.Sequential(OrderedDict(model=levels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.model(x)
        return y
