"""What is taken where nothing is given, against the signatures of diffusers."""

from __future__ import annotations

import inspect
from pathlib import Path

import diffusers
import pytest

from pixelrt.export.diffusion.original import SUFFIXES, Original
from pixelrt.export.diffusion.recipes import FAMILIES, SDXL, UPSCALERS
from pixelrt.export.diffusion.source import DiffusersFolder
from pixelrt.pipeline_settings import DiffusionSettings
from pixelrt.runtime.diffusion.kandinsky import Kandinsky
from pixelrt.runtime.diffusion.stable_diffusion import defaults_of
from pixelrt.runtime.diffusion.upscalers import OWN

OPTIONS = ("num_inference_steps", "guidance_scale", "strength")


def signature(name: str) -> dict[str, float]:
    """What a pipeline of diffusers is called with."""
    found = inspect.signature(getattr(diffusers, name).__call__).parameters
    return {option: found[option].default for option in OPTIONS if option in found}


def settings_of(pipeline: str) -> DiffusionSettings:
    return DiffusionSettings(
        scheduler={},
        latent_channels=4,
        latent_scale=8,
        scaling=1.0,
        sample_size=64,
        multiple=8,
        minimum=72,
        unet_channels=4,
        text=[],
        controls=int("ControlNet" in pipeline),
        time_ids="base" if FAMILIES[pipeline] == SDXL else "",
    )


@pytest.mark.parametrize("mode", SUFFIXES)
@pytest.mark.parametrize("pipeline", FAMILIES)
def test_stable_diffusion(pipeline: str, mode: str) -> None:
    settings = settings_of(pipeline)
    folder = DiffusersFolder(Path(), pipeline, {"_class_name": pipeline})
    name = Original(folder, settings, lambda part: part, list).class_of(mode)
    assert defaults_of(pipeline, settings, mode) == signature(name)


@pytest.mark.parametrize("pipeline", UPSCALERS)
def test_upscalers(pipeline: str) -> None:
    assert signature(pipeline) == OWN


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_image"])
def test_kandinsky(mode: str) -> None:
    pipeline = Kandinsky.__new__(Kandinsky)
    assert pipeline.defaults(mode) == signature(f"KandinskyV22{SUFFIXES[mode]}CombinedPipeline")
