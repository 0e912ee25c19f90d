"""The way of a call that pipelines of latents share: prompts, schedule, noise, steps, decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import InputError
from pixelrt.geometry import Size
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.pipeline_settings import DiffusionSettings
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.diffusion.call import Call, Generated, StepInfo
from pixelrt.runtime.diffusion.conditions import Conditions
from pixelrt.runtime.diffusion.noise import first_noise, noise_of
from pixelrt.runtime.diffusion.prompts import Embeddings, Prompts
from pixelrt.runtime.diffusion.schedulers import make_scheduler
from pixelrt.runtime.diffusion.schedulers.base import Noise, Run
from pixelrt.runtime.diffusion.schedulers.lcm import LCMScheduler
from pixelrt.runtime.diffusion.vae import decode, encode
from pixelrt.runtime.images.levels import to_pixels
from pixelrt.runtime.networks import Networks

Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Begin:
    """What the steps start from. ``beside``: channels that the UNet takes beside the latents;
    ``told``: more inputs of it, for the whole batch; ``keep``: brings back what is not to
    change, after step i."""

    latents: Values
    beside: Values | None = None
    told: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    keep: Callable[[Values, int], Values] | None = None


@dataclass(frozen=True, eq=False)
class Job:
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

    @property
    def batch(self) -> int:
        """How many the UNet sees at once: with guidance, twice the pictures."""
        return len(self.embeddings.text)


class LatentPipeline(Closing):
    """A UNet that takes the noise from latents, with what stands around it. The kinds of
    pipelines have methods of their own that make pictures."""

    def __init__(self, bundle: PipelineBundle, networks: Networks) -> None:
        self.bundle = bundle
        self.networks = networks
        self.settings = bundle.settings(DiffusionSettings)
        self._prompts = Prompts(networks, self.settings)

    def close(self) -> None:
        """Let go of the networks; the next call opens them again."""
        self.networks.close()

    def decode(self, latents: Values) -> NDArray[np.uint8]:
        """Latents float32 (N, c, h, w) of ``output_type="latent"`` to pictures."""
        return to_pixels(decode(self.networks, latents, self.settings.scaling))

    # --- the way of a call ------------------------------------------------------------

    def _job(self, call: Call, size: Size, *, strength: float) -> Job:
        guided = call.guidance_scale > 1 and not self.settings.guidance_width
        run = self._plan(call, strength)
        embeddings = self._prompts.embeddings(call, guided=guided)
        noise, seed = noise_of(call)
        return Job(call, size, embeddings, run, noise, seed)

    def _plan(self, call: Call, strength: float) -> Run:
        scheduler = make_scheduler(self.settings.scheduler, call.scheduler)
        steps, start, end = call.num_inference_steps, call.denoising_start, call.denoising_end
        whole = start is None and end is None and not call.eta
        if self.settings.guidance_width and isinstance(scheduler, LCMScheduler) and whole:
            # Latent consistency models take all steps, from the part that strength leaves.
            return scheduler.plan_within(steps, strength)
        return scheduler.plan(
            steps, strength, denoising_start=start, denoising_end=end, eta=call.eta
        )

    def _encode(self, pixels: Values, noise: Noise) -> Values:
        return encode(self.networks, pixels.astype(np.float32), self.settings.scaling, noise)

    def _draw(self, job: Job) -> Values:
        """Standard normal latents: those of the call, or new ones."""
        scale, channels = self.settings.latent_scale, self.settings.latent_channels
        shape = (job.count, channels, job.size.height // scale, job.size.width // scale)
        return first_noise("latents", job.call.latents, shape, job.noise)

    def _pure_noise(self, job: Job) -> Values:
        return self._draw(job) * np.float32(job.run.initial_noise_scale)

    def _timestep(self, run: Run, number: int) -> float:
        """What the UNet is told of step ``number``."""
        return float(run.timesteps[number])

    def _prediction(self, output: Values, latents: Values, run: Run, number: int) -> Values:
        """What the scheduler is given for the UNet's output at step ``number``."""
        return output

    def _finish(self, job: Job, begin: Begin) -> Generated:
        latents = self._denoise(job, begin)
        call, notes = job.call, job.embeddings.notes
        if call.output_type == "latent":
            return Generated(None, latents, job.seed, notes)
        return Generated(self.decode(latents), latents, job.seed, notes)

    def _denoise(self, job: Job, begin: Begin) -> Values:
        call, run, latents = job.call, job.run, begin.latents
        conditions = Conditions(self.settings, call, job.embeddings, job.size, len(run))
        for number, timestep in enumerate(run.timesteps):
            shown = run.scale_input(latents, number)
            if begin.beside is not None:
                shown = np.concatenate([shown, begin.beside], axis=1)
            feeds = conditions.feeds(shown, self._timestep(run, number), number)
            output = conditions.guided(self.networks.run("unet", {**feeds, **begin.told})["noise"])
            output = self._prediction(output, latents, run, number)
            latents, predicted = run.step(output, number, latents, job.noise)
            if begin.keep is not None:
                latents = begin.keep(latents, number)
            if call.callback is not None:
                preview = partial(self.decode, predicted)
                now = float(timestep)
                call.callback(StepInfo(number, len(run), now, latents, predicted, preview))
        return latents


def spread(values: Values, count: int, what: str) -> Values:
    """One for each picture of the call."""
    if count % len(values):
        raise InputError(
            f"the {what} do not fit the prompts", found=str(len(values)), expected=f"1 or {count}"
        )
    return np.concatenate([values] * (count // len(values))) if count > len(values) else values
