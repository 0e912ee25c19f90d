"""PNDM: Liu et al., Pseudo Numerical Methods for Diffusion Models on Manifolds, 2202.09778."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import UsageError
from pixelrt.runtime.diffusion.schedulers.base import (
    Array,
    Level,
    Noise,
    Run,
    Schedule,
    Step,
    combine,
    predicted_noise,
    predicted_sample,
)
from pixelrt.runtime.diffusion.schedulers.noise_levels import Table, alpha_products
from pixelrt.runtime.diffusion.schedulers.options import BetaOptions
from pixelrt.runtime.diffusion.schedulers.products import (
    ProductRun,
    ProductScheduler,
    level_of,
    product_before,
)
from pixelrt.runtime.diffusion.schedulers.timesteps import Window, spaced

RUNGE_KUTTA_STEPS = 4
"""Timesteps of the first phase; all but the last take four evaluations."""
EVALUATIONS = 4

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest predictions, newest first, for one to four of them (equation 12)."""


@dataclass(frozen=True, kw_only=True)
class PNDMOptions(BetaOptions):
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False


class PNDMScheduler(ProductScheduler[PNDMOptions]):
    """Linear multistep of order four; begins with Runge-Kutta unless ``skip_prk_steps``.

    Without Runge-Kutta the second timestep is taken twice: once to predict, once to correct.
    """

    name = "PNDMScheduler"

    def __init__(self, options: PNDMOptions) -> None:
        super().__init__(options, alpha_products(options))
        self.final_product = 1.0 if options.set_alpha_to_one else float(self.products[0])

    def _timesteps(self, steps: int) -> NDArray[np.int64]:
        timesteps = spaced(self.options, steps).round().astype(np.int64)
        if self.options.skip_prk_steps:
            return np.concatenate([timesteps[:1], timesteps[1:2], timesteps[1:2], timesteps[2:]])
        return np.concatenate([self._runge_kutta(timesteps, steps), timesteps[3:]])

    def _runge_kutta(self, timesteps: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
        """Four evaluations from each of three timesteps to the next: begin, half, half, end."""
        if steps < RUNGE_KUTTA_STEPS:
            raise UsageError(
                "PNDM with Runge-Kutta (skip_prk_steps=False) takes more steps",
                found=str(steps),
                expected=f"at least {RUNGE_KUTTA_STEPS}",
            )
        half = self.options.num_train_timesteps // steps // 2
        begins, ends = timesteps[:3], timesteps[1:4]
        return np.stack([begins, ends + half, ends + half, ends], axis=1).reshape(-1)

    def _run(self, schedule: Schedule, window: Window, eta: float) -> Run:
        return PNDMRun(schedule, window, self.products, self.options, self.final_product)


class PNDMRun(ProductRun):
    def __init__(
        self,
        schedule: Schedule,
        window: Window,
        products: Table,
        options: PNDMOptions,
        final_product: float,
    ) -> None:
        super().__init__(schedule, window, products)
        self._options = options
        self._products = products
        self._final_product = final_product
        self._back = options.num_train_timesteps // schedule.steps
        first_phase = 0 if options.skip_prk_steps else (RUNGE_KUTTA_STEPS - 1) * EVALUATIONS
        self._begins = schedule.timesteps[:first_phase:EVALUATIONS].tolist()
        self._predictions: list[Array] = []
        self._sum: Array | None = None
        self._held: Array | None = None

    def _advance(self, output: Array, i: int, latents: Array, noise: Noise | None) -> Step:
        sample = predicted_sample(self._options.prediction_type, output, latents, self.levels[i])
        if i < len(self._begins) * EVALUATIONS:
            return Step(self._runge_kutta_step(output, i, latents), sample)
        return Step(self._multistep(output, i, latents), sample)

    def _runge_kutta_step(self, output: Array, i: int, latents: Array) -> Array:
        """One evaluation of four; each starts again from the latents of the first."""
        stage = i % EVALUATIONS
        if stage == 0:
            self._predictions.append(output)
            self._held = latents
            self._sum = combine((1 / 6, output))
        elif stage < EVALUATIONS - 1:
            self._sum = combine((1.0, self._summed()), (1 / 3, output))
        else:
            output = combine((1.0, self._summed()), (1 / 6, output))
        assert self._held is not None
        half = 0 if i % 2 else self._back // 2
        return self._move(
            self._held, self._begins[i // EVALUATIONS], int(self.timesteps[i]) - half, output
        )

    def _multistep(self, output: Array, i: int, latents: Array) -> Array:
        timestep = int(self.timesteps[i])
        if i == 1:  # again from the first latents, with the mean of both predictions
            assert self._held is not None
            mean = combine((0.5, output), (0.5, self._predictions[-1]))
            return self._move(self._held, timestep + self._back, timestep, mean)
        if i == 0:
            self._held = latents
        self._predictions = [*self._predictions[-3:], output]
        weights = ADAMS_BASHFORTH[len(self._predictions) - 1]
        newest_first = reversed(self._predictions)
        output = combine(*zip(weights, newest_first, strict=True))
        return self._move(latents, timestep, timestep - self._back, output)

    def _move(self, latents: Array, timestep: int, before: int, output: Array) -> Array:
        """Equation 9: from ``timestep`` to the timestep ``before`` it."""
        product = product_before(self._products, timestep, self._final_product)
        target = product_before(self._products, before, self._final_product)
        level = level_of(product)
        noise = predicted_noise(self._options.prediction_type, output, latents, level)
        return combine((sqrt(target / product), latents), (_slope(product, target, level), noise))

    def _summed(self) -> Array:
        assert self._sum is not None
        return self._sum


def _slope(product: float, target: float, level: Level) -> float:
    below = product * sqrt(1 - target) + sqrt(product * target) * level.sigma
    return -(target - product) / below
