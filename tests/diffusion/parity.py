"""One call of a pipeline here and in diffusers: same weights, noise and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pixelrt.fidelity import compare
from tests.diffusion.conftest import Exported, torch_noise

PROMPT = "a photo of the red cat"
LATENTS = 1e-4
NOTHING: Mapping[str, Any] = {}

Made = tuple[NDArray[Any], list[NDArray[np.float32]]]
"""Pictures as levels, and the latents after every step."""


def theirs(
    pipe: Any, seed: int, *, prompt: Any = PROMPT, legacy: bool = False, **options: Any
) -> Made:
    """``legacy``: the pipeline tells of its steps as diffusers once did."""
    pipe.set_progress_bar_config(disable=True)
    steps: list[NDArray[np.float32]] = []

    def keep(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(values["latents"].numpy().copy())
        return values

    def keep_latents(_step: int, _time: Any, latents: torch.Tensor) -> None:
        steps.append(latents.numpy().copy())

    told = {"callback": keep_latents} if legacy else {"callback_on_step_end": keep}
    out = pipe(
        prompt,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        **told,
        **options,
    )
    return np.rint(out.images * 255), steps


def ours(made: Exported, mode: str, seed: int, *, prompt: Any = PROMPT, **options: Any) -> Made:
    steps: list[NDArray[np.float32]] = []
    with made.load() as pipeline:
        out = getattr(pipeline, mode)(
            prompt,
            noise=torch_noise(seed),
            callback=lambda info: steps.append(info.latents.copy()),
            **options,
        )
    return out.images, steps


def assert_same(wanted: Made, found: Made) -> None:
    (pictures, steps), (our_pictures, our_steps) = wanted, found
    assert len(our_steps) == len(steps)
    for want, got in zip(steps, our_steps, strict=True):
        assert np.abs(want - got).max() <= LATENTS * max(1.0, float(np.abs(want).max()))
    assert pictures.std() > 10  # a picture, not a plain
    assert compare(pictures, our_pictures, peak=255).psnr >= 60
