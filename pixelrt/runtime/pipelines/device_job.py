"""Arrays in GPU memory that were handed in, as a batch of images and a place for results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pixelrt.errors import ImageError
from pixelrt.geometry import Size
from pixelrt.manifest import Manifest
from pixelrt.runtime.backends.base import ArraySession
from pixelrt.runtime.device.interop import DeviceArray
from pixelrt.runtime.device.planning import device_budget, device_planner
from pixelrt.runtime.device.replan import run_with_replan
from pixelrt.runtime.planning import RunOptions, padded_size
from pixelrt.spec import ImageSpec


@dataclass(frozen=True)
class DeviceJob:
    """``images`` (N, H, W, C) uint8; ``out`` (N, H', W', C') if one was given.

    ``result_shape``: in as many dimensions as the caller's image has.
    """

    images: DeviceArray
    out: DeviceArray | None
    result_shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.images.shape[0]

    def bytes_beside(self, spec: ImageSpec, padded: Size) -> int:
        """Device memory that is taken beside tiles and network: results and padded copies."""
        _, height, width, _ = self.images.shape
        each = 0 if padded == Size(height, width) else padded.pixels * spec.channels_in
        if self.out is None:
            each += height * width * spec.scale**2 * spec.channels_out
        return len(self) * each


def run_on_device(
    session: ArraySession,
    manifest: Manifest,
    image: Any,
    options: RunOptions,
    *,
    stream: int | None,
    out: Any,
    report: Callable[[str], None],
) -> DeviceArray:
    """``ImageModel.run_device`` on a session that can; ``report`` hears of smaller plans."""
    spec, chosen = manifest.image, replace(options, streams=1)
    job = device_job(session, image, out, spec, stream)
    size = Size(*job.images.shape[1:3])
    budget = device_budget(session, chosen)
    if chosen.max_memory is None:
        budget = max(0, budget - job.bytes_beside(spec, padded_size(size, manifest, chosen.pad)))
    result = run_with_replan(
        device_planner(size, len(job), manifest, chosen, session),
        lambda plan: session.run_device(job.images, plan, job.out, spec),
        budget,
        release=session.trim,
        report=report,
    )
    return replace(result, shape=job.result_shape)


def device_job(
    session: ArraySession, image: Any, out: Any, spec: ImageSpec, stream: int | None
) -> DeviceJob:
    """Views of what the caller gave. Raises ``ImageError`` saying what does not fit."""
    given = session.view(image, stream)
    images = replace(given, shape=_batch(given, spec))
    count, height, width, _ = images.shape
    dims = (count, spec.scale * height, spec.scale * width, spec.channels_out)
    shape = {2: dims[1:3], 3: dims[1:], 4: dims}[len(given.shape)]
    if out is None:
        return DeviceJob(images, None, shape)
    target = session.view(out, stream)
    if target.shape != shape:
        raise ImageError(
            "this array cannot take the result",
            found=f"{target.dtype} {target.shape}",
            expected=f"uint8 {shape}",
        )
    return DeviceJob(images, replace(target, shape=dims), shape)


def _batch(array: DeviceArray, spec: ImageSpec) -> tuple[int, ...]:
    """The dimensions as (N, H, W, C)."""
    channels, shape = spec.channels_in, array.shape
    grey = channels == 1 and spec.channels_out == 1
    if len(shape) == 2 and grey:
        shape = (*shape, 1)
    if len(shape) == 3:
        shape = (1, *shape)
    if len(shape) != 4 or shape[3] != channels or array.dtype != np.uint8:
        plain = ", (H, W)" if grey else ""
        raise ImageError(
            "this GPU array is no image for the network",
            found=f"{array.dtype} {array.shape}",
            expected=f"uint8 (N, H, W, {channels}), (H, W, {channels}){plain}",
            hint="host arrays may be of other types and channels",
        )
    return shape
