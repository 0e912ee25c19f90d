"""Train the demonstration super-resolver by 2. The shipped weights were written by

    python examples/train_demo.py --out demo.pth --weights examples/demo_network/weights.safetensors

Network: ``SRResNet`` with 32 channels, 4 residual blocks and 3x3 convolutions throughout,
122 569 weights. Batch norm costs accuracy in super-resolution (EDSR, arXiv:1707.02921), so
the batch norms are left out of the training and written as identities.

Data: aligned 32x32 to 64x64 patches of the photographs ``demo_data.TRAINING`` and of smaller
versions of them, with all flips and rotations and with exchanged colours.

Optimisation: L1 on the image in [0, 1], Adam, learning rate from 2e-3 down to 1e-5 by a half
cosine; the average of the weights over about 1000 steps is what counts. bfloat16 with fp32
weights, the last twentieth in fp32. Every ``EVERY`` steps the average is measured on the
photograph ``demo_data.VALIDATION``, and written if it is the best so far.

The order of the patches and the first weights are seeded: the same steps on the same kind of
machine with the same versions give the same weights. ``--minutes`` ends the training early
without finishing the schedule, the best weights so far stay.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import demo_data
import numpy as np
import torch
from demo_data import Pixels
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from pixelrt.export.networks.srgan import SRResNet

SIZES = {"channels": 32, "blocks": 4, "upsamplers": 1, "large_kernel": 3, "small_kernel": 3}
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

SEED = 7
STEPS = 12_000
BATCH = 16
PATCH = 32
RATE = 2e-3
LAST_RATE = 1e-5
AVERAGE = 0.999
FULL_PRECISION = 0.95
"""From this share of the steps on everything is fp32."""
EVERY = 500
SMALLER = (0.75, 0.5, 0.3)
SMALLEST = 200

Pair: TypeAlias = tuple[Pixels, Pixels]


# Data ---------------------------------------------------------------------------------------


def versions(image: Image.Image) -> list[Image.Image]:
    """The photograph and its smaller versions with even sides of at least ``SMALLEST``."""
    found = [image]
    for factor in SMALLER:
        width, height = (round(side * factor / 2) * 2 for side in image.size)
        if min(width, height) >= SMALLEST:
            found.append(image.resize((width, height), Image.Resampling.BICUBIC))
    return found


def pairs() -> tuple[list[Pair], NDArray[np.float64]]:
    """All (low, high) pairs and the share of patches of each; the shares add up to 1.

    Within a photograph the share goes with the number of pixels.
    """
    found: list[Pair] = []
    shares: list[float] = []
    for name, share in demo_data.TRAINING.items():
        images = versions(demo_data.photograph(name))
        pixels = sum(image.width * image.height for image in images)
        for image in images:
            found.append((np.asarray(demo_data.reduce(image)), np.asarray(image)))
            shares.append(share * image.width * image.height / pixels)
    return found, np.array(shares) / sum(shares)


def patch(pair: Pair, random: np.random.Generator) -> Pair:
    """An aligned patch at a random place, turned, flipped and with exchanged colours."""
    low, high = pair
    y, x = (int(random.integers(side - PATCH + 1)) for side in low.shape[:2])
    turns, flip, exchange = random.integers(4), random.random() < 0.5, random.random() < 0.5
    colours = random.permutation(3) if exchange else np.arange(3)

    def change(pixels: Pixels, scale: int) -> Pixels:
        top, left, size = y * scale, x * scale, PATCH * scale
        cut = np.rot90(pixels[top : top + size, left : left + size], turns)
        return (cut[:, ::-1] if flip else cut)[..., colours]

    return change(low, 1), change(high, demo_data.SCALE)


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless seeded batches: low, high ``(BATCH, 3, H, W)`` in [0, 1]."""
    random = np.random.default_rng(SEED)
    found, shares = pairs()
    while True:
        chosen = random.choice(len(found), BATCH, p=shares)
        cuts = [patch(found[index], random) for index in chosen]
        yield to_tensor([low for low, _ in cuts]), to_tensor([high for _, high in cuts])


def to_tensor(images: list[Pixels]) -> torch.Tensor:
    """``(N, 3, H, W)`` in [0, 1], channels last in memory, from images of one size."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return stacked.to(torch.float32).div(255).contiguous(memory_format=torch.channels_last)


# Network ------------------------------------------------------------------------------------


def without_norms() -> SRResNet:
    """The network with nothing where the batch norms are, all residual branches small."""
    net = SRResNet(**SIZES)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            net.set_submodule(name, nn.Identity())
    with torch.no_grad():
        for block in net.residual_blocks:
            block.conv_block2.conv_block[0].weight.mul_(0.1)
    return net.to(memory_format=torch.channels_last)


def with_norms(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a whole ``SRResNet``, whose batch norms in eval mode do nothing."""
    net = SRResNet(**SIZES)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.get_buffer("running_var"), 1 - module.eps)
    state = net.state_dict()
    return {name: weights.get(name, value).contiguous() for name, value in state.items()}


def apply(net: nn.Module, low: torch.Tensor) -> torch.Tensor:
    """RGB in [0, 1] to RGB in [0, 1] at twice the size."""
    image: torch.Tensor = (net((low - MEAN) / STD) + 1) / 2
    return image


def enlarge(net: nn.Module, image: Image.Image) -> Image.Image:
    """An RGB image at twice the size, rounded to uint8."""
    with torch.inference_mode():
        values = apply(net, to_tensor([np.asarray(image)]))[0].permute(1, 2, 0)
    return Image.fromarray(values.mul(255).round().clamp(0, 255).to(torch.uint8).numpy())


# Training -----------------------------------------------------------------------------------


def rate(step: int, steps: int) -> float:
    """Learning rate: 100 steps of warm-up, then a half cosine from ``RATE`` to ``LAST_RATE``."""
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return (LAST_RATE + (RATE - LAST_RATE) * cosine) * min(1.0, (step + 1) / 100)


def train(steps: int, minutes: float, out: Path, weights: Path | None) -> None:
    """Train, and ``save`` the best average of the weights each time that there is one."""
    torch.manual_seed(SEED)
    net, average, data = without_norms(), without_norms(), batches()
    average.load_state_dict(net.state_dict())
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    target = demo_data.photograph(demo_data.VALIDATION)
    best, start = -math.inf, time.monotonic()
    for step in range(steps):
        low, high = next(data)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=step < FULL_PRECISION * steps):
            loss = functional.l1_loss(apply(net, low), high)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        update(average, net, min(AVERAGE, step / (step + 10)))
        passed = (time.monotonic() - start) / 60
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            found = demo_data.psnr(enlarge(average, demo_data.reduce(target)), target)
            print(f"{step + 1:6} steps {passed:5.1f} min: {found:.3f} dB", flush=True)
            if found > best:
                best = found
                save(average, out, weights)
        if passed > minutes:
            break


def update(average: nn.Module, net: nn.Module, keep: float) -> None:
    """Move the average towards the weights."""
    with torch.no_grad():
        for old, new in zip(average.parameters(), net.parameters(), strict=True):
            old.lerp_(new, 1 - keep)


def save(net: nn.Module, out: Path, weights: Path | None) -> None:
    """Write the state dict as ``out`` (torch.save) and, if asked for, as safetensors."""
    state = with_norms(net.state_dict())
    torch.save(state, out)
    if weights is not None:
        counters = "num_batches_tracked"
        save_file({n: t for n, t in state.items() if not n.endswith(counters)}, weights)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demonstration super-resolver.")
    parser.add_argument("--out", type=Path, required=True, help="state dict to write")
    parser.add_argument("--weights", type=Path, help="the same as .safetensors")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the whole schedule")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(arguments.steps, arguments.minutes, arguments.out, arguments.weights)


if __name__ == "__main__":
    main()
