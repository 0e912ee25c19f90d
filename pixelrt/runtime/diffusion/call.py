"""What a user asks of a diffusion pipeline: diffusers' names and meanings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import UsageError
from pixelrt.runtime.diffusion.schedulers import NAMES
from pixelrt.runtime.diffusion.schedulers.base import Noise
from pixelrt.runtime.diffusion.text.batch import LongPrompts

Latents = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class StepInfo:
    """After a step. ``predicted``: the latents without noise, as seen now; ``preview`` decodes
    them to (N, H, W, 3) uint8, which costs a run of the decoder."""

    number: int
    steps: int
    timestep: float
    latents: Latents
    predicted: Latents
    preview: Callable[[], Pixels]


@dataclass(frozen=True, eq=False)
class Generated:
    """``images`` (N, H, W, 3) uint8, or ``None`` where latents were asked for; ``latents``
    float32 (N, c, h, w), for the next pipeline; ``seed``: what gives them again; ``notes``."""

    images: Pixels | None
    latents: Latents
    seed: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class CommonCall:
    """Options of all pipelines.

    ``prompt``, ``negative_prompt``: a text, or as many as there are pictures to begin with; the
    second is used where ``guidance_scale`` is over 1. ``num_images_per_prompt``: of each prompt.
    ``height``, ``width``: in pixels; the network's own size, or the picture's, where left out.
    ``seed``: of a numpy generator (PCG64); a random one where left out. ``noise``: draws noise in
    its place, (shape) to float32. ``latents``: the initial noise, standard normal, (N, c, h, w).
    ``scheduler``: a name of ``schedulers.NAMES`` in place of the bundle's own. ``output_type``:
    ``latent`` leaves out the decoder. ``callback``: called after every step.
    """

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    num_images_per_prompt: int = 1
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    scheduler: str | None = None
    seed: int | None = None
    noise: Noise | None = None
    latents: Latents | None = None
    output_type: Literal["image", "latent"] = "image"
    callback: Callable[[StepInfo], None] | None = None

    def __post_init__(self) -> None:
        if self.num_images_per_prompt < 1:
            raise UsageError(
                "num_images_per_prompt must be at least 1", found=str(self.num_images_per_prompt)
            )
        if self.output_type not in ("image", "latent"):
            raise UsageError(f"output_type is {self.output_type!r}", expected="image, latent")
        if self.scheduler is not None and self.scheduler not in NAMES:
            raise UsageError(
                f"there is no scheduler {self.scheduler!r}", expected=", ".join(sorted(NAMES))
            )
        if self.seed is not None and self.seed < 0:
            raise UsageError("a seed is not negative", found=str(self.seed))


@dataclass(frozen=True, kw_only=True, eq=False)
class Call(CommonCall):
    """Options of Stable Diffusion in all modes, beside those of ``CommonCall``.

    ``prompt_2``, ``negative_prompt_2``: for SDXL's second encoder; the first's where left out.
    ``prompt_embeds``, ``pooled_prompt_embeds`` and their negatives: ready-made, float32
    (B, T, C) and (B, P), in place of texts. ``eta``: of DDIM. ``denoising_start``,
    ``denoising_end``: the share of the schedule that another pipeline did or will do.
    ``long_prompts``, ``weighting``: see ``text.batch``. ``control_images``: for every ControlNet a
    picture or (N, H, W, 3); with ``controlnet_conditioning_scale``, ``control_guidance_start``
    and ``_end`` for all or each; ``guess_mode`` is refused. ``original_size``, ``target_size``
    (height, width), ``crops_coords_top_left``, ``aesthetic_score`` and its negative: what SDXL is
    told.
    """

    prompt_2: str | Sequence[str] | None = None
    negative_prompt_2: str | Sequence[str] | None = None
    prompt_embeds: Latents | None = None
    negative_prompt_embeds: Latents | None = None
    pooled_prompt_embeds: Latents | None = None
    negative_pooled_prompt_embeds: Latents | None = None
    guidance_rescale: float = 0.0
    eta: float = 0.0
    denoising_start: float | None = None
    denoising_end: float | None = None
    long_prompts: LongPrompts = "chunk"
    weighting: bool = True
    control_images: Sequence[Any] = ()
    controlnet_conditioning_scale: float | Sequence[float] = 1.0
    control_guidance_start: float | Sequence[float] = 0.0
    control_guidance_end: float | Sequence[float] = 1.0
    guess_mode: bool = False
    original_size: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] = (0, 0)
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guess_mode:
            raise UsageError(
                "guess mode is not there: the ControlNets of a bundle are part of its UNet's graph",
                found="guess_mode=True",
                hint="controlnet_conditioning_scale says how much they guide",
            )


SomeCall = TypeVar("SomeCall", bound=CommonCall)


def call_of(options: dict[str, Any], foreign: Collection[str] = ()) -> Call:
    """Options as a ``Call``. ``foreign``: those that the pipeline does not have.

    Raises ``UsageError`` naming what there is no option for.
    """
    return options_as(Call, options, foreign)


def options_as(
    kind: type[SomeCall], options: dict[str, Any], foreign: Collection[str] = ()
) -> SomeCall:
    """As ``call_of``, for the calls of another pipeline."""
    known = {field.name for field in fields(kind)} - set(foreign)
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(
            f"there is no option {', '.join(unknown)}", expected=", ".join(sorted(known))
        )
    return kind(**options)
