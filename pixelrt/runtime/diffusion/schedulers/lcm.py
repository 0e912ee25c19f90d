"""LCM: Luo et al., Latent Consistency Models, 2310.04378."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import InputError, UsageError
from pixelrt.runtime.diffusion.schedulers.base import (
    Array,
    Noise,
    Run,
    Schedule,
    Step,
    combine,
    draw,
    limited,
    predicted_sample,
)
from pixelrt.runtime.diffusion.schedulers.noise_levels import Table, alpha_products
from pixelrt.runtime.diffusion.schedulers.options import BetaOptions, BetaSchedule, ClipOptions
from pixelrt.runtime.diffusion.schedulers.products import (
    ProductRun,
    ProductScheduler,
    check_signal,
    level_of,
)
from pixelrt.runtime.diffusion.schedulers.timesteps import Window, check_steps

SIGMA_DATA = 0.5
"""Standard deviation of the data in the boundary condition, the paper's value."""


@dataclass(frozen=True, kw_only=True)
class LCMOptions(ClipOptions, BetaOptions):
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: BetaSchedule = "scaled_linear"
    clip_sample: bool = False
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0


class LCMScheduler(ProductScheduler[LCMOptions]):
    """Each step predicts the sample and, but for the last, adds noise to it again.

    The timesteps are taken from the ``original_inference_steps`` of the distillation.
    """

    name = "LCMScheduler"

    def __init__(self, options: LCMOptions) -> None:
        super().__init__(options, alpha_products(options, zero_snr=options.rescale_betas_zero_snr))
        if not 1 <= options.original_inference_steps <= options.num_train_timesteps:
            raise InputError(
                "LCMScheduler: the option original_inference_steps is out of range",
                found=str(options.original_inference_steps),
                expected=f"1 to {options.num_train_timesteps}",
            )

    def plan_within(
        self, steps: int, strength: float, original_inference_steps: int | None = None
    ) -> Run:
        """A run of all ``steps``, within the part of the distillation that ``strength`` leaves.

        As diffusers' ``LatentConsistencyModelImg2ImgPipeline`` takes strength; ``plan`` takes
        it as every other pipeline does. ``strength`` in (0, 1].
        """
        check_steps(steps, self.options.num_train_timesteps)
        if not 0 < strength <= 1:
            raise UsageError("strength is out of range", found=str(strength), expected="(0, 1]")
        timesteps = self._within(steps, strength, original_inference_steps)
        return self._run(Schedule(steps, timesteps), Window(0, steps), 0.0)

    def _timesteps(self, steps: int) -> NDArray[np.int64]:
        return self._within(steps, 1.0, None)

    def _within(self, steps: int, strength: float, original: int | None) -> NDArray[np.int64]:
        original = original or self.options.original_inference_steps
        available = int(original * strength)
        if not steps <= available <= self.options.num_train_timesteps:
            raise UsageError(
                "the scheduler takes its steps from those of the distillation",
                found=f"{steps} steps of {available} (original_inference_steps x strength)",
                hint="take fewer steps",
            )
        ratio = self.options.num_train_timesteps // original
        distilled = np.arange(available, 0, -1, dtype=np.int64) * ratio - 1
        chosen = np.floor(np.linspace(0, available, num=steps, endpoint=False)).astype(np.int64)
        timesteps: NDArray[np.int64] = distilled[chosen]
        return timesteps

    def _run(self, schedule: Schedule, window: Window, eta: float) -> Run:
        run = LCMRun(schedule, window, self.products, self.options)
        check_signal(run, self.options.prediction_type)
        return run


class LCMRun(ProductRun):
    def __init__(
        self, schedule: Schedule, window: Window, products: Table, options: LCMOptions
    ) -> None:
        super().__init__(schedule, window, products)
        self._options = options
        following = schedule.timesteps[window.begin + 1 : window.end + 1]
        self._next_levels = [level_of(float(products[t])) for t in following]

    def _advance(self, output: Array, i: int, latents: Array, noise: Noise | None) -> Step:
        options = self._options
        sample = predicted_sample(options.prediction_type, output, latents, self.levels[i])
        skip, out = _boundary(float(self.timesteps[i]) * options.timestep_scaling)
        denoised = combine((out, limited(sample, options)), (skip, latents))
        if i >= len(self._next_levels):
            return Step(denoised, denoised)
        level = self._next_levels[i]
        drawn = draw(noise, latents.shape)
        return Step(combine((level.alpha, denoised), (level.sigma, drawn)), denoised)


def _boundary(scaled_timestep: float) -> tuple[float, float]:
    """``c_skip`` and ``c_out`` of the consistency function (equation 9)."""
    total = scaled_timestep**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled_timestep / sqrt(total)
