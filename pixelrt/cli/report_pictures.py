"""Arrays of a check as pictures and numbers for the report."""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelrt.fidelity import HISTOGRAM_EDGES
from pixelrt.runtime.verify import Check

FACTORS: tuple[int, ...] = tuple(
    mantissa * 10**power for power in range(9) for mantissa in (1, 2, 5)
)[:-2]
"""Amplifications on offer: 1, 2, 5, 10 ... 10^8, beyond what float32 can differ by."""

MAGENTA = (255, 0, 255)
"""Of a NaN or infinite value: no photograph and no grey or red difference has it."""

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]


def actual_levels(check: Check) -> Values:
    """Output of the backend as (H, W, C) in levels of 0..255, neither clamped nor rounded."""
    return _levels(check, check.actual)


def expected_levels(check: Check) -> Values:
    """Like ``actual_levels`` of PyTorch's output."""
    return _levels(check, check.expected)


def absolute_error(check: Check) -> Values:
    """(H, W, C) absolute difference for a value range of 1; not finite where the output is not."""
    if check.role == "core":  # not by way of levels, which would round
        actual, expected = (a[0].transpose(1, 2, 0) for a in (check.actual, check.expected))
    else:
        actual, expected = actual_levels(check) / 255, expected_levels(check) / 255
    error: Values = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    return error


def same_bits(check: Check) -> bool:
    """Whether the output equals the reference bit for bit (a zero's sign included)."""
    if not np.isfinite(check.actual).all():
        return False
    return check.actual.tobytes() == check.expected.astype(check.actual.dtype).tobytes()


def show_levels(levels: Values) -> Pixels:
    """(H, W, C) levels as uint8, clamped and rounded; a pixel that is not finite in magenta."""
    finite = np.isfinite(levels)
    shown = np.rint(np.clip(np.where(finite, levels, 0), 0, 255)).astype(np.uint8)
    return shown if finite.all() else _painted(shown, ~np.all(finite, axis=-1))


def largest_channel(error: Values) -> Values:
    """(H, W) largest error of each pixel's channels; NaN where one of them is not finite."""
    worst: Values = np.where(np.isfinite(error), error, np.nan).max(axis=-1)
    return worst


def show_difference(worst: Values, factor: int, limit: float) -> Pixels:
    """(H, W, 3): ``worst * factor`` as grey, red above ``limit``, magenta where not finite.

    ``report.js`` paints in the same way. Red is at least 110 so that no pixel above the
    limit can hide in the dark.
    """
    bad = np.isnan(worst)
    grey = np.rint(np.minimum(np.where(bad, 0, worst) * factor, 1) * 255)
    shown = np.repeat(grey[..., None], 3, axis=-1)
    red = np.stack([np.maximum(grey, 110), grey * 0.3, grey * 0.3], axis=-1)
    over = np.where(bad, 0, worst) > limit
    shown[over] = red[over]
    return _painted(np.rint(shown).astype(np.uint8), bad)


def visible_factor(worst: Values) -> int:
    """Largest of ``FACTORS`` with which the largest finite error is still below white."""
    top = float(np.nanmax(worst, initial=0.0))
    return max((f for f in FACTORS if top * f <= 1), default=FACTORS[0])


def pack_difference(worst: Values, limit: float) -> str:
    """(H, W) differences for the browser: bfloat16, all high bytes before all low bytes,
    deflated, base64.

    bfloat16 keeps every magnitude within 0.4 %. The sign bit, which no absolute value
    needs, says "above the limit", decided here in full precision.
    """
    single = np.minimum(np.nan_to_num(worst, nan=0.0), 1e30).astype(np.float32)
    bits = single.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    rounded = np.where(np.isnan(worst), 0x7FC0, rounded | np.where(worst > limit, 0x8000, 0))
    high, low = (rounded >> 8).astype(np.uint8), (rounded & 255).astype(np.uint8)
    return base64.b64encode(zlib.compress(high.tobytes() + low.tobytes())).decode()


def count_decades(error: Values, limit: float) -> list[tuple[float, float, int, int]]:
    """(low, high, count, count above ``limit``) of the finite errors that are not zero.

    One for each decade from the smallest to the largest error; the edges are those of
    ``fidelity.histogram``.
    """
    some = error[np.isfinite(error) & (error > 0)]
    edges = np.array(HISTOGRAM_EDGES)
    counts = np.histogram(some, edges)[0]
    above = np.histogram(some[some > limit], edges)[0]
    used = np.flatnonzero(counts)
    if not used.size:
        return []
    rows = zip(HISTOGRAM_EDGES[:-1], HISTOGRAM_EDGES[1:], counts, above, strict=True)
    decades = [(low, high, int(n), int(over)) for low, high, n, over in rows]
    return decades[used[0] : used[-1] + 1]


def png_uri(pixels: Pixels) -> str:
    """(H, W, C) with 1 or 3 channels as a ``data:`` URI."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _levels(check: Check, array: NDArray[np.generic]) -> Values:
    values: Values = array[0].astype(np.float64)
    return values.transpose(1, 2, 0) * 255 if check.role == "core" else values


def _painted(shown: Pixels, where: NDArray[Any]) -> Pixels:
    painted = np.broadcast_to(shown, (*shown.shape[:2], 3)).copy()
    painted[where] = MAGENTA
    return painted
