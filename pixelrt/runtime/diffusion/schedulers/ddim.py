"""DDIM: Song et al., Denoising Diffusion Implicit Models, 2010.02502."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixelrt.runtime.diffusion.schedulers.base import (
    Array,
    Noise,
    Run,
    Schedule,
    Step,
    combine,
    draw,
    limited,
    predicted_noise,
    predicted_sample,
)
from pixelrt.runtime.diffusion.schedulers.noise_levels import Table, alpha_products
from pixelrt.runtime.diffusion.schedulers.options import BetaOptions, ClipOptions
from pixelrt.runtime.diffusion.schedulers.products import (
    ProductRun,
    ProductScheduler,
    check_signal,
    product_before,
)
from pixelrt.runtime.diffusion.schedulers.timesteps import Window, spaced


@dataclass(frozen=True, kw_only=True)
class DDIMOptions(ClipOptions, BetaOptions):
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True


class Update(NamedTuple):
    """Factors of the predicted sample, of the predicted noise and of new noise."""

    sample: float
    direction: float
    noise: float


class DDIMScheduler(ProductScheduler[DDIMOptions]):
    """Deterministic at ``eta = 0``, as DDPM at ``eta = 1``."""

    name = "DDIMScheduler"
    takes_eta = True

    def __init__(self, options: DDIMOptions) -> None:
        super().__init__(options, alpha_products(options, zero_snr=options.rescale_betas_zero_snr))
        self.final_product = 1.0 if options.set_alpha_to_one else float(self.products[0])

    def _timesteps(self, steps: int) -> NDArray[np.int64]:
        return spaced(self.options, steps).round().astype(np.int64)

    def _run(self, schedule: Schedule, window: Window, eta: float) -> Run:
        run = DDIMRun(schedule, window, self.products, self.options, self.final_product, eta)
        check_signal(run, self.options.prediction_type)
        return run


class DDIMRun(ProductRun):
    def __init__(
        self,
        schedule: Schedule,
        window: Window,
        products: Table,
        options: DDIMOptions,
        final_product: float,
        eta: float,
    ) -> None:
        super().__init__(schedule, window, products)
        self._options = options
        # the step back is the same for all spacings, as in diffusers
        back = options.num_train_timesteps // schedule.steps
        self._updates = [
            _update(float(products[t]), product_before(products, int(t) - back, final_product), eta)
            for t in self.timesteps
        ]

    def _advance(self, output: Array, i: int, latents: Array, noise: Noise | None) -> Step:
        kind, level, update = self._options.prediction_type, self.levels[i], self._updates[i]
        sample = limited(predicted_sample(kind, output, latents, level), self._options)
        direction = predicted_noise(kind, output, latents, level)
        terms = [(update.sample, sample), (update.direction, direction)]
        if update.noise:
            terms.append((update.noise, draw(noise, latents.shape)))
        return Step(combine(*terms), sample)


def _update(product: float, before: float, eta: float) -> Update:
    """Equations 12 and 16 of the paper."""
    variance = (1 - before) / (1 - product) * (1 - product / before)
    std = eta * sqrt(max(variance, 0.0))
    return Update(sqrt(before), sqrt(max(1 - before - std**2, 0.0)), std)
