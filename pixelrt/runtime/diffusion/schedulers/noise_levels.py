"""Noise levels: betas of the training, their products, and sequences of sigmas.

A latent at timestep ``t`` is ``sqrt(a[t]) * x0 + sqrt(1 - a[t]) * noise`` with ``a`` the
product of ``1 - beta`` up to ``t`` (variance preserving, Ho et al. 2006.11239); divided by
``sqrt(a[t])`` it is ``x0 + sigma[t] * noise`` (Karras et al. 2206.00364).

The tables are float32, rounded where diffusers rounds them: near ``t = 0``, ``1 - a`` is of
the order 1e-3, and another rounding of ``a`` would change the smallest sigmas by 1e-5.
"""

from __future__ import annotations

from math import cos, gamma, log, pi

import numpy as np
from numpy.typing import NDArray

from pixelrt.runtime.diffusion.schedulers.options import BetaOptions, SigmaOptions

Table = NDArray[np.float32]
Doubles = NDArray[np.float64]

MAX_BETA = 0.999
RHO = 7.0
"""Exponent of Karras' sequence of sigmas, the paper's value."""
BETA_SHAPE = 0.6
"""Both parameters of the beta distribution of Lee et al., 2407.12173."""
SMALLEST_ALPHA = np.float32(2**-24)
"""Stands for a product of zero, so that its sigma is finite. As in diffusers."""


def alpha_products(options: BetaOptions, *, zero_snr: bool = False) -> Table:
    """``a[t]`` for each timestep of the training, ``(T,)``.

    ``zero_snr``: rescaled so that the last one is zero (Lin et al. 2305.08891, algorithm 1).
    """
    betas = _betas(options)
    if zero_snr:
        betas = _with_zero_terminal_snr(betas)
    return running_product(np.float32(1) - betas)


def cosine_betas(count: int) -> Table:
    """Betas of the squared cosine schedule (Nichol and Dhariwal 2102.09672), ``(count,)``."""

    def product(t: float) -> float:
        return cos((t + 0.008) / 1.008 * pi / 2) ** 2

    steps = (1 - product((i + 1) / count) / product(i / count) for i in range(count))
    return np.array([min(beta, MAX_BETA) for beta in steps], dtype=np.float32)


def sigma_table(alphas: Table) -> Table:
    """``sigma[t] = sqrt((1 - a[t]) / a[t])``, ``(T,)``, ascending."""
    table: Table = np.sqrt((np.float32(1) - alphas) / alphas)
    return table


def sigma_sequence(options: SigmaOptions, largest: float, smallest: float, steps: int) -> Doubles:
    """``steps`` sigmas, descending, spaced as the options say. One of them must be set."""
    largest = largest if options.sigma_max is None else options.sigma_max
    smallest = smallest if options.sigma_min is None else options.sigma_min
    if options.use_karras_sigmas:  # Karras et al. 2206.00364, equation 5
        ends = largest ** (1 / RHO), smallest ** (1 / RHO)
        roots: Doubles = ends[0] + np.linspace(0, 1, steps) * (ends[1] - ends[0])
        return roots**RHO
    if options.use_exponential_sigmas:
        return np.exp(np.linspace(log(largest), log(smallest), steps))
    assert options.use_beta_sigmas
    return smallest + beta_quantiles(1 - np.linspace(0, 1, steps)) * (largest - smallest)


def timesteps_of(sigmas: Doubles, table: Table) -> Doubles:
    """Fractional timesteps at which the training has these sigmas: linear in log sigma."""
    logs = np.log(table)
    wanted = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    part = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    timesteps: Doubles = (1 - part) * low + part * (low + 1)
    return timesteps


def beta_quantiles(probabilities: Doubles) -> Doubles:
    """Quantiles of the symmetric beta distribution with both parameters ``BETA_SHAPE``.

    Below one half, by bisection of the series of the incomplete beta function (Abramowitz
    and Stegun, 6.6.8); above, by symmetry.
    """
    tail = np.minimum(probabilities, 1 - probabilities)
    low, high = np.zeros_like(tail), np.full_like(tail, 0.5)
    for _ in range(100):
        middle = (low + high) / 2
        below = _beta_distribution(middle) < tail
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    quantiles: Doubles = np.where(probabilities <= 0.5, high, 1 - high)
    quantiles[tail == 0] = probabilities[tail == 0]
    return quantiles


def _beta_distribution(x: Doubles) -> Doubles:
    """``P(X <= x)`` for ``0 <= x <= 1/2``, where 60 terms are exact in float64."""
    a = BETA_SHAPE
    total, factor = np.zeros_like(x), 1.0
    for n in range(60):
        total += factor / (a + n) * x**n
        factor *= (n + 1 - a) / (n + 1)
    distribution: Doubles = x**a * total * (gamma(2 * a) / gamma(a) ** 2)
    return distribution


def _betas(options: BetaOptions) -> Table:
    if options.trained_betas is not None:
        return np.array(options.trained_betas, dtype=np.float32)
    count = options.num_train_timesteps
    if options.beta_schedule == "linear":
        return _linspace(options.beta_start, options.beta_end, count)
    if options.beta_schedule == "scaled_linear":
        return _linspace(options.beta_start**0.5, options.beta_end**0.5, count) ** 2
    return cosine_betas(count)


def _linspace(start: float, end: float, count: int) -> Table:
    """As ``torch.linspace`` in float32: the step is rounded, and each half starts at its end."""
    first, last = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([first])
    step = np.float64((last - first) / np.float32(count - 1))
    i = np.arange(count)
    line = np.where(i < count // 2, first + step * i, last - step * (count - 1 - i))
    return line.astype(np.float32)


def running_product(alphas: Table) -> Table:
    """The product of ``alphas`` up to each timestep, ``(T,)``."""
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def _with_zero_terminal_snr(betas: Table) -> Table:
    roots = np.sqrt(running_product(np.float32(1) - betas))
    first, last = roots[0], roots[-1]
    roots = (roots - last) * (first / (first - last))
    products = roots**2
    alphas = np.concatenate([products[:1], products[1:] / products[:-1]])
    rescaled: Table = np.float32(1) - alphas
    return rescaled
