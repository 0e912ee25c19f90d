"""ControlNets with SD 2.x and SDXL against diffusers: same weights, noise and settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image
from skimage import data

from pixelrt.cli.main import run
from pixelrt.errors import CheckpointError, InputError, UsageError
from pixelrt.export.diffusion.recipes import plan_of
from pixelrt.export.diffusion.source import open_diffusers
from pixelrt.plans.store import plan_at
from tests.diffusion import models
from tests.diffusion.conftest import Exported, exported
from tests.diffusion.parity import assert_same, ours, theirs
from tests.engines.support import required_tensorrt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

WORDS = {"negative_prompt": "blurry", "num_inference_steps": 5, "guidance_scale": 6.0}
ONE = {"controlnet_conditioning_scale": [0.9, 0.0]}
"""The second net adds nothing."""
TWO = {
    "controlnet_conditioning_scale": [0.9, 0.7],
    "control_guidance_start": [0.0, 0.3],
    "control_guidance_end": [0.7, 1.0],
}


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("controlled"), models.controlled)


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("controlled-xl"), models.controlled_xl)


@pytest.fixture(scope="module")
def guides() -> list[Image.Image]:
    """Of unlike sizes: they are brought to that of the picture."""
    edges = Image.fromarray(data.coins()).resize((48, 32)).convert("RGB")
    return [edges, Image.fromarray(data.chelsea()).resize((70, 50))]


def other(made: Exported, kind: Any) -> Any:
    return kind(**made.pipe.components, requires_safety_checker=False)


@pytest.mark.parametrize("scales", [ONE, TWO], ids=["one", "two"])
def test_text_to_image_is_that_of_diffusers(sd2: Exported, guides: Any, scales: Any) -> None:
    options = {**WORDS, **scales}
    size = {"height": 32, "width": 48}
    wanted = theirs(sd2.pipe, 1, image=guides, **size, **options)
    found = ours(sd2, "text_to_image", 1, control_images=guides, **options)
    assert_same(wanted, found)


@pytest.mark.parametrize("scales", [ONE, TWO], ids=["one", "two"])
def test_image_to_image_is_that_of_diffusers(
    sd2: Exported, photo: Any, guides: Any, scales: Any
) -> None:
    options = {**WORDS, **scales, "strength": 0.7, "num_images_per_prompt": 2}
    pipe = other(sd2, diffusers.StableDiffusionControlNetImg2ImgPipeline)
    same = [guide.resize(photo.size) for guide in guides]
    wanted = theirs(pipe, 2, image=photo, control_image=same, **options)
    found = ours(sd2, "image_to_image", 2, image=photo, control_images=same, **options)
    assert_same(wanted, found)


def test_without_control_it_is_the_plain_pipeline(sd2: Exported, guides: Any) -> None:
    """SD 2.x: velocities, heads that differ from level to level, linear projections."""
    parts = {name: part for name, part in sd2.pipe.components.items() if name != "controlnet"}
    pipe = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    options = {**WORDS, "height": 32, "width": 48, "guidance_rescale": 0.7}
    wanted = theirs(pipe, 3, **options)
    off = {"control_images": guides, "controlnet_conditioning_scale": 0.0}
    assert_same(wanted, ours(sd2, "text_to_image", 3, **options, **off))
    (_, steps), on = wanted, ours(sd2, "text_to_image", 3, control_images=guides, **options)
    assert np.abs(steps[-1] - on[1][-1]).max() > 0.1  # the nets do something


def test_sdxl_is_that_of_diffusers(xl: Exported, photo: Any, guides: Any) -> None:
    options = {**WORDS, "controlnet_conditioning_scale": 0.8, "control_guidance_end": 0.6}
    guide = guides[0]
    wanted = theirs(xl.pipe, 1, image=guide, height=32, width=48, **options)
    assert_same(wanted, ours(xl, "text_to_image", 1, control_images=[guide], **options))
    pipe = diffusers.StableDiffusionXLControlNetImg2ImgPipeline(**xl.pipe.components)
    options["strength"] = 0.7
    wide = guide.resize(photo.size)
    wanted = theirs(pipe, 2, image=photo, control_image=wide, **options)
    found = ours(xl, "image_to_image", 2, image=photo, control_images=[wide], **options)
    assert_same(wanted, found)


@pytest.mark.parametrize(
    ("controls", "options", "error", "words"),
    [
        (1, {}, UsageError, "one control image for every ControlNet"),
        (2, {"controlnet_conditioning_scale": [1.0]}, UsageError, "for every ControlNet"),
        (2, {"control_guidance_end": [1.0, 1.0, 1.0]}, UsageError, "control_guidance_end"),
        (2, {"guess_mode": True}, UsageError, "guess mode is not there"),
        (2, {"prompt": ["a cat"] * 3, "pairs": True}, UsageError, "as many control images"),
    ],
)
def test_what_cannot_be_done_has_its_message(
    sd2: Exported,
    guides: Any,
    controls: int,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    call = {"prompt": "a cat", "control_images": guides[:controls], **options}
    if call.pop("pairs", False):
        call["control_images"] = [np.stack([np.asarray(guide)] * 2) for guide in guides]
    with sd2.load() as pipeline, pytest.raises(error) as caught:
        pipeline.text_to_image(**call)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"global_pool_conditions": True}, "global_pool_conditions"),
        ({"conditioning_embedding_out_channels": [8, 16, 16]}, "4 pixels to a latent"),
        ({"cross_attention_dim": 64}, "do not go together"),
    ],
)
def test_nets_that_do_not_fit_are_refused(
    sd2: Exported, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    folder = Path(shutil.copytree(sd2.folder, tmp_path / "pipe"))
    file = folder / "controlnet_1" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError) as caught:
        plan_of(open_diffusers(folder))
    assert words in str(caught.value)


def test_control_pictures_of_float32_have_the_size_of_the_picture(
    sd2: Exported, guides: Any
) -> None:
    small = np.zeros((16, 24, 3), np.float32)
    with sd2.load() as pipeline, pytest.raises(InputError, match="not resized"):
        pipeline.text_to_image("a cat", control_images=[guides[0], small])


def test_the_unet_with_its_controlnets_becomes_a_plan(sd2: Exported, tmp_path: Path) -> None:
    """One float16 plan of all three networks; the control pictures follow the latents' sides."""
    required_tensorrt("tensorrt-rtx")
    plan = tmp_path / "unet.plan"
    words = ["--network", "unet", "--shapes", "32x48", "--axis", "B=2", "--axis", "T=77"]
    build = ["build", str(sd2.bundle), "--backend", "tensorrt-rtx", *words, "-q", "-o", str(plan)]
    assert run(build) == 0
    facts = plan_at(plan).facts
    inputs = {tensor.name: tensor.shape for tensor in facts.graph.inputs}
    assert {"control_0", "scale_0", "control_1", "scale_1"} < set(inputs)
    assert inputs["control_1"][2:] == ("2*h", "2*w")
    assert set(facts.report["multiply_adds"]) - {"unplaced"} == {"float16"}
    assert facts.report["fused_attentions"] == 16
    assert facts.conversion["worst_db"] >= 60
