"""Pictures to what the networks take and back, as diffusers' image processors do it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelrt.errors import ImageError, InputError
from pixelrt.geometry import Size

Values = NDArray[np.float32]
LEVELS = np.float32(255)


def pictures(
    source: Any,
    size: Size | None = None,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
    reducing_gap: float | None = None,
) -> Values:
    """(N, C, H, W) float32 in [0, 1], brought to ``size`` where one is given.

    ``source``: a PIL picture or a list of some; uint8 (H, W, C) or (N, H, W, C); or float32 in
    [0, 1] of these shapes. uint8 is resized by Pillow, with ``resample`` and
    ``reducing_gap``; float32 is not.
    Raises ``ImageError``, and ``InputError`` for float32 of another size.
    """
    batch = _batch(source)
    if batch.dtype == np.uint8:
        if size is not None and batch.shape[1:3] != (size.height, size.width):
            batch = np.stack([_resized(one, size, resample, reducing_gap) for one in batch])
        values = batch.astype(np.float32) / LEVELS
    else:
        if size is not None and batch.shape[1:3] != (size.height, size.width):
            raise InputError(
                "pictures of float32 are not resized",
                found=f"{batch.shape[2]}x{batch.shape[1]}",
                expected=str(size),
                hint="give uint8, or the right size",
            )
        if not np.isfinite(batch).all() or batch.min() < 0 or batch.max() > 1:
            raise ImageError(
                "pictures of float32 are within [0, 1]",
                found=f"{batch.min():g} to {batch.max():g}",
            )
        values = batch.astype(np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def colour_pictures(
    source: Any,
    size: Size | None = None,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
    reducing_gap: float | None = None,
) -> Values:
    """As ``pictures``, (N, 3, H, W): grey ones have three equal channels."""
    found = pictures(source, size, resample, reducing_gap)
    return np.repeat(found, 3, axis=1) if found.shape[1] == 1 else found


def size_of(source: Any) -> Size:
    """Of the first picture."""
    return Size(*_batch(source).shape[1:3])


def is_latents(source: Any, channels: int) -> bool:
    """(N, channels, h, w) float32, which no picture is."""
    return (
        isinstance(source, np.ndarray)
        and source.ndim == 4
        and source.dtype == np.float32
        and source.shape[1] == channels
        and source.shape[3] not in (1, 3)
    )


def masks(source: Any, size: Size) -> Values:
    """(N, 1, H, W) float32, 1 where a picture is to be made anew: what is at least half white."""
    found = _batch(source)
    if found.shape[3] == 3:
        images = [Image.fromarray(_levels(one)).convert("L") for one in found]
        found = np.stack([np.asarray(one)[..., None] for one in images])
    values = pictures(found if found.dtype == np.uint8 else _levels(found), size)
    return (values >= 0.5).astype(np.float32)


def shrunk_mask(mask: Values, factor: int) -> Values:
    """Every ``factor``-th value on both axes, as nearest interpolation takes them."""
    return np.ascontiguousarray(mask[:, :, ::factor, ::factor])


def _batch(source: Any) -> NDArray[Any]:
    if isinstance(source, Image.Image):
        return _checked(source if source.mode in ("L", "RGB") else source.convert("RGB"))
    if isinstance(source, list | tuple):
        if not source:
            raise ImageError("there is no picture")
        arrays = [_batch(one)[0] for one in source]
        if len({array.shape for array in arrays}) != 1:
            found = ", ".join(f"{array.shape[1]}x{array.shape[0]}" for array in arrays)
            raise ImageError("pictures of one call have one size", found=found)
        return np.stack(arrays)
    return _checked(source)


def _checked(source: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(source)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3:
        array = array[None]
    kind = array.dtype in (np.uint8, np.float32)
    if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape or not kind:
        raise ImageError(
            "these are not the pixels of a picture",
            found=f"{array.dtype} {array.shape}",
            expected="uint8, or float32 in [0, 1], (H, W, 3) or (N, H, W, 3)",
        )
    return array


def _resized(
    pixels: NDArray[np.uint8], size: Size, resample: Image.Resampling, reducing_gap: float | None
) -> NDArray[np.uint8]:
    squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    image = Image.fromarray(squeezed).resize(
        (size.width, size.height), resample, reducing_gap=reducing_gap
    )
    resized: NDArray[np.uint8] = np.asarray(image, np.uint8)
    return resized.reshape(size.height, size.width, pixels.shape[2])


def _levels(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    levels: NDArray[np.uint8] = np.rint(np.clip(values, 0, 1) * LEVELS).astype(np.uint8)
    return levels
