"""Schedulers that go by timesteps of the training and the products of alphas at them."""

from __future__ import annotations

from abc import abstractmethod
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import UsageError
from pixelrt.runtime.diffusion.schedulers.base import (
    Array,
    Level,
    Run,
    Schedule,
    Scheduler,
    SomeOptions,
    combine,
)
from pixelrt.runtime.diffusion.schedulers.noise_levels import Table
from pixelrt.runtime.diffusion.schedulers.timesteps import Window


def level_of(product: float) -> Level:
    """The level at which the product of alphas is ``product``."""
    return Level(sqrt(product), sqrt(1 - product))


class ProductRun(Run):
    """A run over integer timesteps. ``levels[i]`` is the level before step ``i``."""

    def __init__(self, schedule: Schedule, window: Window, products: Table) -> None:
        super().__init__(schedule, window)
        self.levels = [level_of(float(products[t])) for t in self.timesteps]

    def _level(self, i: int) -> Level:
        return self.levels[i]


class ProductScheduler(Scheduler[SomeOptions]):
    """``products``: the products of alphas for each timestep of the training, ``(T,)``."""

    def __init__(self, options: SomeOptions, products: Table) -> None:
        super().__init__(options)
        self.products = products

    def add_noise(self, x0: Array, noise: Array, timestep: int) -> Array:
        """``x0`` with the noise of any ``timestep`` of the training. Same shape, float32."""
        if not 0 <= timestep < len(self.products):
            raise UsageError(
                "no such timestep in the training",
                found=str(timestep),
                expected=f"0 to {len(self.products) - 1}",
            )
        level = level_of(float(self.products[timestep]))
        return combine((level.alpha, x0), (level.sigma, noise))

    def _schedule(self, steps: int) -> Schedule:
        timesteps = self._timesteps(steps)
        if timesteps.max() >= len(self.products):
            raise UsageError(
                "the option steps_offset of the scheduler leaves no room for so many steps",
                found=f"{steps} steps, which begin at timestep {timesteps.max()}",
                expected=f"timesteps below {len(self.products)}",
                hint="take fewer steps",
            )
        return Schedule(steps, timesteps)

    @abstractmethod
    def _timesteps(self, steps: int) -> NDArray[np.int64]: ...


def product_before(products: Table, timestep: int, final: float) -> float:
    """The product at ``timestep``; ``final`` where that lies before the first one."""
    return float(products[timestep]) if timestep >= 0 else final


def check_signal(run: ProductRun, prediction_type: str) -> None:
    """Raises ``UsageError`` where the network would predict the noise of pure noise."""
    if prediction_type == "epsilon" and run.levels[0].alpha == 0:
        raise UsageError(
            "a network that predicts the noise (prediction_type='epsilon') cannot start from "
            "noise alone, which rescale_betas_zero_snr and the timestep spacing ask for",
            hint="take a timestep_spacing of 'leading', or rescale_betas_zero_snr=False",
        )
