"""Stable Diffusion 1.x, 2.x and XL, and what is built like them: latents, a UNet, a VAE."""

from __future__ import annotations

from typing import Any

import numpy as np

from pixelrt.errors import InputError, UsageError
from pixelrt.geometry import Size
from pixelrt.pipeline_settings import DiffusionSettings
from pixelrt.runtime.diffusion.call import Call, Generated, call_of
from pixelrt.runtime.diffusion.latent_pipeline import Begin, LatentPipeline, Values, spread
from pixelrt.runtime.diffusion.pictures import (
    colour_pictures,
    is_latents,
    masks,
    shrunk_mask,
    size_of,
)

INPAINTING_CHANNELS = 9
CONSISTENCY = "LatentConsistencyModel"


def defaults_of(pipeline: str, settings: DiffusionSettings, mode: str) -> dict[str, Any]:
    """What diffusers takes where nothing is given, by the class that ``mode`` has there.

    ``pipeline``: the class that was exported. ``strength`` is that of modes that take one.
    """
    consistent = pipeline.startswith(CONSISTENCY) and mode != "inpaint"
    xl, alone = bool(settings.time_ids), not settings.controls
    guidance = 5.0 if xl else 7.5
    strength = {"image_to_image": 0.3 if xl and alone else 0.8, "inpaint": 0.9999 if xl else 1.0}
    if mode == "inpaint" and alone:
        guidance = 7.5  # SDXL's class for this has that of Stable Diffusion
    found = {
        "num_inference_steps": 4 if consistent else 50,
        "guidance_scale": 8.5 if consistent else guidance,
    }
    return found if mode == "text_to_image" else found | {"strength": strength[mode]}


class StableDiffusion(LatentPipeline):
    """A bundle of family ``stable-diffusion`` or ``stable-diffusion-xl``, ready to run.

    Options of all methods: see ``Call``; what is left out is as ``defaults`` says. All raise
    ``UsageError`` and ``InputError`` for what cannot be done, ``BackendError`` where a network
    cannot be run.
    """

    def defaults(self, mode: str) -> dict[str, Any]:
        """``num_inference_steps``, ``guidance_scale`` and ``strength`` where none is given: those
        of diffusers' class. ``mode``: the name of a method."""
        return defaults_of(self.bundle.manifest.variant, self.settings, mode)

    def text_to_image(self, prompt: Any = None, **options: Any) -> Generated:
        """Pictures from a prompt alone."""
        call, _ = self._call("text_to_image", prompt, options)
        self._check_paints_anew()
        # diffusers takes the size of the control picture, too
        controls = call.control_images if self.settings.controls else ()
        size = self._size(call, controls[0] if len(controls) else None)
        job = self._job(call, size, strength=1.0)
        return self._finish(job, Begin(self._pure_noise(job)))

    def image_to_image(
        self,
        prompt: Any = None,
        image: Any = None,
        *,
        strength: float | None = None,
        **options: Any,
    ) -> Generated:
        """Pictures from a prompt and a picture, or from latents of another pipeline.

        ``image``: see ``pictures.pictures``, or latents float32 (N, c, h, w). ``strength``: how
        much of the schedule is run, in (0, 1].
        """
        call, strength = self._call("image_to_image", prompt, options, strength)
        self._check_paints_anew()
        if image is None:
            raise UsageError("there is no image")
        latents = is_latents(image, self.settings.latent_channels)
        size = self._latent_size(image) if latents else self._size(call, image)
        job = self._job(call, size, strength=strength)
        values = image if latents else self._encode(colour_pictures(image, size) * 2 - 1, job.noise)
        values = spread(values, job.count, "images")
        if call.denoising_start is None:
            values = job.run.add_noise(values, self._draw(job))
        return self._finish(job, Begin(values))

    def inpaint(
        self,
        prompt: Any = None,
        image: Any = None,
        mask_image: Any = None,
        *,
        strength: float | None = None,
        **options: Any,
    ) -> Generated:
        """Pictures made anew where the mask is white.

        ``mask_image``: as ``image``, grey or RGB, of any size. With a UNet of nine channels the
        masked picture is shown to it; with one of four, what the mask leaves out is put back
        after every step.
        """
        call, strength = self._call("inpaint", prompt, options, strength)
        if image is None or mask_image is None:
            raise UsageError("inpainting needs an image and a mask_image")
        size = self._size(call, image)
        job = self._job(call, size, strength=strength)
        pixels = colour_pictures(image, size) * 2 - 1
        mask = masks(mask_image, size)
        shows = self.settings.unet_channels == INPAINTING_CHANNELS
        original: Values | None = None
        if not shows or strength < 1:
            original = spread(self._encode(pixels, job.noise), job.count, "images")
        drawn = self._draw(job)
        if strength < 1:
            assert original is not None
            latents = job.run.add_noise(original, drawn)
        else:
            latents = drawn * np.float32(job.run.initial_noise_scale)
        small = spread(shrunk_mask(mask, self.settings.latent_scale), job.count, "masks")
        seen = self._encode(pixels * (mask < 0.5), job.noise) if shows else None
        if seen is not None:
            beside = np.concatenate([small, spread(seen, job.count, "images")], axis=1)
            return self._finish(job, Begin(latents, beside))
        assert original is not None
        kept = original
        # diffusers encodes the masked picture here too, and draws noise for that
        job.noise(original.shape)

        def keep(now: Values, number: int) -> Values:
            last = number + 1 == len(job.run)
            before = kept if last else job.run.add_noise(kept, drawn, number + 1)
            return (1 - small) * before + small * now

        return self._finish(job, Begin(latents, keep=keep))

    def _call(
        self, mode: str, prompt: Any, options: dict[str, Any], strength: float | None = None
    ) -> tuple[Call, float]:
        """With the strength, which is 1 in modes that have none."""
        defaults = self.defaults(mode)
        own = defaults.pop("strength", 1.0)
        call = call_of({**defaults, "prompt": prompt, **options})
        return call, own if strength is None else strength

    def _check_paints_anew(self) -> None:
        if self.settings.unet_channels == INPAINTING_CHANNELS:
            raise UsageError(
                f"{self.bundle.manifest.name} only paints into pictures",
                hint="call inpaint (`pixelrt inpaint`) with a picture and a mask",
            )

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


def _near(length: int, step: int, least: int) -> int:
    return max(least, round(length / step) * step)
