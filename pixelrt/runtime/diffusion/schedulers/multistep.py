"""What the multistep solvers share: levels from sigmas, and steps as weighted sums."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

from pixelrt.runtime.diffusion.schedulers.base import Array, Level, Run, Schedule, combine
from pixelrt.runtime.diffusion.schedulers.timesteps import Window


class Weights(NamedTuple):
    """Factors of the latents, of the predictions (newest first) and of new noise."""

    latents: float
    predictions: tuple[float, ...]
    noise: float = 0.0


def level_of(sigma: float) -> Level:
    """The variance-preserving level at which ``sigma`` is the noise over the signal."""
    alpha = 1 / sqrt(sigma**2 + 1)
    return Level(alpha, sigma * alpha)


class MultistepRun(Run):
    """Remembers up to ``order`` predictions, newest last."""

    sigmas: Array

    def __init__(self, schedule: Schedule, window: Window, order: int) -> None:
        super().__init__(schedule, window)
        self.levels = [level_of(float(sigma)) for sigma in self.sigmas]
        self._order = order
        self._predictions: list[Array] = []

    def _level(self, i: int) -> Level:
        return self.levels[i]

    def _remember(self, prediction: Array) -> None:
        self._predictions = [*self._predictions, prediction][-self._order :]

    def _weighted(self, weights: Weights, latents: Array, *newer: tuple[float, Array]) -> Array:
        used = len(weights.predictions)
        newest_first = self._predictions[: -used - 1 : -1]
        pairs = zip(weights.predictions, newest_first, strict=True)
        return combine((weights.latents, latents), *pairs, *newer)
