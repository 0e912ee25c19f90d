"""Numbers of a series of measured times. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pixelrt.bench.schema import Summary

STEADY_SPREAD = 0.10
"""Windows whose medians lie within this share of each other are steady."""
WINDOWS = 5
FEWEST_RUNS = 3


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which ``share`` per cent of the samples lie.

    Linear between the closest ranks (definition 7 of Hyndman and Fan, "Sample quantiles in
    statistical packages", 1996): of few samples, high percentiles are little more than the
    maximum. Raises ``ValueError`` for no samples.
    """
    if not samples:
        raise ValueError("there are no samples")
    return float(np.percentile(np.asarray(samples, np.float64), share))


def summarise(samples: Sequence[float]) -> Summary:
    """Count, mean, extremes and percentiles. Raises ``ValueError`` for no samples."""
    p50, p90, p95, p99 = (percentile(samples, share) for share in (50, 90, 95, 99))
    return Summary(
        runs=len(samples),
        mean=float(np.mean(samples)),
        minimum=float(min(samples)),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        maximum=float(max(samples)),
    )


def spread(values: Sequence[float]) -> float:
    """How far the largest lies above the smallest, as a share of the smallest."""
    low, high = min(values), max(values)
    if low <= 0:
        return 0.0 if high <= 0 else float("inf")
    return high / low - 1


def window_medians(samples: Sequence[float], windows: int = WINDOWS) -> list[float]:
    """Medians of consecutive, nearly equal parts of a series; at most one a sample."""
    count = max(1, min(windows, len(samples)))
    return [float(np.median(part)) for part in np.array_split(np.asarray(samples), count)]


@dataclass(frozen=True)
class Stability:
    """Whether a series may be believed. ``spread`` of the medians of its windows."""

    spread: float
    reasons: tuple[str, ...]

    @property
    def stable(self) -> bool:
        return not self.reasons


def judge(
    samples: Sequence[float],
    *,
    warmed_up: bool = True,
    limit: float = STEADY_SPREAD,
    windows: int = WINDOWS,
) -> Stability:
    """Hold a measured series against itself: a drift or a step between its windows shows.

    A lone outlier moves no median: it is what the high percentiles are for.
    """
    reasons = [] if warmed_up else ["the warm-up ended before the times were steady"]
    if len(samples) < FEWEST_RUNS:
        reasons.append(f"{len(samples)} runs are too few to tell; {FEWEST_RUNS} are needed")
        return Stability(0.0, tuple(reasons))
    found = spread(window_medians(samples, windows))
    if found > limit:
        reasons.append(
            f"medians of its windows differ by {found:.0%}, more than {limit:.0%}: "
            "the machine was busy or changed its clock"
        )
    return Stability(found, tuple(reasons))
