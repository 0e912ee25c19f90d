"""The StyleGAN2 generator (Karras et al. 2020, arXiv:1912.04958), skip architecture.

Parameter names, shapes and defaults are those of NVlabs/stylegan2-ada-pytorch
(``training/networks.py``) and NVlabs/stylegan3 (``training/networks_stylegan2.py``), so that
their state dicts load unchanged. Computes in the type of its parameters everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (the name everybody uses)
from torch import Tensor, nn

SLOPE = 0.2
GAIN = math.sqrt(2)
"""Of every leaky ReLU, which keeps the second moment of a normal signal."""

EPSILON = 1e-8
FIR = (1.0, 3.0, 3.0, 1.0)
START = 4
"""Side of the constant that synthesis starts with."""


@dataclass(frozen=True)
class Architecture:
    """The shape of a generator.

    ``resolution``: side of the image, a power of two from 8. ``channel_base``,
    ``channel_max``: a block of side r has ``min(channel_base // r, channel_max)`` channels.
    ``label_dim``: length of the class label, 0 without. ``conv_clamp``: what the outputs of
    convolutions are clamped to in both directions, 0 for not at all.
    ``mapping_lr_multiplier``: of the learning rate of the mapping, a factor of its weights.
    """

    resolution: int = 1024
    channel_base: int = 32768
    channel_max: int = 512
    z_dim: int = 512
    w_dim: int = 512
    label_dim: int = 0
    mapping_layers: int = 8
    image_channels: int = 3
    conv_clamp: int = 0
    mapping_lr_multiplier: float = 0.01

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides of the blocks: 4, 8, … ``resolution``."""
        return tuple(2**i for i in range(2, self.resolution.bit_length()))

    @property
    def num_ws(self) -> int:
        """How many rows of w one image takes: one for each convolution, and one for the last
        conversion to RGB, whose predecessors share theirs with the next convolution."""
        return 2 * len(self.sides)

    def channels(self, side: int) -> int:
        return min(self.channel_base // side, self.channel_max)


def fir_filter() -> Tensor:
    """The low-pass filter of every upsampling: (4, 4), sum 1."""
    taps = torch.tensor(FIR)
    return torch.outer(taps, taps) / taps.sum() ** 2


def normalise(x: Tensor) -> Tensor:
    """Each row divided by the root of its mean square."""
    return x * (x.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt()


def upsample(x: Tensor, fir: Tensor) -> Tensor:
    """``(N, C, H, W)`` to ``(N, C, 2*H, 2*W)``: zeros between the samples, then the filter."""
    channels = x.shape[1]
    kernel = (fir * 4).expand(channels, 1, 4, 4)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)


class Linear(nn.Module):
    """A fully connected layer with equalised learning rate (Karras et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.weight_gain = lr_multiplier / math.sqrt(inputs)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class Mapping(nn.Module):
    """z ``(N, z_dim)`` and, with ``label_dim``, a one-hot label ``(N, label_dim)``, to
    w ``(N, w_dim)``, not truncated."""

    w_avg: Tensor

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.depth = arch.mapping_layers
        inputs = arch.z_dim
        if arch.label_dim:
            self.embed = Linear(arch.label_dim, arch.w_dim)
            inputs += arch.w_dim
        for i in range(arch.mapping_layers):
            self.add_module(f"fc{i}", Linear(inputs, arch.w_dim, arch.mapping_lr_multiplier))
            inputs = arch.w_dim
        self.register_buffer("w_avg", torch.empty(arch.w_dim))

    def layers(self) -> list[Linear]:
        layers = [self.get_submodule(f"fc{i}") for i in range(self.depth)]
        return [layer for layer in layers if isinstance(layer, Linear)]

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x = normalise(z)
        if label is not None:
            x = torch.cat((x, normalise(self.embed(label))), dim=1)
        for layer in self.layers():
            x = F.leaky_relu(layer(x), SLOPE) * GAIN
        return x


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU; with ``up``, upsampling before."""

    noise_const: Tensor
    resample_filter: Tensor

    def __init__(self, arch: Architecture, inputs: int, side: int, *, up: bool) -> None:
        super().__init__()
        outputs = arch.channels(side)
        self.up = up
        self.clamp = arch.conv_clamp
        self.affine = Linear(arch.w_dim, inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.register_buffer("noise_const", torch.empty(side, side))
        self.noise_strength = nn.Parameter(torch.empty(()))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.register_buffer("resample_filter", torch.empty(4, 4))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """``w`` (N, w_dim); ``noise`` of unit variance, broadcast to (N, 1, side, side)."""
        styles = self.affine(w)
        weight = self.weight * styles[:, None, :, None, None]
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + EPSILON).rsqrt()
        y = self._convolve(x, weight)
        if noise is not None:
            y = y + noise * self.noise_strength
        y = F.leaky_relu(y + self.bias[:, None, None], SLOPE) * GAIN
        return y.clamp(-self.clamp, self.clamp) if self.clamp else y

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Every image of the batch with its own weight, (N, outputs, inputs, 3, 3)."""
        images = x.shape[0]
        grouped = x.reshape(1, -1, *x.shape[2:])
        if not self.up:
            y = F.conv2d(grouped, weight.flatten(0, 1), padding=1, groups=images)
            return y.reshape(images, -1, *y.shape[2:])
        turned = weight.transpose(1, 2).flatten(0, 1)
        y = F.conv_transpose2d(grouped, turned, stride=2, groups=images)
        y = y.reshape(images, -1, *y.shape[2:])
        channels = y.shape[1]
        kernel = (self.resample_filter * 4).expand(channels, 1, 4, 4)
        return F.conv2d(y, kernel, padding=1, groups=channels)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution without demodulation."""

    def __init__(self, arch: Architecture, side: int) -> None:
        super().__init__()
        inputs = arch.channels(side)
        self.clamp = arch.conv_clamp
        self.affine = Linear(arch.w_dim, inputs)
        self.weight = nn.Parameter(torch.empty(arch.image_channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.empty(arch.image_channels))
        self.gain = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles = self.affine(w) * self.gain
        weight = self.weight[:, :, 0, 0] * styles[:, None, :]
        y = torch.einsum("noi,nihw->nohw", weight, x) + self.bias[:, None, None]
        return y.clamp(-self.clamp, self.clamp) if self.clamp else y


class Block(nn.Module):
    """Everything that happens at one side: convolutions and the image so far."""

    resample_filter: Tensor

    def __init__(self, arch: Architecture, side: int) -> None:
        super().__init__()
        channels = arch.channels(side)
        self.register_buffer("resample_filter", torch.empty(4, 4))
        if side == START:
            self.const = nn.Parameter(torch.empty(channels, START, START))
        else:
            self.conv0 = SynthesisLayer(arch, arch.channels(side // 2), side, up=True)
        self.conv1 = SynthesisLayer(arch, channels, side, up=False)
        self.torgb = ToRGB(arch, side)

    def layers(self) -> list[SynthesisLayer]:
        return [m for m in (getattr(self, "conv0", None), self.conv1) if m is not None]


class Synthesis(nn.Module):
    """ws ``(N, num_ws, w_dim)`` to an image ``(N, image_channels, R, R)``, nominally in
    [-1, 1], not clamped.

    ``noise``: for every convolution in order one tensor that broadcasts to (N, 1, r, r),
    or ``None`` for no noise; ``constant_noise()`` gives those of the checkpoint.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        for side in arch.sides:
            self.add_module(f"b{side}", Block(arch, side))

    def blocks(self) -> list[Block]:
        blocks = [self.get_submodule(f"b{side}") for side in self.arch.sides]
        return [block for block in blocks if isinstance(block, Block)]

    def constant_noise(self) -> list[Tensor]:
        """The noise of the checkpoint, (r, r) for each convolution."""
        return [layer.noise_const for block in self.blocks() for layer in block.layers()]

    def forward(self, ws: Tensor, noise: list[Tensor] | None = None) -> Tensor:
        blocks = self.blocks()
        x = blocks[0].const.expand(ws.shape[0], -1, -1, -1)
        image: Tensor | None = None
        row = 0
        for block in blocks:
            for layer in block.layers():
                x = layer(x, ws[:, row], None if noise is None else noise[row])
                row += 1
            rgb = block.torgb(x, ws[:, row])
            image = rgb if image is None else upsample(image, block.resample_filter) + rgb
        assert image is not None
        return image


class Generator(nn.Module):
    """Mapping and synthesis, as in the state dicts."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.mapping = Mapping(arch)
        self.synthesis = Synthesis(arch)
