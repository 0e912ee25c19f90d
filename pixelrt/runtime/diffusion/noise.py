"""The noise of a call: what draws it, and what its steps start from."""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import InputError
from pixelrt.runtime.diffusion.call import CommonCall
from pixelrt.runtime.diffusion.schedulers.base import Noise

Values = NDArray[np.float32]


def noise_of(call: CommonCall) -> tuple[Noise, int | None]:
    """What draws the noise of a call, and the seed, unless the caller draws."""
    if call.noise is not None:
        return call.noise, call.seed
    seed = secrets.randbits(32) if call.seed is None else call.seed
    generator = np.random.default_rng(seed)
    return (lambda shape: generator.standard_normal(shape, np.float32)), seed


def first_noise(name: str, given: Values | None, shape: tuple[int, ...], noise: Noise) -> Values:
    """Standard normal, of ``shape``: the option ``name``, or new. Raises ``InputError`` where it
    does not fit."""
    if given is None:
        return np.asarray(noise(shape), np.float32)
    if given.shape != shape:
        raise InputError(
            f"the {name} do not fit the call", found=str(given.shape), expected=str(shape)
        )
    return given.astype(np.float32)
