"""The networks that are compared: architectures with seeded random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixelrt.bundle import Bundle, open_bundle
from pixelrt.errors import UsageError
from pixelrt.geometry import Size

SEED = 0
PHOTO = Size(3000, 4000)


@dataclass(frozen=True)
class Network:
    """What ``pixelrt export --family F --config C --random-init 0`` makes."""

    name: str
    family: str
    config: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Case:
    """A network at one size. ``tiled``: the size is cut into tiles, which peers cannot do."""

    network: Network
    size: Size
    tiled: bool = False

    @property
    def name(self) -> str:
        return f"{self.network.name} {self.size}" + (" tiled" if self.tiled else "")


LIGHT = {
    "embed_dim": 60,
    "depths": [6, 6, 6, 6],
    "num_heads": [6, 6, 6, 6],
    "upsampler": "pixelshuffledirect",
    "upscale": 2,
    "maths": "transformers",
}
CLASSICAL_CONFIG = {
    "embed_dim": 180,
    "depths": [6, 6, 6, 6, 6, 6],
    "num_heads": [6, 6, 6, 6, 6, 6],
    "upsampler": "pixelshuffle",
    "upscale": 2,
    "maths": "transformers",
}
CLASSICAL = Network("swin2sr-classical-x2", "swin2sr", CLASSICAL_CONFIG)
SWIN_LIGHT = Network("swin2sr-light-x2", "swin2sr", LIGHT)
SRGAN = Network("srgan-x4", "srgan")
RESNET = Network("cyclegan-resnet9", "cyclegan")
UNET = Network("pix2pix-unet256", "pix2pix")
TINY = Network(
    "tiny-srgan-x2",
    "srgan",
    {"scale": 2, "channels": 16, "blocks": 2, "large_kernel": 5, "small_kernel": 3},
)

CASES: tuple[Case, ...] = (
    Case(CLASSICAL, Size(128, 128)),
    Case(SWIN_LIGHT, Size(128, 128)),
    Case(SRGAN, Size(128, 128)),
    Case(RESNET, Size(256, 256)),
    Case(RESNET, Size(1024, 1024)),
    Case(UNET, Size(256, 256)),
)
PHOTO_CASES: tuple[Case, ...] = tuple(
    Case(network, PHOTO, tiled=True) for network in (CLASSICAL, SWIN_LIGHT, SRGAN)
)
QUICK_CASES: tuple[Case, ...] = (Case(TINY, Size(48, 64)),)
"""For trying the scripts out: numbers that mean nothing."""


def choose_cases(words: tuple[str, ...], known: tuple[Case, ...]) -> tuple[Case, ...]:
    """Those whose name holds one of ``words``; all without any. Raises ``UsageError``."""
    found = tuple(case for case in known if not words or any(word in case.name for word in words))
    if not found:
        names = ", ".join(case.name for case in known)
        raise UsageError(f"no case is called {' or '.join(words)}", expected=names)
    return found


def bundle_of(network: Network, work: Path) -> Bundle:
    """The network's bundle under ``work``, exported at the first call."""
    path = work / f"{network.name}.pixelrt"
    if not path.exists():
        from pixelrt.export.pipeline import export_bundle

        work.mkdir(parents=True, exist_ok=True)
        config = dict(network.config) if network.config else None
        export_bundle(None, path, family=network.family, config=config, random_seed=SEED)
    return open_bundle(path)
