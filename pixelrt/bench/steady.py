"""Run something until its times are steady, then measure it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from pixelrt.bench.schema import Warmup
from pixelrt.bench.statistics import STEADY_SPREAD, spread

Clock = Callable[[], float]
"""Seconds since some moment, never going back."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class WarmupLimits:
    """Steady: the medians of the last ``windows`` windows lie within ``spread``.

    A window is at least one run and at least ``window_seconds``. ``max_seconds`` and
    ``max_runs`` end the warm-up where that does not happen; without any runs there is none.
    """

    window_seconds: float = 0.25
    windows: int = 3
    spread: float = STEADY_SPREAD
    max_seconds: float = 60.0
    max_runs: int = 2000


@dataclass(frozen=True)
class Effort:
    """How long to measure: ``runs`` runs, or for ``seconds`` with at least ``fewest`` runs."""

    runs: int | None = None
    seconds: float = 5.0
    fewest: int = 5
    warmup: WarmupLimits = WarmupLimits()

    def __str__(self) -> str:
        if self.runs is not None:
            return f"{self.runs} runs"
        return f"{self.seconds:g} s, at least {self.fewest} runs"


@dataclass(frozen=True)
class Measured(Generic[Value]):
    """``seconds`` of each run, and what each one gave."""

    seconds: list[float]
    values: list[Value]


def warm_up(
    run: Callable[[], object], limits: WarmupLimits, clock: Clock = time.perf_counter
) -> Warmup:
    """Run until steady or until a limit is reached; says which."""
    if not limits.max_runs:
        return Warmup(runs=0, seconds=0.0, first=0.0, steady=False, spread=0.0)
    medians: list[float] = []
    runs, first, start = 0, 0.0, clock()
    while True:
        times: list[float] = []
        began = clock()
        while not times or clock() - began < limits.window_seconds:
            times.append(_timed(run, clock))
            runs += 1
            first = first or times[0]
            if runs >= limits.max_runs:
                break
        medians.append(float(np.median(times)))
        last = medians[-limits.windows :]
        found = spread(last)
        steady = len(last) == limits.windows and found <= limits.spread
        elapsed = clock() - start
        if steady or runs >= limits.max_runs or elapsed >= limits.max_seconds:
            return Warmup(runs, elapsed, first, steady, min(found, 1e6))


def measure(
    run: Callable[[], Value], effort: Effort, clock: Clock = time.perf_counter
) -> Measured[Value]:
    """Run and time, as long as ``effort`` says. The value of a run is not part of its time."""
    seconds: list[float] = []
    values: list[Value] = []
    start = clock()

    def enough() -> bool:
        if effort.runs is not None:
            return len(seconds) >= effort.runs
        return len(seconds) >= effort.fewest and clock() - start >= effort.seconds

    while not enough():
        began = clock()
        value = run()
        seconds.append(clock() - began)
        values.append(value)
    return Measured(seconds, values)


def _timed(run: Callable[[], object], clock: Clock) -> float:
    began = clock()
    run()
    return clock() - began
