"""How close two results are, and whether that is close enough."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

PSNR_CEILING = 300.0
"""Reported for identical arrays, whose PSNR is infinite: JSON has no infinity."""

HISTOGRAM_EDGES = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, float("inf"))


@dataclass(frozen=True)
class Comparison:
    """Errors of an array against the expected one.

    ``psnr`` in dB for a peak of ``peak``; ``non_finite`` counts NaN and infinities in the
    actual array, which count as an infinite error.
    """

    max_abs: float
    psnr: float
    cosine: float
    non_finite: int
    values: int

    def __str__(self) -> str:
        if self.max_abs == 0 and not self.non_finite:
            return "identical"
        text = f"max abs {self.max_abs:.2e}, {self.psnr:.1f} dB"
        if self.non_finite:
            text += f", {self.non_finite} of {self.values} values NaN or infinite"
        return text


def psnr(mean_square: float, peak: float = 1.0) -> float:
    """10*log10(peak^2 / mean_square) in dB, at most ``PSNR_CEILING``."""
    if mean_square <= 0:
        return PSNR_CEILING
    return min(PSNR_CEILING, float(10 * np.log10(peak * peak / mean_square)))


def compare(
    expected: NDArray[np.generic], actual: NDArray[np.generic], *, peak: float = 1.0
) -> Comparison:
    """Compare two arrays of one shape in float64. Raises ``ValueError`` if shapes differ."""
    if expected.shape != actual.shape:
        raise ValueError(f"shapes differ: {expected.shape} and {actual.shape}")
    want = expected.astype(np.float64).ravel()
    got = actual.astype(np.float64).ravel()
    bad = int(got.size - np.count_nonzero(np.isfinite(got)))
    if bad:
        return Comparison(float("inf"), 0.0, 0.0, bad, got.size)
    error = got - want
    norm = float(np.linalg.norm(want) * np.linalg.norm(got))
    return Comparison(
        max_abs=float(np.max(np.abs(error), initial=0.0)),
        psnr=psnr(float(np.mean(error * error)) if error.size else 0.0, peak),
        cosine=float(want @ got) / norm if norm else float(np.array_equal(want, got)),
        non_finite=0,
        values=got.size,
    )


def compare_relative(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> Comparison:
    """``compare`` in units of the largest magnitude that is expected."""
    peak = float(np.max(np.abs(expected), initial=0.0)) or 1.0
    return compare(expected.astype(np.float64) / peak, actual.astype(np.float64) / peak)


def histogram(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> str:
    """Absolute errors by decade, one line each, for failure messages."""
    error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    error = np.where(np.isfinite(error), error, np.inf)
    lines = []
    for low, high in pairwise(HISTOGRAM_EDGES):
        last = high == HISTOGRAM_EDGES[-1]
        count = int(np.count_nonzero((error >= low) & ((error < high) | last)))
        if count:
            share = count / error.size
            lines.append(f"{low:7.0e} .. {high:7.0e}  {count:10d}  {share:7.2%}")
    return "\n".join(lines)
