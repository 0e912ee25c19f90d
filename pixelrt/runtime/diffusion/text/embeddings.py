"""Embeddings that the user gives ready-made instead of a prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import InputError

Shape = tuple[int | str, ...]
"""Numbers are fixed, names stand for any length of at least 1."""


def shown(shape: Shape) -> str:
    """A shape for a message."""
    return f"({', '.join(map(str, shape))})"


def ready_embeddings(name: str, value: Any, shape: Shape) -> NDArray[np.float32]:
    """``value`` as contiguous float32, checked: ``prompt_embeds`` are ``("B", "T", C)``,
    ``pooled_prompt_embeds`` ``("B", P)``, with the network's C and P.

    ``value``: a float array, or what numpy makes one of. Raises ``InputError``.
    """
    array = _floats(name, value)
    fits = len(array.shape) == len(shape) and all(
        found >= 1 if isinstance(wanted, str) else found == wanted
        for found, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"{name} do not have the shape that this pipeline takes",
            found=shown(array.shape),
            expected=shown(shape),
        )
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(result).all():
        raise InputError(f"{name} hold NaN or infinite values", expected="finite numbers")
    return result


def check_same_shape(
    name: str, value: NDArray[np.float32], other_name: str, other: NDArray[np.float32]
) -> None:
    """Positive and negative embeddings go through the network as one batch, as in diffusers.

    Raises ``InputError`` naming both shapes.
    """
    if value.shape != other.shape:
        raise InputError(
            f"{name} and {other_name} differ in shape",
            found=f"{shown(value.shape)} and {shown(other.shape)}",
            expected="the same shape for both",
            hint="encode both prompts together, so that they get equally many tokens",
        )


def _floats(name: str, value: Any) -> NDArray[np.floating]:
    try:
        array = np.asarray(value)
    except (RuntimeError, TypeError, ValueError) as exc:
        raise InputError(
            f"{name} are no array", found=str(exc), expected="a float array on the CPU"
        ) from exc
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{name} are no array of floating point numbers",
            found=f"dtype {array.dtype}",
            expected="float16, float32 or float64",
        )
    return array
