"""Whether a UNet predicts the noise or the velocity, which no shape tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pixelrt.export.part import noise

Prediction = Literal["epsilon", "v_prediction"]
LAST = 999


def prediction_of(network: Callable[[Tensor, Tensor], Tensor], channels: int) -> Prediction:
    """``network``: latents (1, channels, 32, 32) and timestep (1,) to what it predicts.

    At the last step of training the latents are x = alpha*x0 + sigma*eps with alpha near 0.07 and
    sigma near 1. What predicts eps gives x again; what predicts v = alpha*eps - sigma*x0
    (Salimans and Ho 2022, arXiv:2202.00512) has next to nothing of it. So the part of x in the
    output, by least squares, is near 1 or near 0.
    """
    x = noise((1, channels, 32, 32), 1)
    with torch.no_grad():
        out = network(x, torch.tensor([float(LAST)]))
    part = float((out * x).sum() / (x * x).sum())
    return "epsilon" if part > 0.5 else "v_prediction"
