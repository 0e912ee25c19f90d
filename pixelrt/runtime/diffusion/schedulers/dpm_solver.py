"""DPM-Solver++ multistep: Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
Probabilistic Models, 2211.01095. ``sde-dpmsolver++`` is its stochastic form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pixelrt.runtime.diffusion.schedulers.base import (
    Array,
    Noise,
    Run,
    Schedule,
    Scheduler,
    Step,
    draw,
    limited,
    predicted_sample,
)
from pixelrt.runtime.diffusion.schedulers.euler import solver_sigmas
from pixelrt.runtime.diffusion.schedulers.multistep import MultistepRun, Weights, level_of
from pixelrt.runtime.diffusion.schedulers.noise_levels import sigma_sequence, timesteps_of
from pixelrt.runtime.diffusion.schedulers.options import (
    BetaOptions,
    SigmaOptions,
    Spacing,
    ThresholdOptions,
    Variance,
)
from pixelrt.runtime.diffusion.schedulers.timesteps import Window, spaced_for_solver

FEW_STEPS = 15
"""Below this ``lower_order_final`` lowers the order of the last steps. As in diffusers."""


@dataclass(frozen=True, kw_only=True)
class DPMSolverOptions(ThresholdOptions, SigmaOptions, BetaOptions):
    """``lambda_min_clipped``: ``None`` stands for minus infinity, which JSON cannot hold.

    ``variance_type`` changes nothing: the solver wants the mean alone, never a variance.
    """

    not_implemented: ClassVar[Mapping[str, Any]] = {
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
    }
    synonyms: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    }

    timestep_spacing: Spacing = "linspace"
    solver_order: Literal[1, 2, 3] = 2
    algorithm_type: Literal["dpmsolver++", "sde-dpmsolver++"] = "dpmsolver++"
    solver_type: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_lu_lambdas: bool = False
    lambda_min_clipped: float | None = None
    variance_type: Variance | None = None


class DPMSolverScheduler(Scheduler[DPMSolverOptions]):
    """Deterministic with ``dpmsolver++``, stochastic with ``sde-dpmsolver++``."""

    name = "DPMSolverMultistepScheduler"

    def __init__(self, options: DPMSolverOptions) -> None:
        super().__init__(options)
        self.table = solver_sigmas(options, zero_snr=options.rescale_betas_zero_snr)

    def _schedule(self, steps: int) -> Schedule:
        options, table = self.options, self.table
        timesteps = spaced_for_solver(options, steps, self._last_timestep())
        sigmas = np.interp(timesteps, np.arange(len(table)), table)
        chosen = self._chosen_sigmas(steps)
        if chosen is not None:
            sigmas, timesteps = chosen, timesteps_of(chosen, table)
            rounded = options.use_karras_sigmas or options.use_lu_lambdas
            if rounded and options.beta_schedule != "squaredcos_cap_v2":
                timesteps = timesteps.round()
        final = table[0] if options.final_sigmas_type == "sigma_min" else 0.0
        # fractions of timesteps are cut off, as in diffusers
        return Schedule(
            steps, timesteps.astype(np.int64), np.append(sigmas, final).astype(np.float32)
        )

    def _chosen_sigmas(self, steps: int) -> NDArray[np.float64] | None:
        options, table = self.options, self.table
        if options.use_lu_lambdas and not options.use_karras_sigmas:
            logs = np.log(table)
            return np.exp(np.linspace(float(logs[-1]), float(logs[0]), steps))
        if options.use_karras_sigmas or options.use_exponential_sigmas or options.use_beta_sigmas:
            return sigma_sequence(options, float(table[-1]), float(table[0]), steps)
        return None

    def _last_timestep(self) -> int:
        """Timesteps from here on have a log signal-to-noise below ``lambda_min_clipped``."""
        clipped = self.options.lambda_min_clipped
        if clipped is None or clipped == -inf:
            return len(self.table)
        return int(np.sum(-np.log(self.table) >= clipped))

    def _run(self, schedule: Schedule, window: Window, eta: float) -> Run:
        return DPMSolverRun(schedule, window, self.options)


class DPMSolverRun(MultistepRun):
    def __init__(self, schedule: Schedule, window: Window, options: DPMSolverOptions) -> None:
        super().__init__(schedule, window, options.solver_order)
        assert schedule.sigmas is not None
        self._options = options
        total = len(schedule.timesteps)
        self._weights = []
        for i in range(len(self)):
            order = _order(options, i, total, total - 1 - window.begin - i)
            sigmas = schedule.sigmas[window.begin + i + 1 - order : window.begin + i + 2]
            self._weights.append(_weights(options, [float(sigma) for sigma in sigmas[::-1]]))

    def _advance(self, output: Array, i: int, latents: Array, noise: Noise | None) -> Step:
        sample = predicted_sample(self._options.prediction_type, output, latents, self.levels[i])
        sample = limited(sample, self._options)
        self._remember(sample)
        weights = self._weights[i]
        new = [(weights.noise, draw(noise, latents.shape))] if weights.noise else []
        return Step(self._weighted(weights, latents, *new), sample)


def _order(options: DPMSolverOptions, taken: int, total: int, left: int) -> int:
    """The order of the step after ``taken`` others of the run; ``left`` come after it."""
    order = min(options.solver_order, taken + 1)
    lowered = options.lower_order_final and total < FEW_STEPS
    if left == 0 and (lowered or options.euler_at_final or options.final_sigmas_type == "zero"):
        return 1
    return min(order, 2) if left == 1 and lowered else order


def _weights(options: DPMSolverOptions, sigmas: list[float]) -> Weights:
    """The step to ``sigmas[0]`` from ``sigmas[1]``; the older ones are those of the history."""
    target, source, *older = sigmas
    if target == source:  # final_sigmas_type="sigma_min" where the last sigma is that already
        return Weights(1.0, (0.0,) * (len(older) + 1))
    ratio = target / source
    level, source_level = level_of(target), level_of(source)
    step = -log(ratio) if ratio else inf  # h, in log signal-to-noise
    if options.algorithm_type == "dpmsolver++":
        latents, noise, half = level.sigma / source_level.sigma, 0.0, -0.5
        shrink, exponent = ratio - 1, step
    else:
        latents = level.sigma / source_level.sigma * ratio
        noise = level.sigma * sqrt(1 - ratio**2)
        shrink, exponent = ratio**2 - 1, 2 * step
        half = 0.5  # the expansion would have -0.5; diffusers' sign is kept
    terms = [-level.alpha * shrink]
    if len(older) == 1 and options.solver_type == "midpoint":
        terms.append(-0.5 * level.alpha * shrink)
    elif older:
        terms.append(level.alpha * (shrink / exponent + 1))
    if len(older) == 2:
        terms.append(-level.alpha * ((shrink + exponent) / exponent**2 + half))
    differences = _differences(step, source, older)
    return Weights(latents, tuple((np.array(terms) @ differences).tolist()), noise)


def _differences(step: float, source: float, older: list[float]) -> NDArray[np.float64]:
    """Divided differences of the predictions: row ``k`` is the ``k``-th, newest first."""
    now, before, oldest = np.eye(3)
    if not older:
        return now[None, :1]
    r0 = log(older[0] / source) / step
    first = (now - before) / r0
    if len(older) == 1:
        return np.stack([now, first])[:, :2]
    r1 = log(older[1] / older[0]) / step
    second = first - (before - oldest) / r1
    return np.stack([now, first + r0 / (r0 + r1) * second, second / (r0 + r1)])
