"""Which components a pipeline has, and the settings that its runtime needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pixelrt.errors import CheckpointError
from pixelrt.export.assemble import Plan
from pixelrt.export.diffusion import kandinsky
from pixelrt.export.diffusion.lora import LoraFile, merge, read_loras
from pixelrt.export.diffusion.original import Original, ways_of
from pixelrt.export.diffusion.parts import least_side, text_part, unet_part, vae_parts
from pixelrt.export.diffusion.source import (
    DiffusersFolder,
    digest_of,
    load_component,
    read_object,
    weights_of,
)
from pixelrt.export.diffusion.tokenizer import export_tokenizer
from pixelrt.export.diffusion.whole import examples
from pixelrt.export.part import Part
from pixelrt.export.weights import Weights, rounding
from pixelrt.manifest import Source
from pixelrt.pipeline_settings import DiffusionSettings, TextSettings, TimeIds

SCHEDULER = "scheduler_config.json"
SD, SDXL = "stable-diffusion", "stable-diffusion-xl"
LATENT_UPSCALER, UPSCALER = "latent-upscaler", "upscaler"

FAMILIES = {
    **dict.fromkeys(
        (
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "LatentConsistencyModelPipeline",
            "LatentConsistencyModelImg2ImgPipeline",
        ),
        SD,
    ),
    **dict.fromkeys(
        (
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetImg2ImgPipeline",
        ),
        SDXL,
    ),
}
UPSCALERS = {
    "StableDiffusionLatentUpscalePipeline": LATENT_UPSCALER,
    "StableDiffusionUpscalePipeline": UPSCALER,
}
"""Pipelines of diffusers, and what runs them here."""


def plan_of(
    folder: DiffusersFolder,
    controlnets: Sequence[Path] = (),
    loras: Sequence[LoraFile] = (),
    *,
    weights: Weights = "auto",
) -> Plan:
    """``controlnets``: folders of ControlNets to put into the UNet's graph, beside those that
    the pipeline has. ``loras``: files to merge into the weights, before they are rounded to
    ``weights``. Raises ``CheckpointError`` for what cannot be exported."""
    family = FAMILIES.get(folder.pipeline)
    if family is None:
        raise CheckpointError(
            f"{folder.name} is a pipeline that pixelrt does not know",
            found=folder.pipeline,
            expected=", ".join(sorted((*FAMILIES, *UPSCALERS, *kandinsky.PIPELINES))),
        )
    encoders = ["text_encoder", "text_encoder_2"] if family == SDXL else ["text_encoder"]
    encoders = [name for name in encoders if folder.class_of(name)]
    if not encoders:
        raise CheckpointError(f"{folder.name} has no text encoder", expected="text_encoder")
    assets: dict[str, bytes] = {}
    text = [
        text_settings(folder, name, assets, pooled=family == SDXL and _projects(folder, name))
        for name in encoders
    ]
    nets = [*_own_controlnets(folder), *controlnets]
    plain, unet = plain_settings(folder, text), folder.config("unet")
    scale = plain.latent_scale
    for net in nets:
        _check_controlnet(net, unet, scale)
    if family == SDXL:  # diffusers' other pipelines do not look at them
        _check_latents(folder)
    time_ids: TimeIds = _time_ids(folder, unet) if family == SDXL else ""
    settings = replace(
        plain,
        controls=len(nets),
        time_ids=time_ids,
        guidance_width=int(unet.get("time_cond_proj_dim") or 0),
        empty_is_zero=bool(folder.index.get("force_zeros_for_empty_prompt", False)),
    )

    updates = read_loras(loras, folder)

    def merged(name: str) -> Any:
        model = folder.load(name)
        merge(model, updates.get(name, ()))
        return model

    def controlnet(path: str) -> Any:
        return load_component("diffusers", "ControlNetModel", Path(path))

    load, load_controlnet = rounding(merged, weights), rounding(controlnet, weights)

    def controls() -> list[Any]:
        return [load_controlnet(str(path)) for path in nets]

    def parts() -> Iterator[Part]:
        for name, one in zip(encoders, text, strict=True):
            yield text_part(
                name,
                load(name),
                length=one.tokenizer.model_max_length,
                layer=2 if family == SDXL else 0,
                normed=family == SD,
                pooled=one.pooled,
            )
        yield unet_part(load("unet"), controls(), scale, _COUNTS[time_ids])
        yield from vae_parts(load("vae"), scale)

    files = [*folder.weights(), *(f for net in controlnets for f in weights_of(net))]
    files += [one.path for one in loras]
    title = " + ".join(
        [Path(folder.name).name, *(f"{one.path.name}:{one.scale:g}" for one in loras)]
    )
    source = Source("checkpoint", title, digest_of(files))
    choices = [folder.choices(), [one.scale for one in loras]]
    libraries = ("diffusers", "tokenizers")
    original = Original(folder, settings, load, controls)
    return Plan(
        family,
        folder.pipeline,
        source,
        settings,
        assets,
        parts,
        libraries,
        choices,
        lambda: examples(ways_of(original)),
        weights,
    )


_COUNTS: dict[TimeIds, int] = {"": 0, "base": 6, "refiner": 5}


def _projects(folder: DiffusersFolder, name: str) -> bool:
    return folder.class_of(name) == "CLIPTextModelWithProjection"


def text_settings(
    folder: DiffusersFolder, name: str, assets: dict[str, bytes], *, pooled: bool
) -> TextSettings:
    """Of the text encoder ``name``, whose tokenizer is added to ``assets``."""
    number = name.removeprefix("text_encoder")
    config = folder.config(name)
    data, settings = export_tokenizer(
        folder.tokenizer(f"tokenizer{number}"),
        max_positions=config.get("max_position_embeddings", 77),
        vocab_size=config.get("vocab_size"),
    )
    asset = f"tokenizer{number}.json"
    assets[asset] = data
    return TextSettings(network=name, asset=asset, tokenizer=settings, pooled=pooled)


def plain_settings(folder: DiffusersFolder, text: list[TextSettings]) -> DiffusionSettings:
    """What every UNet with these text encoders and a VAE is told of; pictures are as large as its
    latents. Raises ``CheckpointError`` where they do not belong together."""
    unet, vae = folder.config("unet"), folder.config("vae")
    _check_text_width(folder, unet, [one.network for one in text])
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    side = unet["sample_size"]
    return DiffusionSettings(
        scheduler=folder.config("scheduler", SCHEDULER),
        latent_channels=int(vae["latent_channels"]),
        latent_scale=scale,
        scaling=float(vae.get("scaling_factor", 0.18215)),
        sample_size=int(side if isinstance(side, int) else max(side)),
        multiple=scale,
        minimum=scale * least_side(len(unet["block_out_channels"])),
        unet_channels=int(unet["in_channels"]),
        text=text,
        safety_checker=bool(folder.class_of("safety_checker")),
    )


def _own_controlnets(folder: DiffusersFolder) -> list[Path]:
    if not folder.class_of("controlnet"):
        return []
    place = folder.path / "controlnet"
    # Several are saved as a folder of folders: controlnet, controlnet_1, ...
    return (
        [place]
        if folder.class_of("controlnet") == "ControlNetModel"
        else sorted(path.parent for path in folder.path.glob("controlnet*/config.json"))
    )


def _check_controlnet(net: Path, unet: dict[str, Any], scale: int) -> None:
    """``scale``: pixels for each latent."""
    config = read_object(net / "config.json")
    if config.get("global_pool_conditions"):
        raise CheckpointError(
            f"{net} is a ControlNet that guides by the whole of its picture",
            found="global_pool_conditions in config.json",
            expected="one that guides each place by itself",
        )
    found, wanted = config.get("cross_attention_dim"), unet["cross_attention_dim"]
    if found != wanted:
        raise CheckpointError(
            f"{net}: this ControlNet and the UNet do not go together",
            found=f"cross_attention_dim {found}",
            expected=str(wanted),
        )
    pixels = 2 ** (len(config.get("conditioning_embedding_out_channels") or range(4)) - 1)
    if pixels != scale:
        raise CheckpointError(
            f"{net}: this ControlNet and the VAE do not go together",
            found=f"a picture of {pixels} pixels to a latent",
            expected=str(scale),
        )


def _check_text_width(folder: DiffusersFolder, unet: dict[str, Any], encoders: list[str]) -> None:
    widths = [int(folder.config(name)["hidden_size"]) for name in encoders]
    wanted = unet["cross_attention_dim"]
    if sum(widths) != wanted:
        raise CheckpointError(
            f"{folder.name}: the text encoders do not belong to this UNet",
            found=f"{' and '.join(encoders)} of width {' + '.join(map(str, widths))}",
            expected=f"{wanted} in all, which unet/config.json names as cross_attention_dim",
        )


def _check_latents(folder: DiffusersFolder) -> None:
    vae = folder.config("vae")
    if vae.get("latents_mean") is not None and vae.get("latents_std") is not None:
        raise CheckpointError(
            f"{folder.name}: the VAE moves and scales every channel of the latents",
            found="latents_mean and latents_std in vae/config.json",
            expected="a VAE with a scaling_factor alone",
        )


def _time_ids(folder: DiffusersFolder, unet: dict[str, Any]) -> TimeIds:
    """Of the numbers that the UNet takes beside the pooled text: six, or the refiner's five."""
    pooled = int(folder.config("text_encoder_2")["projection_dim"])
    width = int(unet["projection_class_embeddings_input_dim"])
    count, rest = divmod(width - pooled, int(unet["addition_time_embed_dim"]))
    for kind, wanted in _COUNTS.items():
        if rest == 0 and count == wanted and kind:
            return kind
    raise CheckpointError(
        f"{folder.name}: the UNet does not take this text encoder's pooled output",
        found=f"projection_class_embeddings_input_dim {width}, projection_dim {pooled}",
    )
