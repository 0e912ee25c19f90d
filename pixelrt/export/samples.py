"""The pictures that an exported network has to get right."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pixelrt.export.recipe import Network
from pixelrt.geometry import Size, on_grid
from pixelrt.grid import grid_size, pad_image
from pixelrt.spec import ImageSpec

PHOTOS = ("astronaut.png", "coffee.png")
NOISE_SEED = 20240229
SMALL, WIDE, OFF_GRID = Size(40, 48), Size(64, 96), Size(37, 50)


@dataclass(frozen=True)
class Sample:
    """``pixels`` is uint8 (1, H, W, C), not padded."""

    name: str
    kind: Literal["photo", "noise"]
    pixels: NDArray[np.uint8]


def make_samples(spec: ImageSpec) -> tuple[Sample, ...]:
    """Photographs and noise at three sizes, the last off the grid where there is one."""
    small = on_grid(SMALL, spec.multiple, spec.minimum)
    wide = Size(small.height, small.width + round_to(WIDE.width - SMALL.width, spec.multiple))
    odd = OFF_GRID
    return (
        _sample("photo-small", photo(0, small), spec),
        _sample("photo-wide", photo(1, wide), spec),
        _sample("photo-off-grid", photo(1, odd), spec),
        _sample("noise-small", noise(small), spec),
        _sample("noise-off-grid", noise(odd), spec),
    )


def round_to(value: int, multiple: int) -> int:
    return max(multiple, value - value % multiple)


def photo(index: int, size: Size) -> NDArray[np.uint8]:
    """(H, W, 3) cut from the middle of a shipped photograph, mirrored outwards if larger."""
    path = resources.files("pixelrt") / "data" / "photos" / PHOTOS[index]
    with path.open("rb") as file:
        pixels = np.asarray(Image.open(file).convert("RGB"))
    grow = [max(0, want - have) for want, have in zip(_shape(size), pixels.shape, strict=False)]
    pixels = np.pad(pixels, ((0, grow[0]), (0, grow[1]), (0, 0)), mode="symmetric")
    top = (pixels.shape[0] - size.height) // 2
    left = (pixels.shape[1] - size.width) // 2
    return pixels[top : top + size.height, left : left + size.width]


def noise(size: Size) -> NDArray[np.uint8]:
    """(H, W, 3) of independent uniform values."""
    rng = np.random.default_rng(NOISE_SEED)
    return rng.integers(0, 256, (*_shape(size), 3), dtype=np.uint8)


def to_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """(H, W, 3) as the network's number of channels: grey is Y of ITU-R BT.601."""
    if channels == 3:
        return pixels
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def _shape(size: Size) -> tuple[int, int]:
    return size.height, size.width


def _sample(name: str, pixels: NDArray[np.uint8], spec: ImageSpec) -> Sample:
    kind: Literal["photo", "noise"] = "noise" if name.startswith("noise") else "photo"
    batch = np.ascontiguousarray(to_channels(pixels, spec.channels_in)[None])
    return Sample(name, kind, batch)


def to_core(pixels: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.float32]:
    """uint8 (1, H, W, C) to what the core graph takes: padded, float32 NCHW in [0, 1]."""
    padded = pad_image(pixels, grid_size(Size(*pixels.shape[1:3]), spec), spec.pad_mode)
    values = padded.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def reference_output(network: Network, sample: Sample) -> NDArray[np.float32]:
    """What PyTorch gives in fp32, cropped to scale x size."""
    with torch.inference_mode():
        result = network.reference(torch.from_numpy(to_core(sample.pixels, network.image)))
    height, width = (side * network.image.scale for side in sample.pixels.shape[1:3])
    values: NDArray[np.float32] = result[:, :, :height, :width].numpy()
    return np.ascontiguousarray(values)
