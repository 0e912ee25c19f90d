"""What the UNet is given at each step beside the latents, and guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import UsageError
from pixelrt.geometry import Size
from pixelrt.pipeline_settings import DiffusionSettings
from pixelrt.runtime.diffusion.call import Call
from pixelrt.runtime.diffusion.pictures import colour_pictures
from pixelrt.runtime.diffusion.prompts import Embeddings

Values = NDArray[np.float32]


class Conditions:
    """Made once for a call; ``feeds`` is what changes from step to step.

    With guidance negatives and positives are one batch of twice the pictures.
    """

    def __init__(
        self,
        settings: DiffusionSettings,
        call: Call,
        embeddings: Embeddings,
        size: Size,
        steps: int,
    ) -> None:
        self._guided = embeddings.guided
        self._scale = np.float32(call.guidance_scale)
        self._rescale = call.guidance_rescale
        self._steps = steps
        self._count = embeddings.count
        self._batch = embeddings.count * (2 if embeddings.guided else 1)
        self._fixed: dict[str, Values] = {"text": embeddings.text}
        if embeddings.pooled is not None and settings.time_ids:
            self._fixed["pooled"] = embeddings.pooled
            self._fixed["time_ids"] = self._time_ids(settings, call, size)
        if settings.guidance_width:
            one = scale_embedding(call.guidance_scale - 1, settings.guidance_width)
            self._fixed["guidance"] = np.repeat(one[None], self._batch, axis=0)
        self._controls = self._control_settings(settings, call, size)

    def feeds(self, latents: Values, timestep: float, number: int) -> dict[str, Values]:
        """Of step ``number``. ``latents`` (N, c, h, w), as the scheduler scaled them."""
        if self._guided:
            latents = np.concatenate([latents, latents])
        steps = np.full(self._batch, timestep, np.float32)
        given = {"latents": np.ascontiguousarray(latents), "timestep": steps, **self._fixed}
        for index, (scale, start, end) in enumerate(self._controls):
            off = number / self._steps < start or (number + 1) / self._steps > end
            given[f"scale_{index}"] = np.array([0.0 if off else scale], np.float32)
        return given

    def guided(self, output: Values) -> Values:
        """The UNet's output for the pictures, from that for both halves (Ho and Salimans
        2207.12598); rescaled as Lin et al. 2305.08891, section 3.4, where asked for."""
        if not self._guided:
            return output
        negative, positive = np.split(output, 2)
        found: Values = negative + self._scale * (positive - negative)
        if not self._rescale:
            return found
        axes = tuple(range(1, output.ndim))
        wanted, got = (x.std(axis=axes, keepdims=True, ddof=1) for x in (positive, found))
        share = np.float32(self._rescale)
        found *= share * (wanted / got) + (1 - share)
        return found

    def _time_ids(self, settings: DiffusionSettings, call: Call, size: Size) -> Values:
        whole = (size.height, size.width)
        start = (*(call.original_size or whole), *call.crops_coords_top_left)
        rows: list[list[float]]
        if settings.time_ids == "base":
            rows = [[*start, *(call.target_size or whole)]] * 2
        else:
            rows = [[*start, call.negative_aesthetic_score], [*start, call.aesthetic_score]]
        halves = rows if self._guided else rows[1:]
        each = self._batch // len(halves)
        return np.repeat(np.array(halves, np.float32), each, axis=0)

    def _control_settings(
        self, settings: DiffusionSettings, call: Call, size: Size
    ) -> list[tuple[float, float, float]]:
        count = settings.controls
        if len(call.control_images) != count:
            raise UsageError(
                "there must be one control image for every ControlNet of the bundle",
                found=str(len(call.control_images)),
                expected=str(count),
            )
        for number, image in enumerate(call.control_images):
            found = colour_pictures(image, size)
            if len(found) not in (1, self._count):
                raise UsageError(
                    "there are not as many control images as pictures",
                    found=str(len(found)),
                    expected=f"1 or {self._count}",
                )
            times = self._batch // len(found)
            self._fixed[f"control_{number}"] = np.concatenate([found] * times)
        scales, starts, ends = (
            _each(value, count, name)
            for value, name in (
                (call.controlnet_conditioning_scale, "controlnet_conditioning_scale"),
                (call.control_guidance_start, "control_guidance_start"),
                (call.control_guidance_end, "control_guidance_end"),
            )
        )
        return list(zip(scales, starts, ends, strict=True))


def _each(value: float | Sequence[float], count: int, name: str) -> list[float]:
    found: Any = [value] * count if isinstance(value, int | float) else list(value)
    if len(found) != count:
        raise UsageError(f"{name} is given once, or for every ControlNet", expected=str(count))
    return [float(one) for one in found]


def scale_embedding(scale: float, width: int) -> Values:
    """float32 (width,): sines, then cosines of 1000 times the guidance scale (Meng et al.
    2210.03142), as in diffusers."""
    half = width // 2
    rates = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1)))
    angles = np.float32(scale * 1000.0) * rates
    made = np.concatenate([np.sin(angles), np.cos(angles)]).astype(np.float32)
    return np.pad(made, (0, width - 2 * half))
