"""Stable Diffusion's upscalers: their components, and the settings that their runtime needs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pixelrt.errors import CheckpointError
from pixelrt.export.assemble import Plan
from pixelrt.export.diffusion.original import Original, components_of
from pixelrt.export.diffusion.parts import (
    k_unet_part,
    least_side,
    text_part,
    unet_part,
    vae_parts,
)
from pixelrt.export.diffusion.recipes import (
    LATENT_UPSCALER,
    SCHEDULER,
    UPSCALERS,
    plain_settings,
    text_settings,
)
from pixelrt.export.diffusion.source import DiffusersFolder, digest_of
from pixelrt.export.diffusion.whole import (
    GUIDANCE,
    NEGATIVE,
    PROMPT,
    STEPS,
    Way,
    examples,
    make_scheduler,
)
from pixelrt.export.part import Part
from pixelrt.export.samples import photo
from pixelrt.export.weights import Weights, rounding
from pixelrt.geometry import Size
from pixelrt.manifest import Source
from pixelrt.pipeline_settings import DiffusionSettings

NOISE_TOLD = 128
"""Numbers that the x2 upscaler's UNet is told beside the pooled text."""
PIXEL_SCALING = 0.08333
"""Of the x4 upscaler's VAE: diffusers takes it whatever the configuration says."""
NOISE_LEVEL = 20


def upscaler_plan(folder: DiffusersFolder, *, weights: Weights = "auto") -> Plan:
    """``weights``: what they are rounded to. Raises ``CheckpointError`` for what cannot be
    exported."""
    family = UPSCALERS[folder.pipeline]
    assets: dict[str, bytes] = {}
    text = text_settings(folder, "text_encoder", assets, pooled=family == LATENT_UPSCALER)
    plain, unet = plain_settings(folder, [text]), folder.config("unet")
    scale, levels = plain.latent_scale, len(unet["block_out_channels"])
    if family == LATENT_UPSCALER:
        _check_latent(folder, plain, unet)
        # Latents are doubled before the UNet halves them at each level but the last.
        multiple = scale * max(1, 2 ** (levels - 2))
        settings = replace(plain, multiple=multiple, minimum=2 * multiple)
    else:
        _check_pixel(folder, plain, unet)
        settings = replace(
            plain,
            scaling=PIXEL_SCALING,
            minimum=least_side(levels),
            low_scheduler=folder.config("low_res_scheduler", SCHEDULER),
            max_noise_level=int(folder.index.get("max_noise_level", 350)),
        )
    load = rounding(folder.load, weights)

    def parts() -> Iterator[Part]:
        yield text_part(
            "text_encoder",
            load("text_encoder"),
            length=text.tokenizer.model_max_length,
            layer=1 if family == LATENT_UPSCALER else 0,
            normed=False,
            pooled=text.pooled,
        )
        network = load("unet")
        yield k_unet_part(network) if family == LATENT_UPSCALER else unet_part(network, [], scale)
        encoder, decoder = vae_parts(load("vae"), scale)
        # The small picture goes into the x4 upscaler's UNet as it is.
        yield from (encoder, decoder) if family == LATENT_UPSCALER else (decoder,)

    source = Source("checkpoint", Path(folder.name).name, digest_of(folder.weights()))
    return Plan(
        family,
        folder.pipeline,
        source,
        settings,
        assets,
        parts,
        ("diffusers", "tokenizers"),
        folder.choices(),
        lambda: examples([_way(Original(folder, settings, load, list))]),
        weights,
    )


def _way(original: Original) -> Way:
    """The pipeline on the smallest picture of its grid, a little wider than high."""
    settings = original.settings
    step = settings.multiple
    side = -(-settings.minimum // step) * step
    options: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
    }
    if settings.low_scheduler:
        options["noise_level"] = NOISE_LEVEL
    picture = photo(0, Size(side, side + step))
    return Way("upscale", partial(_pipe, original), options, {"image": picture}, {})


def _pipe(original: Original) -> Any:
    import diffusers

    settings = original.settings
    given = {**components_of(original), "scheduler": make_scheduler(settings.scheduler)}
    if settings.low_scheduler:
        given["low_res_scheduler"] = make_scheduler(settings.low_scheduler)
        given["max_noise_level"] = settings.max_noise_level
    return getattr(diffusers, original.folder.pipeline)(**given)


def _check_latent(folder: DiffusersFolder, plain: DiffusionSettings, unet: dict[str, Any]) -> None:
    _check_channels(folder, plain, 2 * plain.latent_channels)
    width = int(folder.config("text_encoder")["hidden_size"]) + NOISE_TOLD
    told = unet.get("time_cond_proj_dim")
    if told != width:
        raise CheckpointError(
            f"{folder.name}: the UNet does not take this text encoder's pooled output",
            found=f"time_cond_proj_dim {told}",
            expected=f"{width}: hidden_size and {NOISE_TOLD} numbers more",
        )
    kinds = {*unet["down_block_types"], *unet["up_block_types"]}
    if not all(kind.startswith("K") for kind in kinds):
        raise CheckpointError(
            f"{folder.name}: the UNet is not that of a latent upscaler",
            found=", ".join(sorted(kinds)),
            expected="blocks of k-diffusion: KDownBlock2D, KCrossAttnDownBlock2D ...",
        )
    scheduler = plain.scheduler.get("_class_name")
    if scheduler != "EulerDiscreteScheduler":
        raise CheckpointError(
            f"{folder.name}: a latent upscaler goes by sigmas",
            found=str(scheduler),
            expected="EulerDiscreteScheduler",
        )


def _check_pixel(folder: DiffusersFolder, plain: DiffusionSettings, unet: dict[str, Any]) -> None:
    _check_channels(folder, plain, plain.latent_channels + 3)
    if not unet.get("num_class_embeds"):
        raise CheckpointError(
            f"{folder.name}: the UNet is not told of the noise in the small picture",
            found="no num_class_embeds in unet/config.json",
        )


def _check_channels(folder: DiffusersFolder, plain: DiffusionSettings, wanted: int) -> None:
    if plain.unet_channels != wanted:
        raise CheckpointError(
            f"{folder.name}: the UNet does not take the latents and what is enlarged",
            found=f"{plain.unet_channels} channels",
            expected=str(wanted),
        )
