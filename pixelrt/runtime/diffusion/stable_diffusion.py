"""Stable Diffusion 1.x, 2.x and XL, and what is built like them: latents, a UNet, a VAE."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import InputError, UsageError
from pixelrt.geometry import Size
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.pipeline_settings import DiffusionSettings
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.diffusion.call import Call, Generated, StepInfo, call_of
from pixelrt.runtime.diffusion.conditions import Conditions
from pixelrt.runtime.diffusion.pictures import (
    colour_pictures,
    is_latents,
    masks,
    shrunk_mask,
    size_of,
)
from pixelrt.runtime.diffusion.prompts import Embeddings, Prompts
from pixelrt.runtime.diffusion.schedulers import make_scheduler
from pixelrt.runtime.diffusion.schedulers.base import Noise, Run
from pixelrt.runtime.diffusion.vae import decode, encode
from pixelrt.runtime.images.levels import to_pixels
from pixelrt.runtime.networks import Networks

Values = NDArray[np.float32]
INPAINTING_CHANNELS = 9


@dataclass(frozen=True, eq=False)
class _Begin:
    """What the steps start from. ``beside``: channels that the UNet takes beside the latents;
    ``keep``: brings back what is not to change, after step i."""

    latents: Values
    beside: Values | None = None
    keep: Callable[[Values, int], Values] | None = None


@dataclass(frozen=True, eq=False)
class _Job:
    """A call with everything that its modes share."""

    call: Call
    size: Size
    embeddings: Embeddings
    run: Run
    noise: Noise
    seed: int | None

    @property
    def count(self) -> int:
        return self.embeddings.count


class StableDiffusion(Closing):
    """A bundle of family ``stable-diffusion`` or ``stable-diffusion-xl``, ready to run.

    Options of all methods: see ``Call``. All raise ``UsageError`` and ``InputError`` for what
    cannot be done, ``BackendError`` where a network cannot be run.
    """

    def __init__(self, bundle: PipelineBundle, networks: Networks) -> None:
        self.bundle = bundle
        self.networks = networks
        self.settings = bundle.settings(DiffusionSettings)
        self._prompts = Prompts(networks, self.settings)

    def text_to_image(self, prompt: Any = None, **options: Any) -> Generated:
        """Pictures from a prompt alone."""
        call = call_of({"prompt": prompt, **options})
        if self.settings.unet_channels == INPAINTING_CHANNELS:
            raise UsageError(f"{self.bundle.manifest.name} only paints into pictures")
        size = self._size(call, None)
        job = self._job(call, size, strength=1.0)
        return self._finish(job, _Begin(self._pure_noise(job)))

    def image_to_image(
        self, prompt: Any = None, image: Any = None, *, strength: float = 0.8, **options: Any
    ) -> Generated:
        """Pictures from a prompt and a picture, or from latents of another pipeline.

        ``image``: see ``pictures.pictures``, or latents float32 (N, c, h, w). ``strength``: how
        much of the schedule is run, in (0, 1].
        """
        call = call_of({"prompt": prompt, **options})
        if image is None:
            raise UsageError("there is no image")
        latents = is_latents(image, self.settings.latent_channels)
        size = self._latent_size(image) if latents else self._size(call, image)
        job = self._job(call, size, strength=strength)
        values = image if latents else self._encode(colour_pictures(image, size) * 2 - 1, job.noise)
        values = _spread(values, job.count, "images")
        if call.denoising_start is None:
            values = job.run.add_noise(values, self._draw(job))
        return self._finish(job, _Begin(values))

    def inpaint(
        self,
        prompt: Any = None,
        image: Any = None,
        mask_image: Any = None,
        *,
        strength: float = 1.0,
        **options: Any,
    ) -> Generated:
        """Pictures made anew where the mask is white.

        ``mask_image``: as ``image``, grey or RGB, of any size. With a UNet of nine channels the
        masked picture is shown to it; with one of four, what the mask leaves out is put back
        after every step.
        """
        call = call_of({"prompt": prompt, **options})
        if image is None or mask_image is None:
            raise UsageError("inpainting needs an image and a mask_image")
        size = self._size(call, image)
        job = self._job(call, size, strength=strength)
        pixels = colour_pictures(image, size) * 2 - 1
        mask = masks(mask_image, size)
        shows = self.settings.unet_channels == INPAINTING_CHANNELS
        original: Values | None = None
        if not shows or strength < 1:
            original = _spread(self._encode(pixels, job.noise), job.count, "images")
        drawn = self._draw(job)
        if strength < 1:
            assert original is not None
            latents = job.run.add_noise(original, drawn)
        else:
            latents = drawn * np.float32(job.run.initial_noise_scale)
        small = _spread(shrunk_mask(mask, self.settings.latent_scale), job.count, "masks")
        seen = self._encode(pixels * (mask < 0.5), job.noise) if shows else None
        if seen is not None:
            beside = np.concatenate([small, _spread(seen, job.count, "images")], axis=1)
            return self._finish(job, _Begin(latents, beside))
        assert original is not None
        kept = original
        # diffusers encodes the masked picture here too, and draws noise for that
        job.noise(original.shape)

        def keep(now: Values, number: int) -> Values:
            last = number + 1 == len(job.run)
            before = kept if last else job.run.add_noise(kept, drawn, number + 1)
            return (1 - small) * before + small * now

        return self._finish(job, _Begin(latents, keep=keep))

    def close(self) -> None:
        """Let go of the networks; the next call opens them again."""
        self.networks.close()

    def decode(self, latents: Values) -> NDArray[np.uint8]:
        """Latents float32 (N, c, h, w) of ``output_type="latent"`` to pictures."""
        return to_pixels(decode(self.networks, latents, self.settings.scaling))

    # --- the way of a call ------------------------------------------------------------

    def _job(self, call: Call, size: Size, *, strength: float) -> _Job:
        guided = call.guidance_scale > 1 and not self.settings.guidance_width
        run = make_scheduler(self.settings.scheduler, call.scheduler).plan(
            call.num_inference_steps,
            strength,
            denoising_start=call.denoising_start,
            denoising_end=call.denoising_end,
            eta=call.eta,
        )
        embeddings = self._prompts.embeddings(call, guided=guided)
        seed = call.seed if call.seed is not None or call.noise else secrets.randbits(32)
        noise = call.noise or _normal(np.random.default_rng(seed))
        return _Job(call, size, embeddings, run, noise, seed)

    def _size(self, call: Call, image: Any) -> Size:
        """What is asked for, or the picture's, or the network's own."""
        step, least = self.settings.multiple, self.settings.minimum
        own = self.settings.sample_size * self.settings.latent_scale
        given = Size(own, own)
        if image is not None:
            found = size_of(image)
            # diffusers takes a picture down to its grid, too
            given = Size(found.height - found.height % step, found.width - found.width % step)
        height, width = call.height or given.height, call.width or given.width
        if height % step or width % step or min(height, width) < least:
            raise InputError(
                "the size is off the grid of this pipeline",
                found=f"{width}x{height}",
                expected=f"width and height multiples of {step}, at least {least}",
                hint=f"{_near(width, step, least)}x{_near(height, step, least)} is near",
            )
        return Size(height, width)

    def _latent_size(self, latents: Values) -> Size:
        height, width = latents.shape[2:]
        scale = self.settings.latent_scale
        return Size(height * scale, width * scale)

    def _encode(self, pixels: Values, noise: Noise) -> Values:
        return encode(self.networks, pixels.astype(np.float32), self.settings.scaling, noise)

    def _draw(self, job: _Job) -> Values:
        """Standard normal latents: those of the call, or new ones."""
        scale, channels = self.settings.latent_scale, self.settings.latent_channels
        shape = (job.count, channels, job.size.height // scale, job.size.width // scale)
        given = job.call.latents
        if given is None:
            return np.asarray(job.noise(shape), np.float32)
        if given.shape != shape:
            raise InputError(
                "the latents do not fit the call", found=str(given.shape), expected=str(shape)
            )
        return given.astype(np.float32)

    def _pure_noise(self, job: _Job) -> Values:
        return self._draw(job) * np.float32(job.run.initial_noise_scale)

    def _finish(self, job: _Job, begin: _Begin) -> Generated:
        latents = self._denoise(job, begin)
        call, notes = job.call, job.embeddings.notes
        if call.output_type == "latent":
            return Generated(None, latents, job.seed, notes)
        return Generated(self.decode(latents), latents, job.seed, notes)

    def _denoise(self, job: _Job, begin: _Begin) -> Values:
        call, run, latents = job.call, job.run, begin.latents
        conditions = Conditions(self.settings, call, job.embeddings, job.size, len(run))
        for number, timestep in enumerate(run.timesteps):
            shown = run.scale_input(latents, number)
            if begin.beside is not None:
                shown = np.concatenate([shown, begin.beside], axis=1)
            feeds = conditions.feeds(shown, float(timestep), number)
            output = conditions.guided(self.networks.run("unet", feeds)["noise"])
            latents, predicted = run.step(output, number, latents, job.noise)
            if begin.keep is not None:
                latents = begin.keep(latents, number)
            if call.callback is not None:
                seen = predicted
                call.callback(
                    StepInfo(
                        number,
                        len(run),
                        float(timestep),
                        latents,
                        predicted,
                        lambda seen=seen: self.decode(seen),  # type: ignore[misc]
                    )
                )
        return latents


def _normal(generator: np.random.Generator) -> Noise:
    return lambda shape: generator.standard_normal(shape, np.float32)


def _near(length: int, step: int, least: int) -> int:
    return max(least, round(length / step) * step)


def _spread(values: Values, count: int, what: str) -> Values:
    """One for each picture of the call."""
    if count % len(values):
        raise InputError(
            f"the {what} do not fit the prompts", found=str(len(values)), expected=f"1 or {count}"
        )
    return np.concatenate([values] * (count // len(values))) if count > len(values) else values
