"""Stable Diffusion and SDXL against diffusers: same weights, noise and settings."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
from numpy.typing import NDArray

from pixelrt.errors import InputError, UsageError
from pixelrt.fidelity import compare
from tests.diffusion.conftest import Exported
from tests.diffusion.parity import assert_same, ours, theirs

pytestmark = [
    pytest.mark.slow,
    # diffusers' own, while it runs beside ours
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-a": diffusers.EulerAncestralDiscreteScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
MODES = ("text_to_image", "image_to_image", "inpaint")
CLASSES = {
    ("sd", "text_to_image"): diffusers.StableDiffusionPipeline,
    ("sd", "image_to_image"): diffusers.StableDiffusionImg2ImgPipeline,
    ("sd", "inpaint"): diffusers.StableDiffusionInpaintPipeline,
    ("sdxl", "text_to_image"): diffusers.StableDiffusionXLPipeline,
    ("sdxl", "image_to_image"): diffusers.StableDiffusionXLImg2ImgPipeline,
    ("sdxl", "inpaint"): diffusers.StableDiffusionXLInpaintPipeline,
}
WORDS = {"negative_prompt": "blurry", "num_inference_steps": 6, "guidance_scale": 6.0}


def inputs(mode: str, photo: Any, mask: Any) -> dict[str, Any]:
    if mode == "text_to_image":
        return {"height": 64, "width": 96}
    if mode == "image_to_image":
        return {"image": photo, "strength": 0.6}
    return {"image": photo, "mask_image": mask, "strength": 0.9, "height": 64, "width": 96}


def assert_pipeline_is_theirs(
    made: Exported, kind: str, mode: str, scheduler: str, seed: int, **more: Any
) -> None:
    solver = SCHEDULERS[scheduler].from_config(made.pipe.scheduler.config)
    parts = {**made.pipe.components, "scheduler": solver}
    if kind == "sd":
        parts["requires_safety_checker"] = False
    options = {**WORDS, **more}
    wanted = theirs(CLASSES[kind, mode](**parts), seed, **options)
    assert_same(wanted, ours(made, mode, seed, scheduler=scheduler, **options))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("mode", MODES)
def test_stable_diffusion_is_that_of_diffusers(
    sd: Exported, photo: Any, mask: Any, mode: str, scheduler: str
) -> None:
    for seed in (0, 1, 2):
        assert_pipeline_is_theirs(sd, "sd", mode, scheduler, seed, **inputs(mode, photo, mask))


@pytest.mark.parametrize("mode", MODES)
def test_sdxl_is_that_of_diffusers(sdxl: Exported, photo: Any, mask: Any, mode: str) -> None:
    for seed, scheduler in enumerate(("euler", "ddim", "dpm++")):
        assert_pipeline_is_theirs(sdxl, "sdxl", mode, scheduler, seed, **inputs(mode, photo, mask))


def test_several_pictures_and_sizes_that_do_not_halve(sd: Exported) -> None:
    more = {"height": 72, "width": 104, "num_images_per_prompt": 2}
    assert_pipeline_is_theirs(sd, "sd", "text_to_image", "euler", 5, **more)


def test_without_guidance_half_as_much_is_run(sd: Exported) -> None:
    batches: list[int] = []
    with sd.load() as pipeline:
        run = pipeline.networks.run

        def count(name: str, feeds: Any) -> Any:
            if name == "unet":
                batches.append(len(feeds["latents"]))
            return run(name, feeds)

        pipeline.networks.run = count  # type: ignore[method-assign]
        for scale in (7.5, 1.0):
            pipeline.text_to_image("a cat", guidance_scale=scale, num_inference_steps=2, seed=1)
    assert batches == [2, 2, 1, 1]
    assert_pipeline_is_theirs(
        sd, "sd", "text_to_image", "ddim", 3, guidance_scale=1.0, height=64, width=64
    )


def test_latents_go_from_one_pipeline_to_the_next(sdxl: Exported) -> None:
    """Stopping at 60 % and going on from there is one whole run."""
    words = {"num_inference_steps": 10, "scheduler": "euler", "height": 64, "width": 64}
    with sdxl.load() as pipeline:
        whole = pipeline.text_to_image("a red house", seed=4, **words)
        first = pipeline.text_to_image(
            "a red house", seed=4, denoising_end=0.6, output_type="latent", **words
        )
        assert first.images is None
        del words["height"], words["width"]
        rest = pipeline.image_to_image(
            "a red house", first.latents, denoising_start=0.6, strength=1.0, **words
        )
    assert whole.images is not None
    assert rest.images is not None
    assert compare(whole.images, rest.images, peak=255).psnr >= 60


def test_a_seed_gives_the_picture_again_and_a_preview_shows_it(sd: Exported) -> None:
    previews: list[NDArray[np.uint8]] = []
    words = {"num_inference_steps": 3, "height": 64, "width": 64}
    with sd.load() as pipeline:
        first = pipeline.text_to_image("a dog", **words)
        again = pipeline.text_to_image("a dog", seed=first.seed, **words)
        other = pipeline.text_to_image(
            "a dog", seed=1, callback=lambda info: previews.append(info.preview()), **words
        )
    assert first.images is not None
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
    assert other.images is not None
    # DDIM of Stable Diffusion ends just before there is no noise left.
    assert compare(previews[-1], other.images, peak=255).psnr >= 40


def test_weights_of_words_change_the_picture(sd: Exported) -> None:
    words = {"num_inference_steps": 3, "height": 64, "width": 64, "seed": 2}
    with sd.load() as pipeline:
        plain, heavy, literal = (
            pipeline.text_to_image(prompt, weighting=weighting, **words).latents
            for prompt, weighting in (("a cat", True), ("a (cat:1.4)", True), ("a cat", False))
        )
    assert np.array_equal(plain, literal)
    assert np.abs(plain - heavy).max() > 1e-3


def test_low_memory_keeps_one_network_open(sd: Exported) -> None:
    with sd.load(low_memory=True) as pipeline:
        most: list[int] = []
        run = pipeline.networks.run

        def watch(name: str, feeds: Any) -> Any:
            found = run(name, feeds)
            most.append(len(pipeline.networks._open))
            return found

        pipeline.networks.run = watch  # type: ignore[method-assign]
        made = pipeline.text_to_image("a cat", num_inference_steps=2, seed=1, height=64, width=64)
    with sd.load() as pipeline:
        same = pipeline.text_to_image("a cat", num_inference_steps=2, seed=1, height=64, width=64)
    assert max(most) == 1
    assert compare(made.images, same.images, peak=255).psnr >= 60  # onnxruntime's other kernels


@pytest.mark.parametrize(
    ("mode", "options", "error", "words"),
    [
        ("text_to_image", {"width": 100, "height": 64}, InputError, "multiples of 8"),
        ("text_to_image", {"width": 16, "height": 64}, InputError, "at least 24"),
        ("text_to_image", {"num_inference_steps": 0}, UsageError, "steps"),
        ("text_to_image", {"scheduler": "best"}, UsageError, "best"),
        ("text_to_image", {"colour": "red"}, UsageError, "no option colour"),
        ("text_to_image", {"seed": -1}, UsageError, "negative"),
        ("text_to_image", {"control_images": ["x"]}, UsageError, "ControlNet"),
        ("text_to_image", {"latents": np.zeros((1, 4, 9, 9), np.float32)}, InputError, "latents"),
        ("text_to_image", {"prompt_embeds": np.zeros((1, 77, 32))}, UsageError, "exclude"),
        ("text_to_image", {"negative_prompt": ["a", "b"]}, InputError, "negative_prompt"),
        ("image_to_image", {"strength": 0.0}, UsageError, "strength"),
        ("image_to_image", {"strength": 1.5}, UsageError, "strength"),
        ("image_to_image", {"image": None}, UsageError, "image"),
        ("inpaint", {"mask_image": None}, UsageError, "mask"),
    ],
)
def test_what_cannot_be_done_has_its_message(
    sd: Exported,
    photo: Any,
    mask: Any,
    mode: str,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    given = {**inputs(mode, photo, mask), **options}
    with sd.load() as pipeline, pytest.raises(error) as caught:
        getattr(pipeline, mode)("a cat", **given)
    assert words in str(caught.value)
