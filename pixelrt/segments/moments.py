"""Mean and variance of groups of channels, gathered tile by tile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


class Moments:
    """Count, mean and sum of squared deviations of every group of a (C, H, W) picture.

    Merged as Chan, Golub and LeVeque 1979 (Updating formulae and a pairwise algorithm for
    computing sample variances) do, in float64, so that the order of the tiles does not matter.
    """

    def __init__(self, channels: int, groups: int) -> None:
        self.channels = channels
        self.groups = groups
        self._count = 0
        self._mean = np.zeros(groups)
        self._squares = np.zeros(groups)

    def add(self, part: Values) -> None:
        """``part``: float32 (C, h, w), pixels that were not added before; may be empty."""
        count = part[0].size * (self.channels // self.groups)
        if not count:
            return
        sums = part.sum(axis=2).sum(axis=1, dtype=np.float64)
        mean = sums.reshape(self.groups, -1).sum(axis=1) / count
        # Deviations from a rounded mean: what that adds is taken off again below.
        near = mean.astype(np.float32)
        apart = part - np.repeat(near, self.channels // self.groups)[:, None, None]
        rows = np.einsum("chw,chw->ch", apart, apart)
        squares = rows.reshape(self.groups, -1).sum(axis=1, dtype=np.float64)
        squares -= count * (mean - near) ** 2
        self._merge(count, mean, squares)

    def _merge(self, count: int, mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        total = self._count + count
        apart = mean - self._mean
        self._mean += apart * (count / total)
        self._squares += squares + apart**2 * (self._count * count / total)
        self._count = total

    def per_channel(self, epsilon: float) -> tuple[Values, Values]:
        """Mean and ``1 / sqrt(variance + epsilon)`` of each channel's group, (1, C, 1, 1).

        The variance is that of all pixels, divided by their count, as ``torch.nn.GroupNorm``.
        """
        inverse = 1 / np.sqrt(self._squares / self._count + epsilon)
        return self._spread(self._mean), self._spread(inverse)

    def _spread(self, values: NDArray[np.float64]) -> Values:
        each = np.repeat(values, self.channels // self.groups)
        return each.astype(np.float32).reshape(1, self.channels, 1, 1)
