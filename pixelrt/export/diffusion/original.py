"""The pipelines of diffusers that the bundles of Stable Diffusion stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.export.diffusion.source import DiffusersFolder
from pixelrt.export.diffusion.whole import (
    GUIDANCE,
    NEGATIVE,
    PROMPT,
    STEPS,
    STRENGTH,
    Way,
    clip_tokenizer,
    make_scheduler,
)
from pixelrt.export.samples import photo
from pixelrt.geometry import Size
from pixelrt.pipeline_settings import DiffusionSettings

INPAINTING_CHANNELS = 9
SUFFIXES = {"text_to_image": "", "image_to_image": "Img2Img", "inpaint": "Inpaint"}
CONSISTENCY = "LatentConsistencyModel"
DIVISOR = 8
"""Of sides, which diffusers asks for whatever the VAE is."""


@dataclass(frozen=True)
class Original:
    """A pipeline as it stands in ``folder``. ``load``: a component by name, with what is merged
    into it, as it is stored; ``controls``: loads the ControlNets of the bundle, in their order."""

    folder: DiffusersFolder
    settings: DiffusionSettings
    load: Callable[[str], Any]
    controls: Callable[[], list[Any]]

    @property
    def xl(self) -> bool:
        return bool(self.settings.time_ids)

    def modes(self) -> tuple[str, ...]:
        """What this UNet is made for."""
        if self.settings.unet_channels == INPAINTING_CHANNELS:
            return ("inpaint",)
        if self.settings.time_ids == "refiner":
            return ("image_to_image",)
        return ("text_to_image", "image_to_image")

    def class_of(self, mode: str) -> str:
        """diffusers' name for this pipeline in a mode."""
        if self.folder.pipeline.startswith(CONSISTENCY) and mode != "inpaint":
            return f"{CONSISTENCY}{SUFFIXES[mode]}Pipeline"
        name = "StableDiffusionXL" if self.xl else "StableDiffusion"
        control = "ControlNet" if self.settings.controls else ""
        return f"{name}{control}{SUFFIXES[mode]}Pipeline"


def ways_of(original: Original) -> Iterator[Way]:
    """The modes of a pipeline, on the smallest size of its grid, a little wider than high."""
    components = cache(partial(components_of, original))
    settings = original.settings
    size = _size(settings)
    for mode in original.modes():
        options: dict[str, Any] = {
            "prompt": PROMPT,
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE,
        }
        if mode != "text_to_image":
            options["strength"] = STRENGTH
            if not original.class_of(mode).startswith(CONSISTENCY):
                options["negative_prompt"] = NEGATIVE
        if mode != "image_to_image":
            options |= {"height": size.height, "width": size.width}
        if settings.controls:
            # diffusers has 0.8 or 1, by mode
            options["controlnet_conditioning_scale"] = 1.0
        arrays = _arrays(mode, settings.controls, size)
        renamed = {"control_images": "image" if mode == "text_to_image" else "control_image"}
        make = partial(_pipe, original, mode, components)
        yield Way(mode, make, options, arrays, renamed)


def _size(settings: DiffusionSettings) -> Size:
    step = math.lcm(settings.multiple, DIVISOR)
    side = -(-settings.minimum // step) * step
    return Size(side, side + step)


def _arrays(mode: str, controls: int, size: Size) -> dict[str, NDArray[np.uint8]]:
    arrays = {}
    if mode != "text_to_image":
        arrays["image"] = photo(0, size)
    if mode == "inpaint":
        columns = np.indices((size.height, size.width))[1]
        arrays["mask_image"] = np.where(columns * 2 > size.width, 255, 0).astype(np.uint8)[
            ..., None
        ]
    if controls:
        arrays["control_images"] = np.stack([photo(1, size)] * controls)
    return arrays


def components_of(original: Original) -> dict[str, Any]:
    """All that diffusers needs, in memory at once."""
    made: dict[str, Any] = {"vae": original.load("vae"), "unet": original.load("unet")}
    if original.xl:
        # The refiner has the second alone.
        made |= {"text_encoder": None, "tokenizer": None}
    for one in original.settings.text:
        name = one.network.replace("text_encoder", "tokenizer")
        made[one.network] = original.load(one.network)
        made[name] = clip_tokenizer(original.folder.tokenizer(name), one)
    if original.settings.controls:
        nets = original.controls()
        made["controlnet"] = nets[0] if len(nets) == 1 else nets
    return made


def _pipe(original: Original, mode: str, components: Callable[[], Mapping[str, Any]]) -> Any:
    import diffusers

    settings, index = original.settings, original.folder.index
    given: dict[str, Any] = {**components(), "scheduler": make_scheduler(settings.scheduler)}
    if original.xl:
        given["force_zeros_for_empty_prompt"] = settings.empty_is_zero
        given["add_watermarker"] = False
        if mode != "text_to_image":
            given["requires_aesthetics_score"] = bool(index.get("requires_aesthetics_score", False))
    else:
        given |= {"safety_checker": None, "feature_extractor": None}
        given["requires_safety_checker"] = False
    return getattr(diffusers, original.class_of(mode))(**given)
