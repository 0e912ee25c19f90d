"""Kandinsky 2.2: a prior makes an image embedding of a prompt, a UNet latents, MoVQ pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelrt.errors import InputError, UsageError
from pixelrt.geometry import Size
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.pipeline_settings import KandinskySettings
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.diffusion.call import StepInfo, options_as
from pixelrt.runtime.diffusion.kandinsky_prior import (
    ImageEmbeds,
    KandinskyCall,
    KandinskyGenerated,
    Prior,
    guide,
)
from pixelrt.runtime.diffusion.latent_pipeline import Values, spread
from pixelrt.runtime.diffusion.noise import first_noise, noise_of
from pixelrt.runtime.diffusion.pictures import (
    colour_pictures,
    is_latents,
    size_of,
)
from pixelrt.runtime.diffusion.schedulers import make_scheduler
from pixelrt.runtime.diffusion.schedulers.base import Noise, Run
from pixelrt.runtime.diffusion.text.embeddings import check_same_shape, ready_embeddings
from pixelrt.runtime.images.levels import to_pixels
from pixelrt.runtime.networks import Networks

STRENGTH = 0.3
"""diffusers' own, where none is given."""


class Kandinsky(Closing):
    """A bundle of family ``kandinsky-2.2``, ready to run.

    Options of all methods: see ``KandinskyCall``. All raise ``UsageError`` and ``InputError`` for
    what cannot be done, ``BackendError`` where a network cannot be run.
    """

    def __init__(self, bundle: PipelineBundle, networks: Networks) -> None:
        self.bundle = bundle
        self.networks = networks
        self.settings = bundle.settings(KandinskySettings)
        self._prior = Prior(networks, self.settings)

    def defaults(self, mode: str) -> dict[str, Any]:
        """``num_inference_steps``, ``guidance_scale`` and ``strength`` where none is given.
        ``mode``: the name of a method."""
        found = {
            "num_inference_steps": KandinskyCall.num_inference_steps,
            "guidance_scale": KandinskyCall.guidance_scale,
        }
        return found | {"strength": STRENGTH} if mode == "image_to_image" else found

    def text_to_image(self, prompt: Any = None, **options: Any) -> KandinskyGenerated:
        """Pictures from a prompt alone, or from an image embedding."""
        call = options_as(KandinskyCall, {"prompt": prompt, **options})
        own = self.settings.sample_size * self.settings.latent_scale
        size, notes = self._size(call, Size(own, own))
        run = self._run(call, 1.0)
        noise, seed = noise_of(call)
        embeds = self._embeds(call, noise)
        latents = self._draw(call, len(embeds.image_embeds), size, noise)
        latents = latents * np.float32(run.initial_noise_scale)
        return self._finish(call, run, latents, embeds, noise, seed, notes)

    def image_to_image(
        self,
        prompt: Any = None,
        image: Any = None,
        *,
        strength: float = STRENGTH,
        **options: Any,
    ) -> KandinskyGenerated:
        """Pictures from a prompt and a picture, or from latents of another call.

        ``image``: see ``pictures.pictures``, or latents float32 (N, c, h, w). ``strength``: how
        much of the schedule is run, in (0, 1].
        """
        call = options_as(KandinskyCall, {"prompt": prompt, **options})
        if image is None:
            raise UsageError("there is no image")
        latents = is_latents(image, self.settings.latent_channels)
        size, notes = self._latent_size(image) if latents else self._size(call, size_of(image))
        run = self._run(call, strength)
        noise, seed = noise_of(call)
        embeds = self._embeds(call, noise)
        count = len(embeds.image_embeds)
        values = spread(image if latents else self._encode(image, size), count, "images")
        values = run.add_noise(values, self._draw(call, count, size, noise))
        return self._finish(call, run, values, embeds, noise, seed, notes)

    def embed(self, prompt: Any, **options: Any) -> ImageEmbeds:
        """What the prior makes of prompts, for ``image_embeds`` and ``negative_image_embeds``."""
        call = options_as(KandinskyCall, {"prompt": prompt, **options})
        return self._prior.embeds(call, noise_of(call)[0])

    def interpolate(
        self,
        images_and_prompts: Sequence[Any],
        weights: Sequence[float],
        *,
        negative_prompt: str = "",
        negative_prior_prompt: str | None = None,
        **options: Any,
    ) -> ImageEmbeds:
        """The sum of what prompts and pictures (see ``pictures.pictures``, one at a time) are
        embedded as, each times its weight. ``negative_prompt`` is embedded as what pictures are not
        to be like; ``negative_prior_prompt`` is what the prior itself is kept away from."""
        if not weights or len(images_and_prompts) != len(weights):
            raise UsageError(
                "every prompt and picture has a weight",
                found=f"{len(images_and_prompts)} of them, {len(weights)} weights",
            )

        def call_for(text: str) -> KandinskyCall:
            words = {"prompt": text, "negative_prompt": negative_prior_prompt}
            return options_as(KandinskyCall, {**options, **words})

        call = call_for(negative_prompt)
        noise = noise_of(call)[0]
        total = np.zeros((call.num_images_per_prompt, self.settings.embedding), np.float32)
        notes: list[str] = []
        for one, weight in zip(images_and_prompts, weights, strict=True):
            if isinstance(one, str):
                made = self._prior.embeds(call_for(one), noise)
                found = made.image_embeds
                notes += made.notes
            else:
                found = self._prior.of_picture(one)
            total += np.float32(weight) * found
        if not negative_prompt and negative_prior_prompt is None:
            return ImageEmbeds(total, self._prior.no_negative(len(total)), tuple(notes))
        against = self._prior.embeds(call, noise)
        rest = against.image_embeds if negative_prompt else against.negative_image_embeds
        return ImageEmbeds(total, rest, (*notes, *against.notes))

    def close(self) -> None:
        """Let go of the networks; the next call opens them again."""
        self.networks.close()

    def decode(self, latents: Values) -> NDArray[np.uint8]:
        """Latents float32 (N, c, h, w) of ``output_type="latent"`` to pictures."""
        return to_pixels(self.networks.run("movq_decoder", {"latents": latents})["pixels"])

    # --- the way of a call ------------------------------------------------------------

    def _run(self, call: KandinskyCall, strength: float) -> Run:
        scheduler = make_scheduler(self.settings.scheduler, call.scheduler)
        return scheduler.plan(call.num_inference_steps, strength)

    def _size(self, call: KandinskyCall, given: Size) -> tuple[Size, tuple[str, ...]]:
        """What is asked for, or ``given``, rounded up to the grid, as diffusers does it for
        pictures from text; a note tells of it."""
        step, least = self.settings.multiple, self.settings.minimum
        asked = Size(call.height or given.height, call.width or given.width)
        size = Size(_up(asked.height, step), _up(asked.width, step))
        if min(size.height, size.width) < least:
            raise InputError(
                "the size is too small for this pipeline",
                found=f"{asked.width}x{asked.height}",
                expected=f"width and height of at least {least}",
            )
        if size == asked:
            return size, ()
        grown = f"{asked.width}x{asked.height} became {size.width}x{size.height}"
        return size, (f"{grown}: width and height are multiples of {step}",)

    def _latent_size(self, latents: Values) -> tuple[Size, tuple[str, ...]]:
        scale, step = self.settings.latent_scale, self.settings.multiple
        height, width = (side * scale for side in latents.shape[2:])
        if height % step or width % step or min(height, width) < self.settings.minimum:
            raise InputError(
                "the latents do not fit this pipeline",
                found=str(latents.shape),
                expected=f"sides that are multiples of {step // scale}",
            )
        return Size(height, width), ()

    def _embeds(self, call: KandinskyCall, noise: Noise) -> ImageEmbeds:
        """One for each picture: those of the call, or of its prompts."""
        if call.image_embeds is None:
            if call.negative_image_embeds is not None:
                raise UsageError("negative_image_embeds go with image_embeds")
            return self._prior.embeds(call, noise)
        if call.prompt is not None or call.negative_prompt is not None:
            raise UsageError("prompts and image_embeds exclude each other")
        shape = ("B", self.settings.embedding)
        given = ready_embeddings("image_embeds", call.image_embeds, shape)
        against = self._prior.no_negative(len(given))
        if call.negative_image_embeds is not None:
            name = "negative_image_embeds"
            against = ready_embeddings(name, call.negative_image_embeds, shape)
            check_same_shape("image_embeds", given, name, against)
        times = call.num_images_per_prompt
        return ImageEmbeds(np.repeat(given, times, axis=0), np.repeat(against, times, axis=0))

    def _encode(self, image: Any, size: Size) -> Values:
        # As diffusers brings pictures to their size for Kandinsky.
        pixels = colour_pictures(image, size, Image.Resampling.BICUBIC, reducing_gap=1) * 2 - 1
        return self.networks.run("movq_encoder", {"pixels": pixels})["latents"]

    def _draw(self, call: KandinskyCall, count: int, size: Size, noise: Noise) -> Values:
        """Standard normal latents: those of the call, or new ones."""
        scale = self.settings.latent_scale
        shape = (count, self.settings.latent_channels, size.height // scale, size.width // scale)
        return first_noise("latents", call.latents, shape, noise)

    def _finish(
        self,
        call: KandinskyCall,
        run: Run,
        latents: Values,
        embeds: ImageEmbeds,
        noise: Noise,
        seed: int | None,
        notes: tuple[str, ...],
    ) -> KandinskyGenerated:
        latents = self._denoise(call, run, latents, embeds, noise)
        return KandinskyGenerated(
            None if call.output_type == "latent" else self.decode(latents),
            latents,
            seed,
            (*embeds.notes, *notes),
            image_embeds=embeds.image_embeds,
            negative_image_embeds=embeds.negative_image_embeds,
        )

    def _denoise(
        self, call: KandinskyCall, run: Run, latents: Values, embeds: ImageEmbeds, noise: Noise
    ) -> Values:
        guided = call.guidance_scale > 1
        told = embeds.image_embeds
        if guided:
            told = np.concatenate([embeds.negative_image_embeds, told])
        for number, timestep in enumerate(run.timesteps):
            shown = run.scale_input(latents, number)
            shown = np.concatenate([shown, shown]) if guided else shown
            steps = np.full(len(shown), timestep, np.float32)
            feeds = {"latents": shown, "timestep": steps, "image_embeds": told}
            output = self.networks.run("unet", feeds)["noise"]
            if guided:
                output = _guided(output, latents.shape[1], call.guidance_scale)
            taken = run.output_shape(latents.shape)[1]
            latents, predicted = run.step(output[:, :taken], number, latents, noise)
            if call.callback is not None:
                preview = partial(self.decode, predicted)
                now = float(timestep)
                call.callback(StepInfo(number, len(run), now, latents, predicted, preview))
        return latents


def _guided(output: Values, channels: int, scale: float) -> Values:
    """Guided noise beside the variance of the positives."""
    variance = np.split(output[:, channels:], 2)[1]
    return np.concatenate([guide(output[:, :channels], scale), variance], axis=1)


def _up(length: int, step: int) -> int:
    return -(-length // step) * step
