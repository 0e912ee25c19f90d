"""StyleGAN2 as it is exported: the same functions as ``stylegan2``, with shared weights.

The published form gives every image of a batch its own convolution weights. As a grouped
convolution that fixes the batch, and no engine can prepare such weights. A weight scaled by
input and by output channel is a convolution between two scalings of the activations, so here
all images share one constant weight.

Doubling stays a transposed convolution and a filter for each channel. As one convolution that
makes the four phases, with the filter in the weights, it has 4 times the products, and took
2.5 times as long under OpenVINO in bf16 at 512x512 (2 times at 32x32).

FP16: weights have norm 1 for each output and styles are at most 1, so that no sum exceeds
``3 * sqrt(inputs)`` times the largest activation (4 times that after the filter); the
demodulation takes both scales back, exactly. The published code for fp16 has the same idea.
Gains are folded into the weights.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  (the name everybody uses)
from torch import Tensor, nn

from pixelrt.export.networks import stylegan2
from pixelrt.export.networks.stylegan2 import EPSILON, GAIN, SLOPE, normalise

NoiseMode = Literal["const", "none", "input"]
"""``const``: the noise of the checkpoint is part of the graph; ``input``: one more argument
for each convolution; ``none``."""

SMALLEST = 1e-12
"""What the largest style of an image is taken to be at least, so that nothing divides by 0."""


def folded(layer: stylegan2.Linear, gain: float = 1.0) -> nn.Linear:
    """The layer with its gains, and ``gain``, in the weights."""
    linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
    linear.weight = _constant(layer.weight * (layer.weight_gain * gain))
    linear.bias = _constant(layer.bias * (layer.bias_gain * gain))
    return linear


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)


class Mapping(nn.Module):
    """z ``(N, z_dim)`` and, for a network with labels, ``(N, label_dim)``, to w ``(N, w_dim)``."""

    def __init__(self, source: stylegan2.Mapping) -> None:
        super().__init__()
        self.embed = folded(source.embed) if hasattr(source, "embed") else None
        # leaky_relu(x) * gain == leaky_relu(x * gain)
        self.layers = nn.ModuleList(folded(layer, GAIN) for layer in source.layers())

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x = normalise(z)
        if self.embed is not None:
            assert label is not None
            x = torch.cat((x, normalise(self.embed(label))), dim=1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
        return x


class Layer(nn.Module):
    """Modulated 3x3 convolution, noise, bias and leaky ReLU."""

    weight: Tensor
    fir: Tensor
    energy: Tensor
    floor: Tensor
    bias: Tensor
    noise: Tensor

    def __init__(self, source: stylegan2.SynthesisLayer, noise: NoiseMode) -> None:
        super().__init__()
        self.up = source.up
        self.clamp = source.clamp
        self.affine = folded(source.affine)
        weight = source.weight.detach()
        norm = weight.square().sum((1, 2, 3)).sqrt()
        norm = torch.where(norm == 0, torch.ones_like(norm), norm)
        weight = weight / norm[:, None, None, None]
        # rsqrt(x) * gain == rsqrt(x / gain**2)
        self.register_buffer("energy", weight.square().sum((2, 3)).T / GAIN**2)
        self.register_buffer("floor", EPSILON / GAIN**2 / norm.square())
        if self.up:
            weight = weight.transpose(0, 1)
            fir = (source.resample_filter * 4).expand(len(norm), 1, 4, 4)
            self.register_buffer("fir", fir.clone())
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", (source.bias * GAIN).detach()[:, None, None].clone())
        self.takes_noise = noise != "none"
        strength = source.noise_strength.detach() * GAIN
        constant = source.noise_const * strength if noise == "const" else strength.clone()
        self.register_buffer("noise", constant)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        styles = self.affine(w)
        largest = styles.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST)
        styles = styles / largest
        demodulation = (styles.square() @ self.energy + self.floor / largest.square()).rsqrt()
        y = self._convolve(x * styles[:, :, None, None]) * demodulation[:, :, None, None]
        if self.takes_noise:
            y = y + (self.noise if noise is None else noise * self.noise)
        y = F.leaky_relu(y + self.bias, SLOPE)
        return y.clamp(-self.clamp, self.clamp) if self.clamp else y

    def _convolve(self, x: Tensor) -> Tensor:
        if not self.up:
            return F.conv2d(x, self.weight, padding=1)
        y = F.conv_transpose2d(x, self.weight, stride=2)
        return F.conv2d(y, self.fir, padding=1, groups=len(self.fir))


class ToRGB(nn.Module):
    """Modulated 1x1 convolution without demodulation."""

    weight: Tensor
    bias: Tensor

    def __init__(self, source: stylegan2.ToRGB) -> None:
        super().__init__()
        self.clamp = source.clamp
        self.affine = folded(source.affine, source.gain)
        self.register_buffer("weight", source.weight.detach().clone())
        self.register_buffer("bias", source.bias.detach()[:, None, None].clone())

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        y = F.conv2d(x * self.affine(w)[:, :, None, None], self.weight) + self.bias
        return y.clamp(-self.clamp, self.clamp) if self.clamp else y


class Upsample(nn.Module):
    """The image at twice the side: a fixed transposed convolution for each channel."""

    fir: Tensor

    def __init__(self, fir: Tensor, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("fir", (fir * 4).expand(channels, 1, 4, 4).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.fir, stride=2, padding=1, groups=self.channels)


class Synthesis(nn.Module):
    """ws ``(N, num_ws, w_dim)`` to an image ``(N, image_channels, R, R)``, nominally in
    [-1, 1], not clamped. With ``noise="input"`` one more argument for each convolution,
    ``(N, 1, r, r)`` of unit variance, in the order of ``noise_sides``."""

    const: Tensor

    def __init__(self, source: stylegan2.Synthesis, noise: NoiseMode = "const") -> None:
        super().__init__()
        self.mode = noise
        blocks = source.blocks()
        self.register_buffer("const", blocks[0].const.detach()[None].clone())
        layers = [[Layer(x, noise) for x in b.layers()] for b in blocks]
        self.layers = nn.ModuleList(nn.ModuleList(part) for part in layers)
        self.torgbs = nn.ModuleList(ToRGB(block.torgb) for block in blocks)
        channels = source.arch.image_channels
        self.upsamples = nn.ModuleList(Upsample(b.resample_filter, channels) for b in blocks[1:])
        self.noise_sides = tuple(len(n) for n in source.constant_noise())

    def forward(self, ws: Tensor, *noise: Tensor) -> Tensor:
        assert len(noise) == (len(self.noise_sides) if self.mode == "input" else 0)
        x, image, row = self.const.expand(ws.shape[0], -1, -1, -1), None, 0
        for level, (layers, torgb) in enumerate(zip(self.layers, self.torgbs, strict=True)):
            assert isinstance(layers, nn.ModuleList)
            for layer in layers:
                x = layer(x, ws[:, row], noise[row] if noise else None)
                row += 1
            rgb = torgb(x, ws[:, row])
            image = rgb if image is None else self.upsamples[level - 1](image) + rgb
        assert isinstance(image, Tensor)
        return image
