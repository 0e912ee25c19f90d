"""Which timesteps a run takes: their spacing, and the part that strength or a hand-over leaves.

Spacings are those of Lin et al. 2305.08891, table 2. All sequences descend.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import UsageError
from pixelrt.runtime.diffusion.schedulers.options import BetaOptions

Doubles = NDArray[np.float64]


def check_steps(steps: int, train_steps: int) -> None:
    """Raises ``UsageError`` unless ``1 <= steps <= train_steps``."""
    if not 1 <= steps <= train_steps:
        raise UsageError(
            "the number of steps must be positive and not above that of the training",
            found=str(steps),
            expected=f"1 to {train_steps}",
        )


def spaced(options: BetaOptions, steps: int) -> Doubles:
    """``steps`` timesteps from the last of the training down. ``linspace`` is not rounded."""
    count = options.num_train_timesteps
    if options.timestep_spacing == "linspace":
        return np.linspace(0, count - 1, steps)[::-1]
    if options.timestep_spacing == "leading":
        return _leading(count // steps, steps, options.steps_offset)
    return _trailing(count, count / steps, steps)


def spaced_for_solver(options: BetaOptions, steps: int, last: int) -> Doubles:
    """As the multistep solvers take them: of ``steps + 1`` the last is the end, not a step.

    ``last``: timesteps from here on are left out.
    """
    if options.timestep_spacing == "linspace":
        if steps >= last:
            raise UsageError(
                "a multistep solver takes each timestep once",
                found=f"{steps} steps over {last} timesteps",
                expected=f"at most {last - 1} steps",
            )
        return np.linspace(0, last - 1, steps + 1).round()[::-1][:-1]
    if options.timestep_spacing == "leading":
        return _leading(last // (steps + 1), steps + 1, options.steps_offset)[:-1]
    count = options.num_train_timesteps
    return _trailing(last, count / steps, -(-last * steps // count))


def _leading(ratio: int, steps: int, offset: int) -> Doubles:
    if ratio < 1:
        raise UsageError(
            "the option timestep_spacing='leading' of the scheduler takes fewer steps",
            found=str(steps - 1),
            hint="take fewer steps or the spacing 'trailing'",
        )
    return (np.arange(steps, dtype=np.float64) * ratio)[::-1] + offset


def _trailing(start: int, ratio: float, steps: int) -> Doubles:
    # arange may round to one value more than there are steps; -1 is no timestep
    return np.arange(start, 0, -ratio)[:steps].round() - 1


@dataclass(frozen=True)
class Window:
    """The part ``begin <= i < end`` of a plan's timesteps that a run takes."""

    begin: int
    end: int


def window(
    timesteps: NDArray[np.int64] | NDArray[np.float32],
    steps: int,
    train_steps: int,
    strength: float,
    denoising_start: float | None,
    denoising_end: float | None,
) -> Window:
    """The part of ``timesteps`` to run, cut as diffusers' ``get_timesteps`` cuts.

    ``strength`` in (0, 1]: the share of the steps. ``denoising_start`` and
    ``denoising_end`` in (0, 1): the share of the noise that another model has removed or
    will remove; with a start, strength means nothing. Raises ``UsageError`` for values
    outside and where no step is left.
    """
    begin, end = 0, len(timesteps)
    for name, value in (("denoising_start", denoising_start), ("denoising_end", denoising_end)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{name} is out of range", found=str(value), expected="0 < x < 1")
    if denoising_start is not None:
        if denoising_end is not None and denoising_start >= denoising_end:
            raise UsageError(
                "denoising_start must be below denoising_end",
                found=f"{denoising_start} and {denoising_end}",
            )
        begin = end - int(np.sum(timesteps < _cutoff(denoising_start, train_steps)))
    else:
        begin = steps - _steps_at(strength, steps)
    if denoising_end is not None:
        end = begin + int(np.sum(timesteps[begin:] >= _cutoff(denoising_end, train_steps)))
    if begin >= end:
        raise UsageError(
            "no step is left between denoising_start and denoising_end",
            found=f"{steps} steps, start {denoising_start}, end {denoising_end}",
            hint="take more steps or a wider range",
        )
    return Window(begin, end)


def _cutoff(share: float, train_steps: int) -> int:
    return round(train_steps - share * train_steps)


def _steps_at(strength: float, steps: int) -> int:
    if not 0 < strength <= 1:
        raise UsageError(
            "strength is out of range; 0 would leave the image as it is",
            found=str(strength),
            expected="0 < strength <= 1",
        )
    taken = int(steps * strength)
    if taken < 1:
        raise UsageError(
            "strength leaves no step to take",
            found=f"{steps} steps at strength {strength}",
            hint=f"take a strength of at least {1 / steps:.3g} or more steps",
        )
    return taken
