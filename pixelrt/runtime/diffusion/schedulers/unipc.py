"""UniPC: Zhao et al., UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of
Diffusion Models, 2302.04867; the variant of B(h)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import expm1, inf, log
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from pixelrt.errors import InputError
from pixelrt.runtime.diffusion.schedulers.base import (
    Array,
    Noise,
    Run,
    Schedule,
    Scheduler,
    Step,
    limited,
    predicted_noise,
    predicted_sample,
)
from pixelrt.runtime.diffusion.schedulers.euler import solver_sigmas
from pixelrt.runtime.diffusion.schedulers.multistep import MultistepRun, Weights, level_of
from pixelrt.runtime.diffusion.schedulers.noise_levels import (
    Doubles,
    sigma_sequence,
    timesteps_of,
)
from pixelrt.runtime.diffusion.schedulers.options import (
    BetaOptions,
    SigmaOptions,
    Spacing,
    ThresholdOptions,
)
from pixelrt.runtime.diffusion.schedulers.timesteps import Window, spaced_for_solver


@dataclass(frozen=True, kw_only=True)
class UniPCOptions(ThresholdOptions, SigmaOptions, BetaOptions):
    """``disable_corrector``: steps after which the latents are not corrected."""

    not_implemented: ClassVar[Mapping[str, Any]] = {
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
        "shift_terminal": None,
        "solver_p": None,
    }
    synonyms: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"},
    }

    timestep_spacing: Spacing = "linspace"
    solver_order: Literal[1, 2, 3] = 2
    predict_x0: bool = True
    solver_type: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()


class UniPCScheduler(Scheduler[UniPCOptions]):
    """Predicts as a multistep solver does, then corrects with the prediction at the new level."""

    name = "UniPCMultistepScheduler"

    def __init__(self, options: UniPCOptions) -> None:
        super().__init__(options)
        self.table = solver_sigmas(options, zero_snr=options.rescale_betas_zero_snr)
        if options.final_sigmas_type == "zero":
            for key in ("predict_x0", "lower_order_final"):
                if not getattr(options, key):
                    raise InputError(
                        f"UniPCMultistepScheduler: the option {key}=False does not go with "
                        "final_sigmas_type='zero', where the last step would divide by zero",
                        hint="take final_sigmas_type='sigma_min'",
                    )

    def _schedule(self, steps: int) -> Schedule:
        options, table = self.options, self.table
        timesteps = spaced_for_solver(options, steps, len(table))
        sigmas, smallest = np.interp(timesteps, np.arange(len(table)), table), float(table[0])
        if options.use_karras_sigmas or options.use_exponential_sigmas or options.use_beta_sigmas:
            sigmas = sigma_sequence(options, float(table[-1]), float(table[0]), steps)
            timesteps, smallest = timesteps_of(sigmas, table), float(sigmas[-1])
            if options.use_karras_sigmas:
                timesteps = timesteps.round()
        final = smallest if options.final_sigmas_type == "sigma_min" else 0.0
        # fractions of timesteps are cut off, as in diffusers
        return Schedule(
            steps, timesteps.astype(np.int64), np.append(sigmas, final).astype(np.float32)
        )

    def _run(self, schedule: Schedule, window: Window, eta: float) -> Run:
        return UniPCRun(schedule, window, self.options)


class Corrector(NamedTuple):
    """Factors of what the step began with, and of the prediction at the level it led to."""

    step: Weights
    newest: float


class UniPCRun(MultistepRun):
    def __init__(self, schedule: Schedule, window: Window, options: UniPCOptions) -> None:
        super().__init__(schedule, window, options.solver_order)
        assert schedule.sigmas is not None
        self._options = options
        self._last_latents: Array | None = None
        self._predictors: list[Weights] = []
        self._correctors: list[Corrector | None] = []
        for i in range(len(self)):
            at = window.begin + i
            order = min(options.solver_order, i + 1)
            if options.lower_order_final:
                order = min(order, len(schedule.timesteps) - at)
            sigmas = schedule.sigmas[at + 1 - order : at + 2][::-1].tolist()
            self._predictors.append(_predictor(options, sigmas))
            corrects = i + 1 < len(self) and at not in options.disable_corrector
            self._correctors.append(_corrector(options, sigmas) if corrects else None)

    def _advance(self, output: Array, i: int, latents: Array, noise: Noise | None) -> Step:
        options, level = self._options, self.levels[i]
        sample = predicted_sample(options.prediction_type, output, latents, level)
        if options.predict_x0:
            prediction = sample = limited(sample, options)
        else:
            prediction = predicted_noise(options.prediction_type, output, latents, level)
        corrector = self._correctors[i - 1] if i else None
        if corrector is not None:
            assert self._last_latents is not None
            newest = (corrector.newest, prediction)
            latents = self._weighted(corrector.step, self._last_latents, newest)
        self._remember(prediction)
        self._last_latents = latents
        return Step(self._weighted(self._predictors[i], latents), sample)


def _predictor(options: UniPCOptions, sigmas: list[float]) -> Weights:
    """The step to ``sigmas[0]`` from ``sigmas[1]``; the older ones are those of the history."""
    if sigmas[0] == sigmas[1]:  # final_sigmas_type="sigma_min" where the last sigma is that already
        return Weights(1.0, (0.0,) * (len(sigmas) - 1))
    latents, scale, shrink, b_of_h, ratios, moments = _expansion(options, sigmas)
    order = len(sigmas) - 1
    if order == 1:
        rhos = np.zeros(0)
    elif order == 2:
        rhos = np.array([0.5])
    else:
        rhos = _solved(ratios[:-1], moments[:-1])
    return _weights(latents, scale * shrink, scale * b_of_h, rhos / ratios[:-1])


def _corrector(options: UniPCOptions, sigmas: list[float]) -> Corrector:
    """The same step again, once the prediction at ``sigmas[0]`` is known."""
    latents, scale, shrink, b_of_h, ratios, moments = _expansion(options, sigmas)
    rhos = np.array([0.5]) if len(sigmas) == 2 else _solved(ratios, moments)
    weights = _weights(latents, scale * shrink, scale * b_of_h, rhos / ratios)
    current, *older = weights.predictions
    return Corrector(Weights(latents, (current, *older[:-1])), older[-1])


def _weights(latents: float, first: float, rest: float, parts: Doubles) -> Weights:
    """Factors of ``latents * x - first * m0 - rest * sum(parts[k] * (m[k + 1] - m0))``."""
    others = (-rest * parts).tolist()
    return Weights(latents, (-first - sum(others), *others))


def _solved(ratios: Doubles, moments: Doubles) -> Doubles:
    """The factors whose sums with powers of ``ratios`` are ``moments`` (equation 3)."""
    powers = np.vander(ratios, increasing=True).T
    return np.asarray(np.linalg.solve(powers, moments), dtype=np.float64)


def _expansion(
    options: UniPCOptions, sigmas: list[float]
) -> tuple[float, float, float, float, Doubles, Doubles]:
    """Factor of the latents, scale, ``e^h - 1``, ``B(h)``, and the ratios of steps and moments."""
    target, source, *older = sigmas
    level, source_level = level_of(target), level_of(source)
    step = log(source / target) if target else inf
    if options.predict_x0:
        latents, scale, h = level.sigma / source_level.sigma, level.alpha, -step
    else:
        latents, scale, h = level.alpha / source_level.alpha, level.sigma, step
    shrink = expm1(h)
    # with an infinite step there is one term alone, and B(h) is not used
    b_of_h = h if options.solver_type == "bh1" and target else shrink
    ratios = np.array([*(log(source / sigma) / step for sigma in older), 1.0])
    moments, phi, factorial = [], shrink / h - 1, 1
    for k in range(1, len(ratios) + 1):
        moments.append(phi * factorial / b_of_h)
        factorial *= k + 1
        phi = phi / h - 1 / factorial
    return latents, scale, shrink, b_of_h, ratios, np.array(moments)
