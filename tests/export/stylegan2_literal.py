"""StyleGAN2 written down plainly in numpy, in double precision: what the tests hold true.

One image at a time; weights are modulated and demodulated as in equations 1 and 3 of
arXiv:1912.04958; resampling is zeros between samples and a full convolution, cropped.
``Names`` hides how the two projects call and scale a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

A = NDArray[np.float64]
FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


@dataclass
class Conv:
    affine_weight: A
    affine_bias: A
    weight: A
    bias: A
    noise: A | None = None
    strength: float = 0.0


class Nvidia:
    """A state dict of NVlabs/stylegan2-ada-pytorch."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.t = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
        self.sides = [4 << i for i in range(12) if f"synthesis.b{4 << i}.conv1.weight" in self.t]

    def mapping(self) -> list[tuple[A, A]]:
        found = []
        while f"mapping.fc{len(found)}.weight" in self.t:
            name = f"mapping.fc{len(found)}"
            found.append((self.t[f"{name}.weight"], self.t[f"{name}.bias"]))
        return found

    def embedding(self) -> tuple[A, A]:
        return self.t["mapping.embed.weight"], self.t["mapping.embed.bias"]

    def const(self) -> A:
        return self.t["synthesis.b4.const"]

    def convs(self, side: int) -> list[Conv]:
        names = ["conv1"] if side == 4 else ["conv0", "conv1"]
        return [self._conv(f"synthesis.b{side}.{name}", 1.0) for name in names]

    def rgb(self, side: int) -> Conv:
        return self._conv(f"synthesis.b{side}.torgb", None)

    def _conv(self, name: str, scale: float | None) -> Conv:
        t = self.t
        weight = t[f"{name}.weight"]
        affine = t[f"{name}.affine.weight"], t[f"{name}.affine.bias"]
        if scale is None:
            return Conv(*affine, weight / math.sqrt(weight.shape[1]), t[f"{name}.bias"])
        noise, strength = t[f"{name}.noise_const"], float(t[f"{name}.noise_strength"])
        return Conv(*affine, weight, t[f"{name}.bias"], noise, strength)


class Rosinality:
    """A ``g_ema`` of rosinality/stylegan2-pytorch."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.t = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
        levels = sum(f"convs.{2 * i}.conv.weight" in self.t for i in range(12))
        self.sides = [4 << i for i in range(levels + 1)]

    def mapping(self) -> list[tuple[A, A]]:
        count = sum(name.startswith("style.") for name in self.t) // 2
        names = [f"style.{i}" for i in range(1, count + 1)]
        return [(self.t[f"{name}.weight"], self.t[f"{name}.bias"]) for name in names]

    def const(self) -> A:
        return self.t["input.input"][0]

    def convs(self, side: int) -> list[Conv]:
        if side == 4:
            return [self._styled("conv1", 0)]
        first = 2 * self.sides.index(side) - 2
        return [self._styled(f"convs.{i}", i + 1) for i in (first, first + 1)]

    def rgb(self, side: int) -> Conv:
        name = "to_rgb1" if side == 4 else f"to_rgbs.{self.sides.index(side) - 1}"
        return self._conv(name, self.t[f"{name}.bias"].reshape(-1))

    def _styled(self, name: str, row: int) -> Conv:
        conv = self._conv(name, self.t[f"{name}.activate.bias"])
        conv.noise = self.t[f"noises.noise_{row}"][0, 0]
        conv.strength = float(self.t[f"{name}.noise.weight"][0])
        return conv

    def _conv(self, name: str, bias: A) -> Conv:
        weight = self.t[f"{name}.conv.weight"][0]
        fan_in = weight[0].size
        modulation = f"{name}.conv.modulation"
        affine = self.t[f"{modulation}.weight"], self.t[f"{modulation}.bias"]
        return Conv(*affine, weight / math.sqrt(fan_in), bias)


Names = Nvidia | Rosinality


def linear(x: A, weight: A, bias: A, lr: float = 1.0) -> A:
    return x @ (weight * lr / math.sqrt(weight.shape[1])).T + bias * lr


def activate(x: A, clamp: float | None) -> A:
    y = np.where(x < 0, 0.2 * x, x) * math.sqrt(2)
    return y if clamp is None else np.clip(y, -clamp, clamp)


def unit(x: A) -> A:
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-8)


def mapping(names: Names, z: Any, label: Any = None) -> A:
    x = unit(np.asarray(z, np.float64))
    if label is not None:
        assert isinstance(names, Nvidia)
        embedded = linear(np.asarray(label, np.float64), *names.embedding())
        x = np.concatenate([x, unit(embedded)], axis=1)
    for weight, bias in names.mapping():
        x = activate(linear(x, weight, bias, 0.01), None)
    return x


def convolve(x: A, kernel: A) -> A:
    """The full convolution of (I, H, W) with (O, I, h, w)."""
    height, width = x.shape[1:]
    size = (height + kernel.shape[2] - 1, width + kernel.shape[3] - 1)
    out = np.zeros((kernel.shape[0], *size))
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            out[:, i : i + height, j : j + width] += np.tensordot(kernel[:, :, i, j], x, 1)
    return out


def spread(x: A) -> A:
    """Zeros between the samples."""
    out = np.zeros((x.shape[0], 2 * x.shape[1], 2 * x.shape[2]))
    out[:, ::2, ::2] = x
    return out


def smooth(x: A, start: int, side: int) -> A:
    """Each channel with the filter, at the gain of a doubling, cropped."""
    planes = [convolve(plane[None], 4 * FIR[None, None])[0] for plane in x]
    return np.stack(planes)[:, start : start + side, start : start + side]


def modulated(conv: Conv, w: A, *, demodulate: bool) -> A:
    style = linear(w[None], conv.affine_weight, conv.affine_bias)[0]
    weight = conv.weight * style[:, None, None]
    if demodulate:
        weight = weight / np.sqrt((weight**2).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
    return weight


def layer(conv: Conv, x: A, w: A, noise: A | None, *, up: bool, clamp: float | None) -> A:
    weight = modulated(conv, w, demodulate=True)
    side = x.shape[1]
    if up:
        y = smooth(convolve(spread(x), weight), 2, 2 * side)
    else:
        y = convolve(x, weight[:, :, ::-1, ::-1])[:, 1:-1, 1:-1]
    if noise is not None:
        y = y + noise * conv.strength
    return activate(y + conv.bias[:, None, None], clamp)


def synthesis(names: Names, ws: Any, *, noise: Any = "const", clamp: float | None = None) -> A:
    """ws (N, num_ws, w_dim) to (N, C, R, R). ``noise``: ``const``, ``none``, or for each layer
    (N, 1, r, r)."""
    images = [_image(names, w, i, noise, clamp) for i, w in enumerate(np.asarray(ws, np.float64))]
    return np.stack(images)


def _image(names: Names, w: A, index: int, noise: Any, clamp: float | None) -> A:
    x, image, row = names.const(), None, 0
    for side in names.sides:
        for conv in names.convs(side):
            given = conv.noise if noise == "const" else None
            if not isinstance(noise, str):
                given = np.asarray(noise[row], np.float64)[index, 0]
            up = x.shape[1] != side
            x = layer(conv, x, w[row], given, up=up, clamp=clamp)
            row += 1
        rgb = names.rgb(side)
        weight = modulated(rgb, w[row], demodulate=False)[:, :, 0, 0]
        y = np.tensordot(weight, x, 1) + rgb.bias[:, None, None]
        y = y if clamp is None else np.clip(y, -clamp, clamp)
        image = y if image is None else smooth(spread(image), 1, side) + y
    assert image is not None
    return image
