"""Joins what a text encoder gave for the windows of prompts, and applies the weights."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import BundleError, InputError
from pixelrt.runtime.diffusion.text.batch import TokenBatch
from pixelrt.runtime.diffusion.text.embeddings import Shape, shown

Float = TypeVar("Float", bound=np.floating)


def assemble(
    hidden: NDArray[Float], batch: TokenBatch, *, keep_mean: bool = True
) -> NDArray[Float]:
    """``hidden`` (B * chunks, L, C), the encoder's states for ``batch.ids``, to embeddings
    (B, chunks * L, C) of the same dtype.

    Every token's states are multiplied by its weight. With ``keep_mean`` each window that
    has weights is then scaled so that its mean is what it was, as the emphasis "Original"
    of AUTOMATIC1111's web UI does for a single prompt; without it, as "No norm". Windows
    without weights come out bit for bit as they came in.

    Raises ``BundleError`` where the encoder gave another shape, ``InputError`` where the
    weights leave no finite embeddings.
    """
    if hidden.ndim != 3 or hidden.shape[:2] != batch.ids.shape:
        raise _mismatch("hidden states", hidden.shape, (*batch.ids.shape, "C"))
    weights = batch.weights.reshape(batch.ids.shape)
    weighted = [row for row in range(len(weights)) if np.any(weights[row] != 1)]
    if weighted:
        hidden = hidden.copy()
    for row in weighted:
        hidden[row] = _weighted(hidden[row], weights[row], keep_mean)
    return hidden.reshape(len(batch.weights), -1, hidden.shape[2])


def first_chunk(pooled: NDArray[Float], batch: TokenBatch) -> NDArray[Float]:
    """``pooled`` (B * chunks, P), one pooled embedding per window, to those of every
    prompt's first window (B, P), without weights, as the web UI does.

    Raises ``BundleError`` where the encoder gave another shape.
    """
    if pooled.ndim != 2 or len(pooled) != len(batch.ids):
        raise _mismatch("pooled embeddings", pooled.shape, (len(batch.ids), "P"))
    return pooled[:: batch.chunks]


def _weighted(
    window: NDArray[Float], weights: NDArray[np.float32], keep_mean: bool
) -> NDArray[Float]:
    """One window (L, C), computed in float64, in the dtype that it came in."""
    states = window.astype(np.float64)
    result = states * weights[:, None]
    with np.errstate(all="ignore"):  # what is not finite is reported below
        if keep_mean:
            result *= states.mean() / result.mean()
        narrow = result.astype(window.dtype)
    if not np.isfinite(narrow).all():
        raise InputError(
            "the weights of a prompt leave embeddings that are not finite",
            found=f"weights from {weights.min():g} to {weights.max():g}",
            expected="weights around 1, usually between 0.5 and 1.5",
        )
    return narrow


def _mismatch(what: str, found: Shape, expected: Shape) -> BundleError:
    return BundleError(
        f"the text encoder gave {what} that do not fit the tokens it was given",
        found=shown(found),
        expected=shown(expected),
    )
