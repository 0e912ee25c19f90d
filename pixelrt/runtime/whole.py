"""Run a whole pipeline as the original library ran it, and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import (
    BackendError,
    BundleError,
    FidelityError,
    PixelrtError,
)
from pixelrt.fidelity import Comparison, compare, compare_relative
from pixelrt.manifest import PipelineReference
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.runtime.backends.base import Array, BackendInfo
from pixelrt.runtime.diffusion.load import PIPELINES
from pixelrt.runtime.networks import Networks
from pixelrt.runtime.stylegan.model import FAMILY as STYLEGAN
from pixelrt.runtime.stylegan.model import StyleGan2
from pixelrt.runtime.verify import Limits
from pixelrt.whole_run import WholeRun

STEP_MAX_ABS = 1e-4
"""Of float32, after every step, of the largest magnitude of the latents."""
MIN_PSNR = 60.0
"""Of the pictures in float32. A value that is off by less than a level may be rounded to the next
one: at 60 dB six in a hundred are."""
LOW_MIN_PSNR = 30.0
"""Of the pictures in lower precision; see ``docs/diffusion.md`` for what was measured."""

Made = tuple[Sequence[Array], NDArray[np.uint8]]
"""Latents after every step, and pictures."""


@dataclass(frozen=True, eq=False)
class WholeCheck:
    """How a reference of the whole pipeline came out.

    ``used``: what ran each network. ``steps``: latents after every step, in units of their
    largest expected magnitude; ``images``: the pictures, for a range of 1. ``problem``: why there
    is nothing to compare, in words.
    """

    name: str
    used: Mapping[str, BackendInfo]
    expected: WholeRun
    images: NDArray[np.uint8] | None
    steps: tuple[Comparison, ...]
    picture: Comparison | None
    problem: str = ""

    @property
    def precision(self) -> str:
        """Of all networks, where they have one; else of each."""
        return "/".join(sorted({info.precision for info in self.used.values()}))

    @property
    def step_limits(self) -> Limits:
        """Of lower precision there is none: pictures alone are held."""
        return Limits(STEP_MAX_ABS if self.precision == "float32" else np.inf, 0.0)

    @property
    def picture_limits(self) -> Limits:
        return Limits(np.inf, MIN_PSNR if self.precision == "float32" else LOW_MIN_PSNR)

    @property
    def worst_step(self) -> Comparison | None:
        return max(self.steps, key=lambda one: one.max_abs, default=None)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it failed; none where it passed."""
        if self.problem or self.picture is None:
            return (self.problem,)
        steps, pictures = self.step_limits, self.picture_limits
        found = [
            f"latents after step {number}: {one} ({steps})"
            for number, one in enumerate(self.steps, 1)
            if not steps.hold(one)
        ][:1]
        if not pictures.hold(self.picture):
            found.append(f"pictures: {self.picture} ({pictures})")
        return tuple(found)

    @property
    def passed(self) -> bool:
        return not self.reasons


def check_whole(
    bundle: PipelineBundle, networks: Networks, reference: PipelineReference
) -> WholeCheck:
    """Run a reference. Never raises on a mismatch, nor where the pipeline refuses what the
    original took; raises ``BackendError`` where a network cannot be run, ``BundleError`` where the
    reference is damaged or of a kind that this version does not run."""
    run = bundle.reference(reference)
    method = _method(bundle, reference)
    try:
        steps, images = method(bundle, networks, reference, run)
        return _compared(reference, networks, run, steps, images)
    except (BackendError, BundleError):
        raise
    except PixelrtError as exc:
        return WholeCheck(reference.name, dict(networks.used), run, None, (), None, str(exc))


def _compared(
    reference: PipelineReference,
    networks: Networks,
    run: WholeRun,
    steps: Sequence[Array],
    images: NDArray[np.uint8],
) -> WholeCheck:
    got = [*(one.shape for one in steps), images.shape]
    wanted = [*(one.shape for one in run.steps), run.images.shape]
    if got != wanted:
        raise FidelityError(
            "the pipeline gives other shapes than the original",
            found=", ".join(map(str, got)),
            expected=", ".join(map(str, wanted)),
        )
    pairs = zip(run.steps, steps, strict=True)
    return WholeCheck(
        reference.name,
        dict(networks.used),
        run,
        images,
        tuple(compare_relative(want, got) for want, got in pairs),
        compare(run.images / np.float32(255), images / np.float32(255)),
    )


def _method(bundle: PipelineBundle, reference: PipelineReference) -> Callable[..., Made]:
    family, mode = bundle.manifest.family, reference.mode
    if family in PIPELINES and mode in MODES:
        return _diffusion
    if family == STYLEGAN and mode == "images":
        return _stylegan
    raise BundleError(
        f"{bundle.root} has a reference that this version does not run",
        found=f"{reference.name}: mode {mode} of family {family}",
    )


MODES = ("text_to_image", "image_to_image", "inpaint", "upscale")
"""Methods of diffusion pipelines that are run."""


def _diffusion(
    bundle: PipelineBundle, networks: Networks, reference: PipelineReference, run: WholeRun
) -> Made:
    pipeline = PIPELINES[bundle.manifest.family](bundle, networks)
    noise, steps = _Noise(run.noise), list[Array]()
    call: dict[str, Any] = {**reference.options, **run.given, "noise": noise}
    made = getattr(pipeline, reference.mode)(
        **call, callback=lambda info: steps.append(info.latents.copy())
    )
    noise.check_end()
    return steps, made.images


class _Noise:
    """Gives the noise of a run again."""

    def __init__(self, values: Sequence[Array]) -> None:
        self._values = list(values)

    def __call__(self, shape: tuple[int, ...]) -> Array:
        if not self._values or self._values[0].shape != tuple(shape):
            there = f"{self._values[0].shape}" if self._values else "no more"
            raise FidelityError(
                "the pipeline draws other noise than the original",
                found=str(tuple(shape)),
                expected=there,
            )
        return self._values.pop(0)

    def check_end(self) -> None:
        if self._values:
            raise FidelityError(
                "the pipeline draws less noise than the original",
                expected=f"{len(self._values)} more, such as {self._values[0].shape}",
            )


def _stylegan(
    bundle: PipelineBundle, networks: Networks, reference: PipelineReference, run: WholeRun
) -> Made:
    del run
    pipeline = StyleGan2(bundle, networks)
    ws = pipeline.latents(**reference.options)
    return [ws], pipeline.images(ws)
