"""Kandinsky's prior: prompts, and pictures, to image embeddings."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelrt.errors import BundleError, UsageError
from pixelrt.geometry import Size
from pixelrt.pipeline_settings import ClipImageSettings, KandinskySettings
from pixelrt.runtime.diffusion.call import CommonCall, Generated, Latents
from pixelrt.runtime.diffusion.noise import first_noise
from pixelrt.runtime.diffusion.pictures import colour_pictures, size_of
from pixelrt.runtime.diffusion.prompts import alike, texts_of
from pixelrt.runtime.diffusion.schedulers import make_scheduler
from pixelrt.runtime.diffusion.schedulers.base import Noise
from pixelrt.runtime.diffusion.text.batch import prepare
from pixelrt.runtime.diffusion.text.tokenizer import Tokenizer
from pixelrt.runtime.networks import Networks

Values = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class KandinskyCall(CommonCall):
    """Options of Kandinsky, beside those of ``CommonCall``.

    ``prior_guidance_scale``, ``prior_num_inference_steps``: of the prior; the plain ones are the
    UNet's. ``prior_latents``: the prior's initial noise, (B, D). ``image_embeds``,
    ``negative_image_embeds``: ready-made, float32 (B, D), in place of texts; without negative
    ones those that stand for no negative prompt are taken.
    """

    num_inference_steps: int = 100
    guidance_scale: float = 4.0
    prior_num_inference_steps: int = 25
    prior_guidance_scale: float = 4.0
    prior_latents: Latents | None = None
    image_embeds: Latents | None = None
    negative_image_embeds: Latents | None = None


@dataclass(frozen=True, eq=False)
class ImageEmbeds:
    """``image_embeds`` and ``negative_image_embeds`` (B, D): what pictures are to be like, and
    what not."""

    image_embeds: Values
    negative_image_embeds: Values
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class KandinskyGenerated(Generated):
    """With the embeddings that were used, (N, D), one for each picture."""

    image_embeds: Values
    negative_image_embeds: Values


class Prior:
    """The prior of a bundle with its tokenizer, text encoder and image encoder."""

    def __init__(self, networks: Networks, settings: KandinskySettings) -> None:
        self._networks = networks
        self._settings = settings
        self._tokenizer: Tokenizer | None = None

    def embeds(self, call: KandinskyCall, noise: Noise) -> ImageEmbeds:
        """Of the prompts of a call, each ``num_images_per_prompt`` times.

        The noise is drawn in diffusers' order: for prompts and negative prompts together, once
        before the steps and once in every step. Raises ``InputError`` and ``UsageError``.
        """
        prompts = texts_of(call.prompt, "prompt")
        negative = call.negative_prompt
        # With a negative prompt the prior embeds it too, as if it were a prompt.
        against = [] if negative is None else alike(negative, prompts, "negative_prompt")
        embeds, notes = self._sample([*prompts, *against], against * 2, call, noise)
        count = len(prompts) * call.num_images_per_prompt
        rest = embeds[count:] if against else self.no_negative(count)
        return ImageEmbeds(embeds[:count], rest, notes)

    def no_negative(self, count: int) -> Values:
        """(count, D): what stands for no negative prompt, the embedding of a picture of zeros."""
        return np.repeat(self._vector("zero_image_embed.npy")[None], count, axis=0)

    def of_picture(self, source: object) -> Values:
        """(1, D): what CLIP sees in a picture (see ``pictures.pictures``)."""
        pixels = clip_pixels(source, self._settings.image)
        if len(pixels) != 1:
            raise UsageError("each picture has a weight of its own", found=f"{len(pixels)} in one")
        found = self._networks.run("image_encoder", {"pixels": pixels})["image_embeds"]
        return np.asarray(found, np.float32)

    def _sample(
        self, prompts: list[str], negative: list[str], call: KandinskyCall, noise: Noise
    ) -> tuple[Values, tuple[str, ...]]:
        guided = call.prior_guidance_scale > 1
        against = negative or [""] * len(prompts)
        fixed, notes = self._texts([*against, *prompts] if guided else prompts)
        times = call.num_images_per_prompt
        fixed = {name: np.repeat(values, times, axis=0) for name, values in fixed.items()}
        run = make_scheduler(self._settings.prior_scheduler).plan(call.prior_num_inference_steps)
        shape = (len(prompts) * times, self._settings.embedding)
        embeds = first_noise("prior_latents", call.prior_latents, shape, noise)
        embeds = embeds * np.float32(run.initial_noise_scale)
        for number, timestep in enumerate(run.timesteps):
            shown = run.scale_input(embeds, number)
            shown = np.concatenate([shown, shown]) if guided else shown
            times_of = np.full(len(shown), timestep, np.float32)
            feeds = {"embeds": shown, "timestep": times_of, **fixed}
            predicted = self._networks.run("prior", feeds)["predicted"]
            if guided:
                predicted = guide(predicted, call.prior_guidance_scale)
            embeds = run.step(predicted, number, embeds, noise).latents
        clip_std, clip_mean = self._vector("clip_std.npy"), self._vector("clip_mean.npy")
        return embeds * clip_std + clip_mean, notes

    def _texts(self, texts: Sequence[str]) -> tuple[dict[str, Values], tuple[str, ...]]:
        """What the prior is told of texts. Each takes one window: the rest is cut and told of."""
        if self._tokenizer is None:
            one = self._settings.text
            self._tokenizer = Tokenizer(self._networks.bundle.asset(one.asset), one.tokenizer)
        batch = prepare(texts, self._tokenizer, long_prompts="truncate", weighting=False)
        found = self._networks.run("text_encoder", {"ids": batch.ids})
        mask = batch.mask.astype(np.float32)
        told = {"pooled": found["pooled"], "text": found["hidden"], "mask": mask}
        return told, tuple(dict.fromkeys(batch.notes))

    def _vector(self, name: str) -> Values:
        """An asset, (D,). Raises ``BundleError`` where it is not what it should be."""
        width = self._settings.embedding
        try:
            values = np.load(io.BytesIO(self._networks.bundle.asset(name)), allow_pickle=False)
        except (OSError, ValueError, EOFError) as exc:
            raise BundleError(f"assets/{name} is damaged", found=str(exc)) from exc
        if values.dtype != np.float32 or values.shape != (width,):
            raise BundleError(
                f"assets/{name} is damaged",
                found=f"{values.dtype} {values.shape}",
                expected=f"float32 ({width},)",
            )
        return np.asarray(values, np.float32)


def guide(output: Values, scale: float) -> Values:
    """From what a network gives for negatives and positives (Ho and Salimans 2207.12598)."""
    negative, positive = np.split(output, 2)
    guided: Values = negative + np.float32(scale) * (positive - negative)
    return guided


def clip_pixels(source: object, settings: ClipImageSettings) -> Values:
    """(N, 3, S, S) as CLIP's image processor makes them: the shorter side is brought to a size,
    the middle is cut out, values are normalised. Raises ``ImageError`` and ``InputError``."""
    size = size_of(source)
    short = min(size.height, size.width)
    # The longer side is cut off, not rounded, as transformers does it.
    height, width = (settings.size * side // short for side in (size.height, size.width))
    values = colour_pictures(source, Size(height, width), Image.Resampling.BICUBIC)
    crop = settings.crop
    top, left = (height - crop) // 2, (width - crop) // 2
    cut = values[:, :, top : top + crop, left : left + crop]
    mean, std = (np.array(x, np.float32)[:, None, None] for x in (settings.mean, settings.std))
    normalised: Values = (cut - mean) / std
    return np.ascontiguousarray(normalised)
