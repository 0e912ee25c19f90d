"""DDPM: Ho et al., Denoising Diffusion Probabilistic Models, 2006.11239; and unCLIP's form of
it (Ramesh et al., Hierarchical Text-Conditional Image Generation with CLIP Latents, 2204.06125).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import UsageError
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
from pixelrt.runtime.diffusion.schedulers.noise_levels import (
    Table,
    alpha_products,
    cosine_betas,
    running_product,
)
from pixelrt.runtime.diffusion.schedulers.options import (
    BetaOptions,
    ClipOptions,
    Options,
    Variance,
)
from pixelrt.runtime.diffusion.schedulers.products import (
    ProductRun,
    ProductScheduler,
    check_signal,
    product_before,
)
from pixelrt.runtime.diffusion.schedulers.timesteps import Window, spaced

SMALLEST_VARIANCE = 1e-20
"""Below this a variance has no logarithm. As in diffusers."""


@dataclass(frozen=True, kw_only=True)
class DDPMOptions(ClipOptions, BetaOptions):
    rescale_betas_zero_snr: bool = False
    variance_type: Variance = "fixed_small"


@dataclass(frozen=True, kw_only=True)
class UnCLIPOptions(ClipOptions, Options):
    prediction_type: Literal["epsilon", "sample"] = "epsilon"
    beta_schedule: Literal["squaredcos_cap_v2"] = "squaredcos_cap_v2"
    variance_type: Literal["fixed_small_log", "learned_range"] = "fixed_small_log"


class DDPMScheduler(ProductScheduler[DDPMOptions]):
    """Ancestral sampling. With a learned variance the network gives twice the channels."""

    name = "DDPMScheduler"

    def __init__(self, options: DDPMOptions) -> None:
        super().__init__(options, alpha_products(options, zero_snr=options.rescale_betas_zero_snr))

    def _timesteps(self, steps: int) -> NDArray[np.int64]:
        return spaced(self.options, steps).round().astype(np.int64)

    def _run(self, schedule: Schedule, window: Window, eta: float) -> Run:
        options = self.options
        updates = [
            _update(float(self.products[t]), product_before(self.products, before, 1.0))
            for t, before in _steps(schedule, window)
        ]
        run = AncestralRun(schedule, window, self.products, updates, options, options.variance_type)
        check_signal(run, options.prediction_type)
        return run


class UnCLIPScheduler(ProductScheduler[UnCLIPOptions]):
    """Ancestral sampling of CLIP's image embeddings, over all timesteps from the last to 0."""

    name = "UnCLIPScheduler"

    def __init__(self, options: UnCLIPOptions) -> None:
        self.betas = cosine_betas(options.num_train_timesteps)
        super().__init__(options, running_product(np.float32(1) - self.betas))

    def _timesteps(self, steps: int) -> NDArray[np.int64]:
        if steps < 2:
            raise UsageError(
                "the UnCLIP scheduler takes the first and the last timestep of the training",
                found=str(steps),
                expected="at least 2 steps",
            )
        ratio = (self.options.num_train_timesteps - 1) / (steps - 1)
        return (np.arange(steps) * ratio).round()[::-1].astype(np.int64)

    def _run(self, schedule: Schedule, window: Window, eta: float) -> Run:
        options = self.options
        updates = [
            _update(
                float(self.products[t]),
                product_before(self.products, before, 1.0),
                self._beta(t, before),
            )
            for t, before in _steps(schedule, window)
        ]
        return AncestralRun(
            schedule, window, self.products, updates, options, options.variance_type
        )

    def _beta(self, timestep: int, before: int) -> float:
        """In float32: next to 1, alpha is what the rounding leaves of it, as in diffusers."""
        if before == timestep - 1:
            return float(self.betas[timestep])
        return float(np.float32(1) - self.products[timestep] / self.products[before])


class Update(NamedTuple):
    """Factors of the predicted sample and of the latents (equation 7), and of the variance."""

    sample: float
    latents: float
    beta: float
    variance: float


class AncestralRun(ProductRun):
    def __init__(
        self,
        schedule: Schedule,
        window: Window,
        products: Table,
        updates: list[Update],
        options: DDPMOptions | UnCLIPOptions,
        variance_type: Variance,
    ) -> None:
        super().__init__(schedule, window, products)
        self._options = options
        self._variance_type = variance_type
        self._updates = updates

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self._variance_type.startswith("learned"):
            return shape
        return (shape[0], 2 * shape[1], *shape[2:])

    def _advance(self, output: Array, i: int, latents: Array, noise: Noise | None) -> Step:
        channels = latents.shape[1]
        output, variance = output[:, :channels], output[:, channels:]
        update = self._updates[i]
        sample = limited(
            predicted_sample(self._options.prediction_type, output, latents, self.levels[i]),
            self._options,
        )
        result = combine((update.sample, sample), (update.latents, latents))
        if self.timesteps[i] > 0:
            result += self._std(update, variance) * draw(noise, latents.shape)
        return Step(result, sample)

    def _std(self, update: Update, predicted: Array) -> Array | np.float32:
        if self._variance_type == "learned":
            return np.sqrt(predicted)
        if self._variance_type == "learned_range":  # Nichol and Dhariwal 2102.09672, equation 15
            low = log(max(update.variance, SMALLEST_VARIANCE))
            high = log(update.beta)
            logs = predicted * np.float32((high - low) / 4) + np.float32((high + low) / 4)
            std: Array = np.exp(logs)
            return std
        if self._variance_type == "fixed_large":
            return np.float32(sqrt(update.beta))
        return np.float32(sqrt(max(update.variance, SMALLEST_VARIANCE)))


def _steps(schedule: Schedule, window: Window) -> list[tuple[int, int]]:
    """Each timestep of the run and the one that the step leads to; the plan's last leads to -1."""
    timesteps = schedule.timesteps.tolist()
    pairs = list(zip(timesteps, [*timesteps[1:], -1], strict=True))
    return pairs[window.begin : window.end]


def _update(product: float, before: float, beta: float | None = None) -> Update:
    if beta is None:
        beta = 1 - product / before
    rest = (1 - before) / (1 - product)
    return Update(sqrt(before) * beta / (1 - product), sqrt(1 - beta) * rest, beta, rest * beta)
