"""Kandinsky 2.2 against diffusers: same weights, noise and settings."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pixelrt.cli.main import run as pixelrt
from pixelrt.errors import InputError, UsageError
from pixelrt.export.diffusion.kandinsky import kandinsky_plan
from pixelrt.export.diffusion.pipeline import export_diffusion
from pixelrt.export.diffusion.source import open_diffusers
from pixelrt.fidelity import compare
from pixelrt.runtime.diffusion.kandinsky import Kandinsky
from pixelrt.runtime.diffusion.load import load_pipeline
from tests.diffusion import kandinsky_models
from tests.diffusion.conftest import torch_noise
from tests.diffusion.test_verbs import WITHOUT_TORCH

pytestmark = [
    pytest.mark.slow,
    # diffusers' own, while it runs beside ours
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

PROMPT = "a photo of the red cat"
LATENTS = 1e-4
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Exported:
    theirs: kandinsky_models.Folders
    bundle: Path
    pipeline: Kandinsky


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    root = tmp_path_factory.mktemp("kandinsky")
    folders = kandinsky_models.kandinsky(root)
    bundle = export_diffusion(
        folders.decoder_folder, root / "small.pixelrt", prior=str(folders.prior_folder)
    )
    with load_pipeline(bundle, backend="onnxruntime-cpu") as pipeline:
        assert isinstance(pipeline, Kandinsky)
        yield Exported(folders, bundle, pipeline)


@dataclass(frozen=True)
class Result:
    images: Any
    latents: list[Values]
    embeds: Values
    negative: Values


def theirs(made: Exported, seed: int, call: dict[str, Any], scheduler: Any = None) -> Result:
    """Prior and decoder with one generator, as diffusers' combined pipelines run them."""
    generator = torch.Generator().manual_seed(seed)
    given = dict(call)
    embeds = made.theirs.prior(
        given.pop("prompt"),
        negative_prompt=given.pop("negative_prompt", None),
        num_images_per_prompt=given.pop("num_images_per_prompt", 1),
        num_inference_steps=given.pop("prior_num_inference_steps"),
        guidance_scale=given.pop("prior_guidance_scale"),
        generator=generator,
    )
    parts = dict(made.theirs.decoder.components)
    if scheduler is not None:
        parts["scheduler"] = scheduler
    kind: Any = diffusers.KandinskyV22Pipeline
    if "image" in given:
        kind = diffusers.KandinskyV22Img2ImgPipeline
        # Its image processor is given width and height the wrong way round.
        given["height"], given["width"] = given["width"], given["height"]
        given["image"] = [given["image"]] * len(embeds.image_embeds)
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    steps: list[Values] = []

    def keep(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(values["latents"].numpy().copy())
        return values

    out = pipe(
        image_embeds=embeds.image_embeds,
        negative_image_embeds=embeds.negative_image_embeds,
        generator=generator,
        output_type="np",
        callback_on_step_end=keep,
        **given,
    )
    levels = np.rint(out.images * 255)
    return Result(levels, steps, embeds.image_embeds.numpy(), embeds.negative_image_embeds.numpy())


def ours(made: Exported, seed: int, call: dict[str, Any], scheduler: str | None = None) -> Result:
    steps: list[Values] = []
    run = made.pipeline.image_to_image if "image" in call else made.pipeline.text_to_image
    out = run(
        noise=torch_noise(seed),
        scheduler=scheduler,
        callback=lambda info: steps.append(info.latents.copy()),
        **call,
    )
    return Result(out.images, steps, out.image_embeds, out.negative_image_embeds)


def assert_same(wanted: Result, found: Result) -> None:
    for want, got in ((wanted.embeds, found.embeds), (wanted.negative, found.negative)):
        assert want.shape == got.shape
        assert want.std() > 0.1
        assert np.abs(want - got).max() <= LATENTS
    assert len(found.latents) == len(wanted.latents)
    for want, got in zip(wanted.latents, found.latents, strict=True):
        assert np.abs(want - got).max() <= LATENTS * float(np.abs(want).max())
    assert wanted.images.std() > 10  # a picture, not a plain
    assert compare(wanted.images, found.images, peak=255).psnr >= 60


WORDS: dict[str, Any] = {
    "prompt": PROMPT,
    "num_inference_steps": 5,
    "prior_num_inference_steps": 4,
    "guidance_scale": 4.0,
    "prior_guidance_scale": 3.0,
}
PLAIN = {"guidance_scale": 1.0, "prior_guidance_scale": 1.0}
CALLS: dict[str, dict[str, Any]] = {
    "guided": {},
    "plain": PLAIN,
    "negative": {"negative_prompt": "blurry"},
    "two": {"negative_prompt": "blurry", "num_images_per_prompt": 2},
}


@pytest.mark.parametrize("mode", ["text", "image"])
@pytest.mark.parametrize("call", CALLS)
def test_kandinsky_is_that_of_diffusers(
    made: Exported, photo: Image.Image, mode: str, call: str
) -> None:
    size = {"height": 64, "width": 48}
    more = {"image": photo, "strength": 0.7} if mode == "image" else {}
    for seed in (0, 1, 2):
        given = {**WORDS, **CALLS[call], **size, **more}
        assert_same(theirs(made, seed, given), ours(made, seed, given))


def test_a_scheduler_that_takes_no_variance_is_given_none(
    made: Exported, photo: Image.Image
) -> None:
    keys = ("beta_start", "beta_end", "beta_schedule", "thresholding", "sample_max_value")
    known = {key: kandinsky_models.SCHEDULER[key] for key in keys}
    call = {**WORDS, "image": photo, "strength": 0.7, "height": 64, "width": 64}
    scheduler = diffusers.DDIMScheduler(**known, clip_sample_range=2.0)
    assert_same(theirs(made, 4, call, scheduler), ours(made, 4, call, "ddim"))


def test_sides_are_rounded_up(made: Exported, photo: Image.Image) -> None:
    call = {**WORDS, "height": 61, "width": 46}
    assert_same(theirs(made, 5, call), ours(made, 5, call))
    few = {"num_inference_steps": 4, "prior_num_inference_steps": 2, "strength": 0.5}
    odd = photo.resize((47, 61))
    out = made.pipeline.image_to_image(PROMPT, odd, seed=1, **few)
    assert out.images is not None
    assert out.images.shape == (1, 64, 48, 3)
    assert out.notes == ("47x61 became 48x64: width and height are multiples of 4",)
    by_hand = odd.resize((48, 64), Image.Resampling.BICUBIC, reducing_gap=1)
    same = made.pipeline.image_to_image(PROMPT, by_hand, seed=1, **few)
    assert np.array_equal(out.images, same.images)
    assert same.notes == ()


def test_embeddings_go_out_and_in(made: Exported) -> None:
    words = {"num_inference_steps": 3, "height": 32, "width": 32}
    latents = np.random.default_rng(1).standard_normal((1, 4, 16, 16), np.float32)
    first = made.pipeline.text_to_image(PROMPT, seed=2, **words)
    apart = made.pipeline.embed(PROMPT, seed=2)
    assert np.array_equal(first.image_embeds, apart.image_embeds)
    assert np.array_equal(first.negative_image_embeds, apart.negative_image_embeds)
    with load_pipeline(made.bundle, backend="onnxruntime-cpu") as pipeline:
        given = [
            pipeline.text_to_image(image_embeds=first.image_embeds, latents=latents, seed=3, **more)
            for more in (words, {**words, "negative_image_embeds": first.negative_image_embeds})
        ]
        assert set(pipeline.networks.used) == {"unet", "movq_decoder"}
    assert np.array_equal(given[0].latents, given[1].latents)
    other = made.pipeline.text_to_image(
        image_embeds=first.image_embeds,
        negative_image_embeds=first.image_embeds,
        latents=latents,
        seed=3,
        **words,
    )
    assert np.abs(other.latents - given[0].latents).max() > 1e-3


def test_latents_are_handed_over_and_previews_show_them(made: Exported) -> None:
    previews: list[NDArray[np.uint8]] = []
    words = {"num_inference_steps": 4, "prior_num_inference_steps": 2, "seed": 6}
    first = made.pipeline.text_to_image(
        PROMPT,
        height=32,
        width=32,
        output_type="latent",
        callback=lambda info: previews.append(info.preview()),
        **words,
    )
    assert first.images is None
    # The last step of DDPM ends at what it predicts.
    assert np.array_equal(previews[-1], made.pipeline.decode(first.latents))
    assert not np.array_equal(previews[0], previews[-1])
    second = made.pipeline.image_to_image(PROMPT, first.latents, strength=0.5, **words)
    assert second.images is not None
    assert second.images.shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("negative", "prior_negative"), [("", None), ("blurry", None), ("", "dog"), ("blurry", "dog")]
)
def test_prompts_and_pictures_are_mixed_as_by_diffusers(
    made: Exported, photo: Image.Image, negative: str, prior_negative: str | None
) -> None:
    steps = {"num_images_per_prompt": 2}
    wanted = made.theirs.prior.interpolate(
        [PROMPT, photo, "a dog"],
        [0.3, 0.5, 0.2],
        negative_prompt=negative,
        negative_prior_prompt=prior_negative,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3),
        **steps,
    )
    found = made.pipeline.interpolate(
        [PROMPT, photo, "a dog"],
        [0.3, 0.5, 0.2],
        negative_prompt=negative,
        negative_prior_prompt=prior_negative,
        prior_num_inference_steps=4,
        prior_guidance_scale=3.0,
        noise=torch_noise(3),
        **steps,
    )
    for name in ("image_embeds", "negative_image_embeds"):
        want, got = getattr(wanted, name).numpy(), getattr(found, name)
        assert want.shape == got.shape == (2, kandinsky_models.WIDTH)
        assert np.abs(want - got).max() <= LATENTS


def test_long_prompts_are_cut_and_told_of(made: Exported) -> None:
    found = made.pipeline.embed("a cat " * 60, seed=1, prior_num_inference_steps=2)
    assert "the last" in found.notes[0]
    assert "were cut" in found.notes[0]


def test_a_mixture_that_cannot_be_made_has_its_message(made: Exported, photo: Image.Image) -> None:
    with pytest.raises(UsageError, match="has a weight"):
        made.pipeline.interpolate([PROMPT, photo], [1.0])
    with pytest.raises(UsageError, match="2 in one"):
        made.pipeline.interpolate([[photo, photo]], [1.0])
    long = made.pipeline.interpolate(["a cat " * 60], [1.0], prior_num_inference_steps=2)
    assert "were cut" in long.notes[0]


EMBEDS = np.zeros((1, kandinsky_models.WIDTH), np.float32)


@pytest.mark.parametrize(
    ("mode", "options", "error", "words"),
    [
        ("text_to_image", {"width": 4, "height": 64}, InputError, "at least 8"),
        ("text_to_image", {"num_inference_steps": 0}, UsageError, "steps"),
        ("text_to_image", {"prior_num_inference_steps": 1}, UsageError, "at least 2"),
        ("text_to_image", {"control_images": []}, UsageError, "no option control_images"),
        ("text_to_image", {"prompt": None}, UsageError, "no prompt"),
        ("text_to_image", {"image_embeds": EMBEDS}, UsageError, "exclude"),
        ("text_to_image", {"negative_image_embeds": EMBEDS}, UsageError, "go with image_embeds"),
        ("text_to_image", {"latents": EMBEDS}, InputError, "latents"),
        ("text_to_image", {"prior_latents": EMBEDS[:, :9]}, InputError, "prior_latents"),
        (
            "text_to_image",
            {"prompt": None, "image_embeds": EMBEDS[:, :9]},
            InputError,
            "image_embeds do not have the shape",
        ),
        ("text_to_image", {"negative_prompt": ["a", "b"]}, InputError, "negative_prompt"),
        ("image_to_image", {"strength": 0.0}, UsageError, "strength"),
        ("image_to_image", {"image": None}, UsageError, "no image"),
        (
            "image_to_image",
            {"image": np.zeros((1, 4, 7, 9), np.float32)},
            InputError,
            "multiples of 2",
        ),
    ],
)
def test_what_cannot_be_done_has_its_message(
    made: Exported,
    photo: Image.Image,
    mode: str,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    few: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 3}
    few |= {"prior_num_inference_steps": 2}
    if mode == "image_to_image":
        few["image"] = photo
    with pytest.raises(error) as caught:
        getattr(made.pipeline, mode)(**{**few, **options})
    assert words in str(caught.value)


def test_a_combined_pipeline_is_the_same_bundle(made: Exported, tmp_path: Path) -> None:
    kandinsky_models.combined(made.theirs).save_pretrained(tmp_path / "combined")
    one = kandinsky_plan(open_diffusers(tmp_path / "combined"), None)
    two = kandinsky_plan(open_diffusers(made.theirs.decoder_folder), str(made.theirs.prior_folder))
    assert one.settings == two.settings
    for part, same in zip(one.parts(), two.parts(), strict=True):
        assert part.name == same.name
        found, wanted = part.module.state_dict(), same.module.state_dict()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert one.assets == two.assets
    assert set(one.assets) == {
        "tokenizer.json",
        "clip_mean.npy",
        "clip_std.npy",
        "zero_image_embed.npy",
    }


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


SPOILT: dict[str, tuple[Callable[[Path, Path], Any], int, str]] = {
    "unknown": (
        lambda decoder, _: change(decoder / "model_index.json", _class_name="KandinskyPipeline"),
        2,
        "found: KandinskyPipeline",
    ),
    "no prior": (
        lambda _, prior: change(prior / "model_index.json", _class_name="KandinskyV22Pipeline"),
        3,
        "is no prior of Kandinsky 2.2",
    ),
    "component": (
        lambda _, prior: change(prior / "model_index.json", image_encoder=[None, None]),
        3,
        "no image_encoder",
    ),
    "files": (lambda decoder, _: shutil.rmtree(decoder / "movq"), 3, "movq"),
    "text": (
        lambda _, prior: change(prior / "text_encoder" / "config.json", projection_dim=16),
        3,
        "projection_dim 16",
    ),
    "unet": (
        lambda decoder, _: change(decoder / "unet" / "config.json", encoder_hid_dim=64),
        3,
        "encoder_hid_dim 64",
    ),
    "hint": (
        lambda decoder, _: change(
            decoder / "unet" / "config.json", addition_embed_type="image_hint"
        ),
        3,
        "image_hint",
    ),
    "variance": (
        lambda decoder, _: change(decoder / "unet" / "config.json", out_channels=4),
        3,
        "out_channels 4",
    ),
    "processor": (
        lambda _, prior: change(prior / "image_processor" / "preprocessor_config.json", resample=2),
        3,
        "image processor",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_cannot_be_exported_has_its_message(
    made: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    spoil, code, words = SPOILT[name]
    decoder = Path(shutil.copytree(made.theirs.decoder_folder, tmp_path / "decoder"))
    prior = Path(shutil.copytree(made.theirs.prior_folder, tmp_path / "prior"))
    spoil(decoder, prior)
    target = tmp_path / "x.pixelrt"
    given = ["export", str(decoder), "--prior", str(prior), "-o", str(target), "-q"]
    assert pixelrt(given) == code
    assert words in capsys.readouterr().err
    assert not target.exists()


def test_decoder_and_prior_are_named_rightly(
    made: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder, prior = str(made.theirs.decoder_folder), str(made.theirs.prior_folder)
    target = ["-o", str(tmp_path / "x.pixelrt")]
    assert pixelrt(["export", decoder, *target]) == 2
    assert "--prior PRIOR" in capsys.readouterr().err
    assert pixelrt(["export", prior, *target]) == 2
    assert "is a prior" in capsys.readouterr().err
    other = Path(shutil.copytree(decoder, tmp_path / "other"))
    change(other / "model_index.json", _class_name="KandinskyPipeline")
    assert pixelrt(["export", str(other), *target]) == 3
    assert "KandinskyV22Img2ImgCombinedPipeline" in capsys.readouterr().err
    lora = tmp_path / "a.safetensors"
    lora.touch()
    assert pixelrt(["export", decoder, "--prior", prior, "--lora", str(lora), *target]) == 2
    assert "do not go with Kandinsky" in capsys.readouterr().err
    assert pixelrt(["export", str(lora), "--prior", prior, *target]) == 2
    said = capsys.readouterr().err
    assert "--prior" in said
    assert "go with a diffusion pipeline only" in said


def test_the_verbs_run_it(
    made: Exported, photo: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [str(made.bundle), "-p", "a cat", "--steps", "3", "--prior-steps", "2", "--seed", "1"]
    few += ["--backend", "onnxruntime-cpu"]
    words = ["txt2img", *few, "--size", "46x64", "--low-memory", "-o", str(tmp_path / "cat.png")]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], check=True)
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (48, 64)
    photo.save(tmp_path / "photo.png")
    start = [*few, "-i", str(tmp_path / "photo.png"), "-o", str(tmp_path / "dog.png")]
    assert pixelrt(["img2img", *start, "--strength", "0.7", "--prior-guidance-scale", "2"]) == 0
    with Image.open(tmp_path / "dog.png") as image:
        assert image.size == (96, 64)
    capsys.readouterr()
    target = ["-o", str(tmp_path / "x.png")]
    assert pixelrt(["txt2img", *few, "--denoising-end", "0.8", *target]) == 2
    assert "no option denoising_end" in capsys.readouterr().err
    mask = ["-m", str(tmp_path / "photo.png")]
    assert pixelrt(["inpaint", *start[:-2], *mask, *target]) == 2
    assert "pixelrt txt2img, img2img" in capsys.readouterr().err
    assert pixelrt(["inspect", str(made.bundle)]) == 0
    assert "kandinsky-2.2, KandinskyV22Pipeline" in capsys.readouterr().out
