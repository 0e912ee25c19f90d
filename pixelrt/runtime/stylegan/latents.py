"""Latents of StyleGAN2: z, w and ws, and what users do with them.

Shapes: z ``(N, z_dim)``, normal; w ``(N, w_dim)``, what the mapping makes of it; ws
``(N, num_ws, w_dim)``, one row of w for each layer of the synthesis. All arrays are float32,
none is changed in place. Arrays of other shapes or with values that are not finite raise
``InputError``; options outside of their range raise ``UsageError``.

The operations are those of Karras et al. 2019 (arXiv:1812.04948), the command lines those of
NVlabs/stylegan2-ada-pytorch; directions are as in InterFaceGAN (arXiv:1907.10786).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pixelrt.errors import InputError, UsageError

Array = NDArray[np.float32]

SeedKind = Literal["generator", "randomstate"]
"""``generator``: numpy's default generator. ``randomstate``: numpy's ``RandomState``, which the
seeds of published StyleGAN2 pictures mean."""

PARALLEL = 1e-6
"""Sine of an angle below which two z count as parallel."""


# Making them --------------------------------------------------------------------------------


def seeded_z(seeds: Sequence[int], z_dim: int, kind: SeedKind = "generator") -> Array:
    """``(len(seeds), z_dim)``; a row depends on its own seed only."""
    top = 2**32 if kind == "randomstate" else None
    for seed in seeds:
        if seed < 0 or (top is not None and seed >= top):
            raise UsageError(
                "the seed is out of range",
                found=str(seed),
                expected="0 or more" if top is None else f"0 to {top - 1}",
            )
    if kind == "randomstate":
        rows = [np.random.RandomState(seed).randn(z_dim) for seed in seeds]
    else:
        rows = [np.random.default_rng(seed).standard_normal(z_dim) for seed in seeds]
    return np.asarray(rows, np.float32).reshape(len(rows), z_dim)


def seeded_noise(sides: Sequence[int], count: int, seed: int) -> list[Array]:
    """The noise inputs of a synthesis for ``count`` images: ``(count, 1, r, r)``, normal."""
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((count, 1, r, r), np.float32) for r in sides]


def one_hot(labels: Sequence[int], label_dim: int) -> Array:
    """Class numbers as the mapping takes them, ``(len(labels), label_dim)``."""
    for label in labels:
        if not 0 <= label < label_dim:
            raise UsageError(
                "the network has no such class",
                found=str(label),
                expected=f"0 to {label_dim - 1}" if label_dim else "no class: it has no labels",
            )
    return np.eye(label_dim, dtype=np.float32)[list(labels)]


def broadcast(w: ArrayLike, num_ws: int) -> Array:
    """w ``(N, w_dim)`` for every layer: ws ``(N, num_ws, w_dim)``."""
    rows = checked(w, "w", (None, None))
    return np.repeat(rows[:, None], num_ws, axis=1)


# What is done with them ---------------------------------------------------------------------


def truncate(ws: ArrayLike, w_avg: ArrayLike, psi: float, cutoff: int | None = None) -> Array:
    """ws moved towards ``w_avg`` ``(w_dim,)``: 1 leaves them, 0 gives the average.

    ``cutoff``: only the layers before this one.
    """
    given = checked(ws, "ws", (None, None, None))
    centre = checked(w_avg, "w_avg", (given.shape[2],))
    if not math.isfinite(psi):
        raise UsageError("the truncation psi is not a number", found=str(psi))
    if cutoff is not None and not 0 <= cutoff <= given.shape[1]:
        raise UsageError(
            "the truncation cutoff is out of range",
            found=str(cutoff),
            expected=f"0 to {given.shape[1]}, the number of layers",
        )
    result = given.copy()
    if psi != 1:  # rounding would change them
        result[:, :cutoff] = centre + np.float32(psi) * (given[:, :cutoff] - centre)
    return result


def mix(ws: ArrayLike, styles: ArrayLike, layers: Iterable[int]) -> Array:
    """ws with these layers of ``styles``, of the same shape or one for all."""
    given = checked(ws, "ws", (None, None, None))
    other = checked(styles, "styles", (None, *given.shape[1:]))
    if len(other) not in (1, len(given)):
        raise InputError(
            "the styles do not fit the ws",
            found=f"{len(other)} for {len(given)}",
            expected="as many, or one",
        )
    rows = _rows(layers, given.shape[1])
    result = given.copy()
    result[:, rows] = other[:, rows]
    return result


def edit(
    ws: ArrayLike,
    direction: ArrayLike,
    strength: ArrayLike,
    layers: Iterable[int] | None = None,
) -> Array:
    """ws plus ``strength`` times ``direction``, in these layers or in all.

    ``direction``: ``(w_dim,)`` or ``(1, w_dim)``, or of its own for each layer, ``(num_ws, w_dim)``
    or ``(1, num_ws, w_dim)``; it is not normalised. ``strength``: one, or one for each of ws;
    several for a single ws give as many results.
    """
    given = checked(ws, "ws", (None, None, None))
    step = _direction(direction, *given.shape[1:])
    factors = checked(np.atleast_1d(np.asarray(strength)), "the strength", (None,))
    if len(given) != 1 and len(factors) not in (1, len(given)):
        raise InputError(
            "the strengths do not fit the ws",
            found=f"{len(factors)} for {len(given)}",
            expected="one, or as many as there are ws",
        )
    result = np.repeat(given, len(factors), axis=0) if len(given) == 1 else given.copy()
    rows = list(range(given.shape[1])) if layers is None else _rows(layers, given.shape[1])
    result[:, rows] += factors[:, None, None] * step[rows]
    return result


def lerp(start: ArrayLike, end: ArrayLike, places: ArrayLike) -> Array:
    """ws on the straight line between two, both ``(1, num_ws, w_dim)``: ``(K, num_ws, w_dim)``
    for K ``places``, 0 at the start and 1 at the end."""
    first = checked(start, "the start", (1, None, None))
    last = checked(end, "the end", first.shape)
    t = checked(np.atleast_1d(np.asarray(places)), "the places", (None,))[:, None, None]
    return (1 - t) * first + t * last


def slerp(start: ArrayLike, end: ArrayLike, places: ArrayLike) -> Array:
    """z on the arc between two, both ``(1, z_dim)``: ``(K, z_dim)`` (Shoemake 1985).

    On a straight line the mapping would normalise the middle to the same arc, but at
    another pace. Raises ``InputError`` for opposite z, between which there is no one arc.
    """
    first = checked(start, "the start", (1, None)).astype(np.float64)
    last = checked(end, "the end", first.shape).astype(np.float64)
    t = checked(np.atleast_1d(np.asarray(places)), "the places", (None,)).astype(np.float64)
    norms = float(np.linalg.norm(first) * np.linalg.norm(last))
    if norms == 0:
        raise InputError("there is no arc from or to a z of zeros")
    angle = math.acos(min(1.0, max(-1.0, float((first * last).sum()) / norms)))
    t = t[:, None]
    if math.sin(angle) > PARALLEL:
        result = (np.sin((1 - t) * angle) * first + np.sin(t * angle) * last) / math.sin(angle)
    elif angle < 1:
        result = (1 - t) * first + t * last
    else:
        raise InputError("there is no one arc between opposite z", hint="choose another z")
    return result.astype(np.float32)


# Checks -------------------------------------------------------------------------------------


def parse_layers(text: str, num_ws: int) -> tuple[int, ...]:
    """Layers as users write them: ``"0-6"`` (both ends included), ``"8-"``, ``"3,4,7"``.

    Raises ``UsageError`` for anything else, and for layers that are not there.
    """
    rows: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:(-)\s*(\d{1,9})?)?\s*", part)
        if match is None:
            raise UsageError(
                "these are no layers", found=repr(text), expected="as in 0-6, 8- or 3,4,7"
            )
        start = int(match[1])
        end = int(match[3]) if match[3] else num_ws - 1 if match[2] else start
        if start > end or end >= num_ws:
            raise _no_such_layer(part.strip(), num_ws)
        rows += range(start, end + 1)
    return tuple(dict.fromkeys(rows))


def checked(values: ArrayLike, name: str, shape: tuple[int | None, ...]) -> Array:
    """``values`` as float32; raises ``InputError`` unless they have this shape (``None``: any
    length but 0) and are finite."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} holds no real numbers", found=str(array.dtype))
    fits = array.ndim == len(shape) and all(
        have == want if want is not None else have > 0
        for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise InputError(
            f"{name} has a shape that does not fit", found=str(array.shape), expected=f"({wanted})"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds values that are not finite")
    return array.astype(np.float32)


def _rows(layers: Iterable[int], num_ws: int) -> list[int]:
    rows = list(layers)
    for row in rows:
        if not 0 <= row < num_ws:
            raise _no_such_layer(str(row), num_ws)
    return rows


def _no_such_layer(found: str, num_ws: int) -> UsageError:
    return UsageError("the network has no such layers", found=found, expected=f"0 to {num_ws - 1}")


def _direction(direction: ArrayLike, num_ws: int, w_dim: int) -> Array:
    """``(num_ws, w_dim)``."""
    array = np.asarray(direction)
    if array.shape not in ((w_dim,), (1, w_dim), (num_ws, w_dim), (1, num_ws, w_dim)):
        raise InputError(
            "the direction has a shape that does not fit",
            found=str(array.shape),
            expected=f"({w_dim},), or ({num_ws}, {w_dim}) with one for each layer",
        )
    step = checked(array.reshape(-1, w_dim), "the direction", (None, w_dim))
    return np.broadcast_to(step, (num_ws, w_dim))
