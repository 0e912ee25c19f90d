"""PSNR of the demonstration super-resolver against bicubic, on photographs it never saw.

``python examples/evaluate_demo.py`` measures the shipped bundle through ``pixelrt.load``;
with ``--checkpoint FILE`` it measures the torch weights of ``train_demo.py`` instead. Images
are rounded to uint8, PSNR is on the luma (``demo_data.psnr``). Exit code 1 when the mean gain
is under ``ENOUGH`` dB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import demo_data
from PIL import Image

Enlarge: TypeAlias = Callable[[Image.Image], Image.Image]

ENOUGH = 1.0
"""Mean gain over bicubic that is asked for, in dB."""


def shipped() -> Enlarge:
    """The bundle ``demo`` in the runtime."""
    import pixelrt

    return pixelrt.load("demo")


def trained(checkpoint: Path) -> Enlarge:
    """The state dict of ``train_demo.py``, ``.pth`` or ``.safetensors``, in PyTorch."""
    import torch
    import train_demo
    from safetensors.torch import load_file

    from pixelrt.export.networks.srgan import SRResNet

    safe = checkpoint.suffix == ".safetensors"
    state = load_file(checkpoint) if safe else torch.load(checkpoint, weights_only=True)
    net = SRResNet(**train_demo.SIZES).eval()
    missing, unexpected = net.load_state_dict(state, strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"{checkpoint} does not hold the demonstration network.")
    return lambda image: train_demo.enlarge(net, image)


def gains(enlarge: Enlarge) -> list[float]:
    """Print a row for each held-out photograph; returns the gains over bicubic in dB."""
    print(f"{'photograph':20}{'bicubic':>9}{'network':>9}{'gain':>8}")
    found = []
    for name in demo_data.HELD_OUT:
        target = demo_data.photograph(name)
        low = demo_data.reduce(target)
        bicubic = demo_data.psnr(demo_data.enlarge(low), target)
        network = demo_data.psnr(enlarge(low), target)
        found.append(network - bicubic)
        print(f"{Path(name).stem:20}{bicubic:9.2f}{network:9.2f}{network - bicubic:+8.2f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="torch weights instead of the bundle")
    checkpoint = parser.parse_args().checkpoint
    found = gains(trained(checkpoint) if checkpoint else shipped())
    mean = sum(found) / len(found)
    print(f"{'mean':20}{'':18}{mean:+8.2f} dB")
    sys.exit(0 if mean >= ENOUGH else 1)


if __name__ == "__main__":
    main()
