"""The combined pipelines of diffusers that a bundle of Kandinsky 2.2 stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

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
from pixelrt.pipeline_settings import KandinskySettings

Load = Callable[[str], Any]

CLASSES = {
    "text_to_image": "KandinskyV22CombinedPipeline",
    "image_to_image": "KandinskyV22Img2ImgCombinedPipeline",
}


def kandinsky_ways(
    load: Load, load_prior: Load, tokenizer: Path, settings: KandinskySettings
) -> Iterator[Way]:
    """Both modes on the smallest square: of pictures, diffusers' image processor is given width
    and height the wrong way round. ``load``: components of the decoder by name, ``load_prior``
    of the prior; ``tokenizer``: the folder of the prior's."""
    components = cache(partial(_components, load, load_prior, tokenizer, settings))
    side = settings.minimum
    options: dict[str, Any] = {
        "prompt": PROMPT,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "prior_num_inference_steps": STEPS,
        "prior_guidance_scale": GUIDANCE,
        "height": side,
        "width": side,
    }
    yield Way("text_to_image", partial(_pipe, "text_to_image", components), options, {}, {})
    options = {**options, "negative_prompt": NEGATIVE, "strength": STRENGTH}
    image = {"image": photo(0, Size(side, side))}
    yield Way("image_to_image", partial(_pipe, "image_to_image", components), options, image, {})


def _components(
    load: Load, load_prior: Load, tokenizer: Path, settings: KandinskySettings
) -> dict[str, Any]:
    parts = ("prior", "image_encoder", "text_encoder")
    return {
        "unet": load("unet"),
        "movq": load("movq"),
        **{f"prior_{name}": load_prior(name) for name in parts},
        "prior_tokenizer": clip_tokenizer(tokenizer, settings.text),
        "prior_image_processor": None,  # prompts alone are embedded
        "scheduler": make_scheduler(settings.scheduler),
        "prior_scheduler": make_scheduler(settings.prior_scheduler),
    }


def _pipe(mode: str, components: Callable[[], Mapping[str, Any]]) -> Any:
    import diffusers

    return getattr(diffusers, CLASSES[mode])(**components())
