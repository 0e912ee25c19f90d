"""UNets of nine channels, latent consistency models and SDXL's refiner against diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from pixelrt.errors import UsageError
from pixelrt.export.diffusion.parts import unet_part
from pixelrt.export.part import export_part
from tests.diffusion import models
from tests.diffusion.conftest import Exported, exported, torch_noise
from tests.diffusion.parity import LATENTS, PROMPT, assert_same, ours, theirs
from tests.exports import traced

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("inpainting"), models.inpainting)


@pytest.fixture(scope="module")
def nine_xl(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("inpainting-xl"), models.inpainting_xl)


@pytest.fixture(scope="module")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("lcm"), models.latent_consistency)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("refiner"), models.refiner)


def test_a_unet_is_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' way of enlarging is traced twice, which takes minutes at full size."""
    modes = traced(monkeypatch)
    export_part(unet_part(models.unet(), [], 8), tmp_path, tmp_path)
    assert modes == [False]


@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_nine_channels_paint_as_diffusers_do(
    nine: Exported, photo: Any, mask: Any, strength: float, scheduler: str
) -> None:
    options = {
        "image": photo,
        "mask_image": mask,
        "strength": strength,
        "negative_prompt": "blurry",
        "num_inference_steps": 5,
    }
    if scheduler == "euler":
        kind = diffusers.EulerDiscreteScheduler
        parts = {**nine.pipe.components, "scheduler": kind.from_config(nine.pipe.scheduler.config)}
        pipe = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    else:
        pipe = nine.pipe
    wanted = theirs(pipe, 1, height=64, width=96, **options)
    assert_same(wanted, ours(nine, "inpaint", 1, scheduler=scheduler, **options))


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_nine_channels_of_sdxl_paint_as_diffusers_do(
    nine_xl: Exported, photo: Any, mask: Any, strength: float
) -> None:
    options = {
        "image": photo,
        "mask_image": mask,
        "strength": strength,
        "negative_prompt": "blurry",
        "num_inference_steps": 5,
        "num_images_per_prompt": 2,
        "height": 32,
        "width": 48,
    }
    wanted = theirs(nine_xl.pipe, 1, **options)
    assert_same(wanted, ours(nine_xl, "inpaint", 1, **options))


def test_nine_channels_only_paint(nine: Exported, photo: Any) -> None:
    with nine.load() as pipeline:
        for call in (
            lambda: pipeline.text_to_image("a cat"),
            lambda: pipeline.image_to_image("a cat", photo),
        ):
            with pytest.raises(UsageError, match="only paints into pictures"):
                call()


@pytest.mark.parametrize("scale", [1.0, 8.5])
def test_latent_consistency_is_that_of_diffusers(lcm: Exported, photo: Any, scale: float) -> None:
    options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": scale}
    size = {"height": 32, "width": 48}
    wanted = theirs(lcm.pipe, 1, **options, **size)
    assert_same(wanted, ours(lcm, "text_to_image", 1, **options, **size))
    pipe = diffusers.LatentConsistencyModelImg2ImgPipeline(
        **lcm.pipe.components, requires_safety_checker=False
    )
    options |= {"image": photo, "strength": 0.5, "num_images_per_prompt": 2}
    wanted = theirs(pipe, 2, **options)
    found = ours(lcm, "image_to_image", 2, **options)
    assert len(found[1]) == 4  # all steps are taken, however small the strength
    assert_same(wanted, found)


def test_latent_consistency_has_so_many_steps(lcm: Exported, photo: Any) -> None:
    with lcm.load() as pipeline, pytest.raises(UsageError, match="distillation"):
        pipeline.image_to_image("a cat", photo, strength=0.1, num_inference_steps=6)


def test_the_refiner_is_that_of_diffusers(refiner: Exported, photo: Any) -> None:
    options = {
        "image": photo,
        "strength": 0.5,
        "negative_prompt": "blurry",
        "num_inference_steps": 6,
        "guidance_scale": 6.0,
        "aesthetic_score": 7.0,
        "negative_aesthetic_score": 1.5,
    }
    wanted = theirs(refiner.pipe, 1, **options)
    assert_same(wanted, ours(refiner, "image_to_image", 1, **options))


def test_the_refiner_goes_on_where_the_base_stopped(sdxl: Exported, refiner: Exported) -> None:
    words: dict[str, Any] = {
        "num_inference_steps": 8,
        "negative_prompt": "blurry",
        "guidance_scale": 6.0,
    }
    size = {"height": 64, "width": 96}
    with sdxl.load() as pipeline:
        base = pipeline.text_to_image(
            PROMPT,
            noise=torch_noise(3),
            scheduler="euler",
            denoising_end=0.6,
            output_type="latent",
            **size,
            **words,
        )
    solver = diffusers.EulerDiscreteScheduler.from_config(sdxl.pipe.scheduler.config)
    first = diffusers.StableDiffusionXLPipeline(**{**sdxl.pipe.components, "scheduler": solver})
    first.set_progress_bar_config(disable=True)
    seeded = torch.Generator().manual_seed(3)
    latents = first(
        PROMPT, generator=seeded, denoising_end=0.6, output_type="latent", **size, **words
    ).images
    assert np.abs(latents.numpy() - base.latents).max() <= LATENTS * float(latents.abs().max())
    wanted = theirs(refiner.pipe, 4, image=latents, denoising_start=0.6, **words)
    found = ours(refiner, "image_to_image", 4, image=base.latents, denoising_start=0.6, **words)
    assert_same(wanted, found)
