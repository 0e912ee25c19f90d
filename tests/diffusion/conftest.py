"""Small pipelines, exported once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from pixelrt.export.diffusion.pipeline import export_diffusion
from pixelrt.runtime.diffusion.load import load_pipeline
from tests.diffusion import models


@dataclass(frozen=True)
class Exported:
    """diffusers' pipeline, its folder, and the bundle made of it."""

    pipe: Any
    folder: Path
    bundle: Path

    def load(self, **options: Any) -> Any:
        return load_pipeline(self.bundle, **{"backend": "onnxruntime-cpu", **options})


def exported(
    root: Path, make: Callable[[Path], Any], made_once: Callable[..., Path] | None = None
) -> Exported:
    """``made_once``: the fixture, for what the tests of several files share."""
    pipe = make(root)
    # As users have it: diffusers forgets which options of a scheduler were left out.
    pipe.scheduler = type(pipe.scheduler).from_pretrained(root / "pipe" / "scheduler")
    pipe.set_progress_bar_config(disable=True)

    def export(folder: Path) -> Path:
        return export_diffusion(root / "pipe", folder / "small.pixelrt")

    if made_once is None:
        return Exported(pipe, root / "pipe", export(root))
    folder = made_once(f"diffusion-{make.__name__}", export)
    return Exported(pipe, root / "pipe", folder / "small.pixelrt")


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory, made_once: Callable[..., Path]) -> Exported:
    return exported(tmp_path_factory.mktemp("sd"), models.stable_diffusion, made_once)


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory, made_once: Callable[..., Path]) -> Exported:
    return exported(tmp_path_factory.mktemp("sdxl"), models.stable_diffusion_xl, made_once)


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((96, 64))


@pytest.fixture(scope="session")
def mask() -> Image.Image:
    columns = np.indices((64, 96))[1]
    return Image.fromarray((columns > 40).astype(np.uint8) * 255)


def torch_noise(seed: int) -> Callable[[tuple[int, ...]], Any]:
    """The noise that diffusers draws from a generator of this seed, in its order."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator).numpy()
