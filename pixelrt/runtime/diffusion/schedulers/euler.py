"""Euler's method over sigmas, plain and ancestral: Karras et al., Elucidating the Design Space of
Diffusion-Based Generative Models, 2206.00364; the ancestral step is that of k-diffusion.

Latents are ``x0 + sigma * noise``. The order of the float32 operations is diffusers': with
rescaled betas sigma is 4096 and another order changes the fourth digit of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal

import numpy as np

from pixelrt.runtime.diffusion.schedulers.base import (
    Array,
    Level,
    Noise,
    Run,
    Schedule,
    Scheduler,
    SomeOptions,
    Step,
    draw,
)
from pixelrt.runtime.diffusion.schedulers.noise_levels import (
    SMALLEST_ALPHA,
    Table,
    alpha_products,
    sigma_sequence,
    sigma_table,
    timesteps_of,
)
from pixelrt.runtime.diffusion.schedulers.options import BetaOptions, SigmaOptions, Spacing
from pixelrt.runtime.diffusion.schedulers.timesteps import Window, spaced


@dataclass(frozen=True, kw_only=True)
class EulerOptions(SigmaOptions, BetaOptions):
    synonyms: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "prediction_type": {"original_sample": "sample"},
    }

    timestep_spacing: Spacing = "linspace"
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    timestep_type: Literal["discrete", "continuous"] = "discrete"


@dataclass(frozen=True, kw_only=True)
class EulerAncestralOptions(BetaOptions):
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    timestep_spacing: Spacing = "linspace"
    rescale_betas_zero_snr: bool = False


def solver_sigmas(options: BetaOptions, *, zero_snr: bool) -> Table:
    """The sigma of each timestep of the training, finite also where no signal is left."""
    products = alpha_products(options, zero_snr=zero_snr)
    if zero_snr:
        products[-1] = SMALLEST_ALPHA
    return sigma_table(products)


class EulerFamily(Scheduler[SomeOptions]):
    """What the plain and the ancestral scheduler share. ``table``: sigma of each timestep."""

    def __init__(self, options: SomeOptions, table: Table, spacing: Spacing) -> None:
        super().__init__(options)
        self.table = table
        self._scale_adds_one = spacing == "leading"

    def _initial_scale(self, schedule: Schedule) -> float:
        assert schedule.sigmas is not None
        largest = schedule.sigmas.max()
        if self._scale_adds_one:
            largest = np.sqrt(largest**2 + np.float32(1))
        return float(largest)


class EulerScheduler(EulerFamily[EulerOptions]):
    """Deterministic."""

    name = "EulerDiscreteScheduler"

    def __init__(self, options: EulerOptions) -> None:
        table = solver_sigmas(options, zero_snr=options.rescale_betas_zero_snr)
        super().__init__(options, table, options.timestep_spacing)

    def _schedule(self, steps: int) -> Schedule:
        options, table = self.options, self.table
        timesteps = spaced(options, steps).astype(np.float32)
        if options.interpolation_type == "linear":
            sigmas = np.interp(timesteps, np.arange(len(table)), table)
        else:
            logs = np.log(table)
            sigmas = np.exp(np.linspace(logs[-1], logs[0], steps + 1))
        if options.use_karras_sigmas or options.use_exponential_sigmas or options.use_beta_sigmas:
            sigmas = sigma_sequence(options, float(sigmas[0]), float(sigmas[-1]), steps)
            timesteps = timesteps_of(sigmas, table).astype(np.float32)
        final = table[0] if options.final_sigmas_type == "sigma_min" else 0.0
        sigmas32 = np.append(sigmas, final).astype(np.float32)
        if options.timestep_type == "continuous" and options.prediction_type == "v_prediction":
            timesteps = np.float32(0.25) * np.log(sigmas32[:-1])
        return Schedule(steps, timesteps, sigmas32)

    def _run(self, schedule: Schedule, window: Window, eta: float) -> Run:
        scale = self._initial_scale(schedule)
        return EulerRun(schedule, window, scale, self.options.prediction_type)


class EulerAncestralScheduler(EulerFamily[EulerAncestralOptions]):
    """Goes below the next sigma and adds noise up to it, at each step but the last."""

    name = "EulerAncestralDiscreteScheduler"

    def __init__(self, options: EulerAncestralOptions) -> None:
        table = solver_sigmas(options, zero_snr=options.rescale_betas_zero_snr)
        super().__init__(options, table, options.timestep_spacing)

    def _schedule(self, steps: int) -> Schedule:
        timesteps = spaced(self.options, steps).astype(np.float32)
        sigmas = np.interp(timesteps, np.arange(len(self.table)), self.table)
        return Schedule(steps, timesteps, np.append(sigmas, 0.0).astype(np.float32))

    def _run(self, schedule: Schedule, window: Window, eta: float) -> Run:
        scale = self._initial_scale(schedule)
        return EulerAncestralRun(schedule, window, scale, self.options.prediction_type)


class EulerRun(Run):
    sigmas: Array

    def __init__(
        self, schedule: Schedule, window: Window, initial_noise_scale: float, prediction_type: str
    ) -> None:
        super().__init__(schedule, window, initial_noise_scale)
        self._prediction_type = prediction_type

    def scale_input(self, latents: Array, i: int) -> Array:
        """``latents / sqrt(sigma**2 + 1)``: of unit variance, as the network was trained."""
        scaled: Array = latents / np.sqrt(self.sigmas[i] ** 2 + np.float32(1))
        return scaled

    def _level(self, i: int) -> Level:
        return Level(1.0, float(self.sigmas[i]))

    def _advance(self, output: Array, i: int, latents: Array, noise: Noise | None) -> Step:
        sample = self._predicted(output, self.sigmas[i], latents)
        return Step(self._towards(sample, i, self.sigmas[i + 1], latents), sample)

    def _towards(self, sample: Array, i: int, target: np.float32, latents: Array) -> Array:
        """Along the line from ``latents`` to ``sample``, to the sigma ``target``."""
        sigma = self.sigmas[i]
        result: Array = latents - sample
        result /= sigma
        result *= target - sigma
        result += latents
        return result

    def _predicted(self, output: Array, sigma: np.float32, latents: Array) -> Array:
        if self._prediction_type == "epsilon":
            sample: Array = output * -sigma
            sample += latents
            return sample
        if self._prediction_type == "v_prediction":
            total = sigma**2 + np.float32(1)
            sample = output * (-sigma / np.sqrt(total))
            sample += latents / total
            return sample
        return output


class EulerAncestralRun(EulerRun):
    def _advance(self, output: Array, i: int, latents: Array, noise: Noise | None) -> Step:
        sigma, target = self.sigmas[i], self.sigmas[i + 1]
        down = np.float32(float(target) ** 2 / float(sigma))
        up = np.float32(sqrt(float(target) ** 2 - float(down) ** 2))
        sample = self._predicted(output, sigma, latents)
        result = self._towards(sample, i, down, latents)
        if up > 0:
            result += draw(noise, latents.shape) * up
        return Step(result, sample)
