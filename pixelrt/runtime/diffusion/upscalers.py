"""Stable Diffusion's upscalers: of latents by two, of pictures by their VAE's factor (four)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from PIL import Image

from pixelrt.errors import InputError, UsageError
from pixelrt.geometry import Size
from pixelrt.runtime.diffusion.call import Call, Generated, call_of
from pixelrt.runtime.diffusion.latent_pipeline import (
    Begin,
    Job,
    LatentPipeline,
    Values,
    spread,
)
from pixelrt.runtime.diffusion.pictures import colour_pictures, is_latents, size_of
from pixelrt.runtime.diffusion.schedulers import make_scheduler
from pixelrt.runtime.diffusion.schedulers.base import Run
from pixelrt.runtime.diffusion.schedulers.products import ProductScheduler

FOREIGN = (
    "height",
    "width",
    "prompt_2",
    "negative_prompt_2",
    "guidance_rescale",
    "denoising_start",
    "denoising_end",
    "control_images",
    "controlnet_conditioning_scale",
    "control_guidance_start",
    "control_guidance_end",
    "guess_mode",
    "original_size",
    "target_size",
    "crops_coords_top_left",
    "aesthetic_score",
    "negative_aesthetic_score",
)
"""Options of ``Call`` that no upscaler has."""
OWN = {"num_inference_steps": 75, "guidance_scale": 9.0}
"""What diffusers takes where nothing is said."""
NOISE_TOLD = 64
"""The x2 upscaler is told of noise in what it enlarges: so many ones and zeros say none."""


class Upscaler(LatentPipeline):
    """What the upscalers share."""

    @abstractmethod
    def upscale(self, prompt: Any = None, image: Any = None, **options: Any) -> Generated:
        """Larger pictures. Without a prompt the empty one is taken."""

    def _call(self, prompt: Any, image: Any, options: dict[str, Any], foreign: Any) -> Call:
        if image is None:
            raise UsageError("there is no image")
        if prompt is None and options.get("prompt_embeds") is None:
            prompt = ""
        return call_of({**OWN, "prompt": prompt, **options}, foreign)

    def _grid(self, image: Any) -> Size:
        """The size that a picture is brought to: down to the grid, as in diffusers."""
        found, step, least = size_of(image), self.settings.multiple, self.settings.minimum
        size = Size(found.height - found.height % step, found.width - found.width % step)
        if min(size.height, size.width) < least:
            raise InputError(
                "the picture is too small for this upscaler",
                found=str(found),
                expected=f"width and height at least {least}",
            )
        return size

    def _pixels(self, image: Any, size: Size) -> Values:
        """(N, 3, H, W) in [-1, 1]."""
        return colour_pictures(image, size, Image.Resampling.BICUBIC) * 2 - 1


class LatentUpscaler(Upscaler):
    """A bundle of family ``latent-upscaler``: latents by two, then the picture of them.

    The UNet is k-diffusion's; its input and output are scaled as in Karras et al. 2206.00364,
    table 1, with a standard deviation of the data of 1.
    """

    def upscale(self, prompt: Any = None, image: Any = None, **options: Any) -> Generated:
        """Pictures of twice the size.

        ``image``: see ``pictures.pictures``, or latents float32 (N, c, h, w) of a Stable
        Diffusion pipeline (``output_type="latent"``), taken as they are. Options are those of
        ``Call`` but for ``FOREIGN``, ``scheduler`` and ``eta``; 75 steps and a guidance scale of
        9 where left out; at 0 no prompt is read. Raises ``UsageError`` and ``InputError`` for
        what cannot be done.
        """
        if options.get("guidance_scale") == 0 and options.get("prompt_embeds") is None:
            prompt = [""] * len(prompt) if isinstance(prompt, list | tuple) else ""
        call = self._call(prompt, image, options, (*FOREIGN, "scheduler", "eta"))
        latents = is_latents(image, self.settings.latent_channels)
        small = self._latent_grid(image) if latents else self._grid(image)
        job = self._job(call, Size(2 * small.height, 2 * small.width), strength=1.0)
        found = image if latents else self._encode(self._pixels(image, small), job.noise)
        shown = spread(found, job.count, "images").repeat(2, axis=2).repeat(2, axis=3)
        return self._finish(job, Begin(self._pure_noise(job), shown, told=self._told(job)))

    def _latent_grid(self, latents: Values) -> Size:
        """Of the picture that latents stand for."""
        scale = self.settings.latent_scale
        step, least = self.settings.multiple // scale, self.settings.minimum // scale
        height, width = latents.shape[2:]
        if height % step or width % step or min(height, width) < least:
            raise InputError(
                "the size of the latents is off the grid of this upscaler",
                found=f"{width}x{height}",
                expected=f"width and height multiples of {step}, at least {least}",
                hint=f"make them of a picture whose sides are multiples of {step * scale} pixels",
            )
        return Size(height * scale, width * scale)

    def _told(self, job: Job) -> dict[str, Values]:
        pooled = job.embeddings.pooled
        assert pooled is not None
        none = np.repeat(np.array([1, 0], np.float32), NOISE_TOLD)
        rows = np.broadcast_to(none, (len(pooled), len(none)))
        return {"guidance": np.concatenate([rows, pooled], axis=1)}

    def _timestep(self, run: Run, number: int) -> float:
        return float(np.log(_sigma(run, number)) * np.float32(0.25))

    def _prediction(self, output: Values, latents: Values, run: Run, number: int) -> Values:
        """Latents without noise. The last channel, a variance, is not used."""
        sigma = _sigma(run, number)
        output = output[:, : latents.shape[1]] * (sigma / np.sqrt(sigma**2 + np.float32(1)))
        found: Values = latents / (sigma**2 + np.float32(1)) + output
        return found


class PixelUpscaler(Upscaler):
    """A bundle of family ``upscaler``: latents of the large picture beside the small one."""

    def upscale(
        self,
        prompt: Any = None,
        image: Any = None,
        *,
        noise_level: int = 20,
        **options: Any,
    ) -> Generated:
        """Pictures larger by the VAE's factor, which is four for the published network.

        ``image``: see ``pictures.pictures``. ``noise_level``: of the noise that is added to it,
        from 0 to ``max_noise_level`` of the settings; more of it changes more. Options are those
        of ``Call`` but for ``FOREIGN``; 75 steps and a guidance scale of 9 where left out.
        Raises ``UsageError`` and ``InputError`` for what cannot be done.
        """
        call = self._call(prompt, image, options, FOREIGN)
        self._check_level(noise_level)
        small, factor = self._grid(image), self.settings.latent_scale
        pixels = self._pixels(image, small)
        size = Size(factor * small.height, factor * small.width)
        job = self._job(call, size, strength=1.0)
        noise = np.asarray(job.noise(pixels.shape), np.float32)
        low = make_scheduler(self.settings.low_scheduler)
        if not isinstance(low, ProductScheduler):
            raise InputError(
                "the scheduler of the small picture goes by no timesteps of a training",
                found=low.name,
                expected="DDPMScheduler",
            )
        shown = spread(low.add_noise(pixels, noise, noise_level), job.count, "images")
        level = np.full(job.batch, noise_level, np.int64)
        return self._finish(job, Begin(self._pure_noise(job), shown, told={"level": level}))

    def _check_level(self, level: int) -> None:
        most = self.settings.max_noise_level
        if not 0 <= level <= most:
            raise UsageError(
                "noise_level is out of range", found=str(level), expected=f"0 to {most}"
            )


def _sigma(run: Run, number: int) -> np.float32:
    assert run.sigmas is not None  # export takes no other scheduler
    return np.float32(run.sigmas[number])
