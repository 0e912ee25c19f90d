"""What all schedulers share: a plan makes a run, a run takes its steps in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pixelrt.errors import UsageError
from pixelrt.runtime.diffusion.schedulers import timesteps as ts
from pixelrt.runtime.diffusion.schedulers.options import ClipOptions, Options, ThresholdOptions

Array = NDArray[np.float32]
Timesteps = NDArray[np.int64] | NDArray[np.float32]

Noise = Callable[[tuple[int, ...]], ArrayLike]
"""Draws standard normal noise of a shape. Called at most once a step, by stochastic steps only."""


class Step(NamedTuple):
    """``latents`` for the next step, and ``predicted``: the sample without noise, as seen now."""

    latents: Array
    predicted: Array


class Level(NamedTuple):
    """A noise level: latents are ``alpha * x0 + sigma * noise``."""

    alpha: float
    sigma: float


@dataclass(frozen=True)
class Schedule:
    """All steps of a plan. ``sigmas`` holds the level after the last one too."""

    steps: int
    timesteps: Timesteps
    sigmas: Array | None = None


SomeOptions = TypeVar("SomeOptions", bound=Options, covariant=True)


class Run(ABC):
    """One pass from noise to an image. Holds state: one run for one pass.

    ``timesteps``: what the network is given at each step, ``(steps,)``, int64 or float32.
    ``initial_noise_scale``: standard deviation of pure noise that the run may start from.
    ``sigmas``: float32 ``(steps + 1,)`` where the scheduler goes by sigmas, else ``None``.
    """

    def __init__(
        self, schedule: Schedule, window: ts.Window, initial_noise_scale: float = 1.0
    ) -> None:
        begin, end = window.begin, window.end
        self.timesteps = schedule.timesteps[begin:end]
        self.sigmas = None if schedule.sigmas is None else schedule.sigmas[begin : end + 1]
        self.initial_noise_scale = initial_noise_scale
        self._next = 0

    def __len__(self) -> int:
        return len(self.timesteps)

    def scale_input(self, latents: Array, i: int) -> Array:
        """What the network is given in place of ``latents`` at step ``i``; same shape."""
        return latents

    def step(self, model_output: Array, i: int, latents: Array, noise: Noise | None = None) -> Step:
        """Latents after step ``i``, from the network's output for the latents before it.

        ``latents``: float32 ``(N, C, ...)``, as before ``scale_input``. ``model_output``: of
        the same shape; ``(N, 2 * C, ...)`` where the network predicts a variance that the
        scheduler uses. ``noise`` is needed by stochastic schedulers. Steps are taken in
        order, once. Raises ``UsageError`` for anything else.
        """
        if i != self._next or i >= len(self):
            raise UsageError(
                "the steps of a run are taken in order, once",
                found=f"step {i}",
                expected=f"step {self._next} of {len(self)}",
            )
        latents = np.asarray(latents, dtype=np.float32)
        output = np.asarray(model_output, dtype=np.float32)
        expected = self.output_shape(latents.shape)
        if output.shape != expected:
            raise UsageError(
                "the network's output does not fit the latents",
                found=f"{output.shape} for latents {latents.shape}",
                expected=str(expected),
            )
        self._next += 1
        return self._advance(output, i, latents, noise)

    def add_noise(self, x0: Array, noise: Array, i: int = 0) -> Array:
        """``x0`` with the noise of the level before step ``i``, where an image's run starts."""
        level = self._level(i)
        return combine((level.alpha, x0), (level.sigma, noise))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the network's output that ``step`` takes for latents of ``shape``."""
        return shape

    @abstractmethod
    def _level(self, i: int) -> Level: ...

    @abstractmethod
    def _advance(self, output: Array, i: int, latents: Array, noise: Noise | None) -> Step: ...


class Scheduler(ABC, Generic[SomeOptions]):
    """Immutable. ``name`` is the class's name in diffusers."""

    name: ClassVar[str]
    takes_eta: ClassVar[bool] = False

    def __init__(self, options: SomeOptions) -> None:
        self.options: SomeOptions = options

    def plan(
        self,
        steps: int,
        strength: float = 1.0,
        *,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        eta: float = 0.0,
    ) -> Run:
        """A run of ``steps`` steps, or of the part that the other arguments leave.

        ``strength`` in (0, 1] takes the last ``int(steps * strength)`` steps.
        ``denoising_start`` and ``denoising_end`` in (0, 1) take the steps whose timestep is
        below or above that share of the training's. ``eta`` in [0, 1] is DDIM's share of
        noise; others have none. Raises ``UsageError`` for values outside these
        ranges and where no step is left.
        """
        ts.check_steps(steps, self.options.num_train_timesteps)
        if not 0 <= eta <= 1:
            raise UsageError("eta is out of range", found=str(eta), expected="0 <= eta <= 1")
        if eta and not self.takes_eta:
            raise UsageError(f"{self.name} has no eta", found=str(eta), hint="choose ddim")
        schedule = self._schedule(steps)
        window = ts.window(
            schedule.timesteps,
            steps,
            self.options.num_train_timesteps,
            strength,
            denoising_start,
            denoising_end,
        )
        return self._run(schedule, window, eta)

    @abstractmethod
    def _schedule(self, steps: int) -> Schedule: ...

    @abstractmethod
    def _run(self, schedule: Schedule, window: ts.Window, eta: float) -> Run: ...


def combine(*terms: tuple[float, Array]) -> Array:
    """The sum of ``factor * array``: one new array, and one more to work in."""
    factor, array = terms[0]
    total: Array = np.multiply(array, np.float32(factor))
    part: Array | None = None
    for factor, array in terms[1:]:
        if factor:
            part = np.multiply(array, np.float32(factor), out=part)
            total += part
    return total


def predicted_sample(kind: str, output: Array, latents: Array, level: Level) -> Array:
    """The sample without noise that ``output`` stands for (Salimans and Ho 2202.00512)."""
    if kind == "epsilon":
        sample = combine((1.0, latents), (-level.sigma, output))
        sample /= np.float32(level.alpha)
        return sample
    if kind == "v_prediction":
        return combine((level.alpha, latents), (-level.sigma, output))
    return output


def predicted_noise(kind: str, output: Array, latents: Array, level: Level) -> Array:
    """The noise that ``output`` stands for."""
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        return combine((level.alpha, output), (level.sigma, latents))
    noise = combine((1.0, latents), (-level.alpha, output))
    noise /= np.float32(level.sigma)
    return noise


def limited(sample: Array, options: ThresholdOptions) -> Array:
    """The predicted sample, thresholded or clipped as the options say."""
    if options.thresholding:
        return _thresholded(sample, options)
    if isinstance(options, ClipOptions) and options.clip_sample:
        return np.clip(sample, -options.clip_sample_range, options.clip_sample_range)
    return sample


def draw(noise: Noise | None, shape: tuple[int, ...]) -> Array:
    """Noise of ``shape`` from the caller. Raises ``UsageError`` where there is none."""
    if noise is None:
        raise UsageError("this scheduler adds noise at each step", hint="give a source of noise")
    drawn = np.asarray(noise(shape), dtype=np.float32)
    if drawn.shape != shape:
        raise UsageError(
            "the noise does not fit the latents", found=str(drawn.shape), expected=str(shape)
        )
    return drawn


def _thresholded(sample: Array, options: ThresholdOptions) -> Array:
    """Dynamic thresholding (2205.11487, section 2.3): each image divided by its quantile."""
    flat = np.abs(sample).reshape(len(sample), -1)
    limit = np.quantile(flat, options.dynamic_thresholding_ratio, axis=1)
    limit = np.minimum(np.maximum(limit, 1), options.sample_max_value).astype(np.float32)
    limit = limit.reshape(-1, *[1] * (sample.ndim - 1))
    result: Array = np.clip(sample, -limit, limit) / limit
    return result
