"""What generators give, as pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_pixels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(N, C, H, W), nominally in [-1, 1], to (N, H, W, C) uint8."""
    shifted = np.clip(values / 2 + np.float32(0.5), 0, 1) * np.float32(255)
    levels: NDArray[np.uint8] = np.rint(shifted).astype(np.uint8).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(levels)
