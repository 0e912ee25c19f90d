"""Pictures to latents and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pixelrt.runtime.diffusion.schedulers.base import Noise
from pixelrt.runtime.networks import Networks

Values = NDArray[np.float32]
LOG_VARIANCE = (-30.0, 20.0)
"""Bounds that diffusers sets."""


def encode(networks: Networks, pixels: Values, scaling: float, noise: Noise) -> Values:
    """(N, 3, H, W) in [-1, 1] to scaled latents (N, c, h, w), one sample of each distribution."""
    moments = networks.run("vae_encoder", {"pixels": pixels})["moments"]
    mean, log_variance = np.split(moments, 2, axis=1)
    deviation = np.exp(np.float32(0.5) * np.clip(log_variance, *LOG_VARIANCE))
    drawn = np.asarray(noise(mean.shape), np.float32)
    latents: Values = (mean + deviation * drawn) * np.float32(scaling)
    return latents


def decode(networks: Networks, latents: Values, scaling: float) -> Values:
    """Scaled latents (N, c, h, w) to (N, 3, H, W), nominally [-1, 1]."""
    unscaled = latents / np.float32(scaling)
    pixels: Values = networks.run("vae_decoder", {"latents": unscaled})["pixels"]
    return pixels
