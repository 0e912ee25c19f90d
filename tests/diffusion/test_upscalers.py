"""The upscalers against diffusers: same weights, noise and settings; ``pixelrt run`` for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from pixelrt.cli.main import run
from pixelrt.errors import CheckpointError, InputError, UsageError
from pixelrt.export.diffusion.pipeline import export_diffusion
from pixelrt.export.diffusion.source import open_diffusers
from pixelrt.export.diffusion.upscalers import upscaler_plan
from tests.diffusion import models
from tests.diffusion.conftest import Exported, exported
from tests.diffusion.parity import assert_same, ours, theirs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

FEW = {"num_inference_steps": 5, "negative_prompt": "blurry"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("latent-upscaler"), models.latent_upscaler)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("upscaler"), models.upscaler)


@pytest.fixture
def small(photo: Any) -> Any:
    return photo.resize((24, 16))


@pytest.mark.parametrize("scale", [9.0, 1.0, 0.0])
def test_a_picture_by_two_is_that_of_diffusers(two: Exported, small: Any, scale: float) -> None:
    options = {**FEW, "image": small, "guidance_scale": scale}
    wanted = theirs(two.pipe, 1, legacy=True, **options)
    found = ours(two, "upscale", 1, **options)
    assert found[0].shape == (1, 32, 48, 3)
    assert_same(wanted, found)


def test_latents_are_enlarged_as_they_are(two: Exported, sd: Exported) -> None:
    with sd.load() as pipeline:
        made = pipeline.text_to_image(
            ["a cat", "a dog"],
            num_inference_steps=2,
            seed=1,
            height=64,
            width=96,
            output_type="latent",
        )
    pair = ["a cat", "a dog"]
    latents = torch.from_numpy(made.latents)
    wanted = theirs(two.pipe, 2, prompt=pair, legacy=True, image=latents, num_inference_steps=5)
    found = ours(two, "upscale", 2, prompt=pair, image=made.latents, num_inference_steps=5)
    assert_same(wanted, found)


@pytest.mark.parametrize(("scheduler", "level"), [("ddim", 20), ("euler", 300)])
def test_a_picture_by_the_factor_of_the_vae_is_that_of_diffusers(
    four: Exported, small: Any, scheduler: str, level: int
) -> None:
    pipe = four.pipe
    if scheduler == "euler":
        solver = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        pipe = diffusers.StableDiffusionUpscalePipeline(**{**pipe.components, "scheduler": solver})
    odd = small.resize((25, 17))  # off the grid: both bring it to 24x16
    options = {**FEW, "image": odd, "noise_level": level, "num_images_per_prompt": 2}
    wanted = theirs(pipe, 3, legacy=True, **options)
    found = ours(four, "upscale", 3, scheduler=scheduler, **options)
    assert found[0].shape == (2, 32, 48, 3)
    assert_same(wanted, found)


@pytest.mark.parametrize(
    ("which", "options", "error", "words"),
    [
        ("two", {"noise_level": 20}, UsageError, "no option noise_level"),
        ("two", {"scheduler": "ddim"}, UsageError, "no option scheduler"),
        ("two", {"height": 64}, UsageError, "no option height"),
        ("two", {"strength": 0.5}, UsageError, "no option strength"),
        ("two", {"image": None}, UsageError, "no image"),
        ("two", {"num_inference_steps": 0}, UsageError, "steps"),
        ("two", {"image": np.zeros((1, 4, 9, 8), np.float32)}, InputError, "multiples of 2"),
        ("two", {"image": np.zeros((1, 4, 2, 8), np.float32)}, InputError, "at least 4"),
        ("two", {"image": np.zeros((2, 2, 3), np.uint8)}, InputError, "too small"),
        ("four", {"noise_level": 351}, UsageError, "0 to 350"),
        ("four", {"noise_level": -1}, UsageError, "0 to 350"),
        ("four", {"denoising_end": 0.5}, UsageError, "no option denoising_end"),
        ("four", {"latents": np.zeros((1, 4, 9, 9), np.float32)}, InputError, "latents"),
    ],
)
def test_what_cannot_be_done_has_its_message(
    request: pytest.FixtureRequest,
    small: Any,
    which: str,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    made: Exported = request.getfixturevalue(which)
    with made.load() as pipeline, pytest.raises(error) as caught:
        pipeline.upscale("a cat", **{"image": small, **options})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("which", "part", "change", "words"),
    [
        ("two", "unet", {"time_cond_proj_dim": 96}, "pooled output"),
        ("two", "unet", {"in_channels": 9}, "9 channels"),
        ("two", "unet", {"down_block_types": ["DownBlock2D"] * 3}, "k-diffusion"),
        ("two", "scheduler", {"_class_name": "DDIMScheduler"}, "goes by sigmas"),
        ("four", "unet", {"in_channels": 8}, "8 channels"),
        ("four", "unet", {"num_class_embeds": None}, "noise in the small picture"),
        ("four", "text_encoder", {"hidden_size": 64}, "do not belong to this UNet"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    which: str,
    part: str,
    change: dict[str, Any],
    words: str,
) -> None:
    made: Exported = request.getfixturevalue(which)
    folder = Path(shutil.copytree(made.folder, tmp_path / "pipe"))
    (file,) = (folder / part).glob("*config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError) as caught:
        upscaler_plan(open_diffusers(folder))
    assert words in str(caught.value)


def test_the_scaling_of_the_pixel_upscaler_is_not_configured(
    four: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(four.folder, tmp_path / "pipe"))
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "scaling_factor": 0.2}))
    settings = upscaler_plan(open_diffusers(folder)).settings
    theirs = diffusers.StableDiffusionUpscalePipeline.from_pretrained(folder)
    assert settings.scaling == theirs.vae.config.scaling_factor == 0.08333


def test_an_upscaler_takes_no_controlnet(four: Exported, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not go with StableDiffusionUpscalePipeline"):
        export_diffusion(four.folder, tmp_path / "x.pixelrt", controlnets=[tmp_path])


def test_pixelrt_run_enlarges_pictures_and_latents(
    two: Exported, four: Exported, small: Any, tmp_path: Path, capsys: Any
) -> None:
    for name in ("a", "b"):
        small.save(tmp_path / f"{name}.png")
    few = ["--steps", "2", "--seed", "1", "--backend", "onnxruntime-cpu", "-p", "a cat"]
    start = ["run", str(four.bundle), str(tmp_path / "a.png")]
    level = ["--noise-level", "50", "-n", "blurry", "--guidance-scale", "5"]
    assert run([*start, *few, *level, "-o", str(tmp_path / "big.png")]) == 0
    with Image.open(tmp_path / "big.png") as image:
        assert image.size == (48, 32)
        said = json.loads(image.info["pixelrt"])
        first = np.asarray(image)
    assert said["noise_level"] == 50
    assert said["seed"] == 1
    with four.load() as pipeline:
        same = pipeline.upscale(
            "a cat",
            small,
            num_inference_steps=2,
            seed=1,
            noise_level=50,
            negative_prompt="blurry",
            guidance_scale=5.0,
        )
    assert np.array_equal(first, same.images[0])
    np.save(tmp_path / "cat.npy", np.ones((1, 4, 8, 12), np.float32))
    latents = ["run", str(two.bundle), str(tmp_path / "cat.npy"), *few]
    assert run([*latents, "-o", str(tmp_path / "cat.png")]) == 0
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (48, 32)
    both = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "-o", str(tmp_path / "out")]
    assert run(["run", str(two.bundle), *both, *few]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    capsys.readouterr()


def test_pixelrt_run_says_which_options_do_not_apply(
    two: Exported, four: Exported, sd: Exported, small: Any, tmp_path: Path, capsys: Any
) -> None:
    small.save(tmp_path / "a.png")
    where = [str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]

    def refused(bundle: str, *options: str, code: int = 2) -> str:
        assert run(["run", bundle, *where, *options]) == code
        assert not (tmp_path / "b.png").exists()
        return str(capsys.readouterr().err)

    assert "--tile" in refused(str(four.bundle), "--tile", "64")
    assert "--resize" in refused(str(four.bundle), "--resize", "64")
    assert "noise_level" in refused(str(two.bundle), "--noise-level", "20")
    assert "--prompt" in refused("demo", "--prompt", "a cat")
    assert "pipeline of several networks" in refused(str(sd.bundle), code=3)
    assert run(["txt2img", str(two.bundle), "-p", "a", "-o", str(tmp_path / "b.png")]) == 2
    assert "pixelrt run" in capsys.readouterr().err
