"""Which networks a checkpoint in the layout of CompVis and Stability AI holds, and what diffusers'
folders would say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pixelrt.errors import CheckpointError
from pixelrt.export.diffusion.original_shapes import (
    clip_config,
    open_clip_config,
    unet_config,
    vae_config,
)
from pixelrt.export.pickle_machine import shown

UNET, VAE = "model.diffusion_model.", "first_stage_model."


@dataclass(frozen=True)
class Encoder:
    """Where the weights of a text encoder are, and whose layout they have."""

    part: str
    prefix: str
    open_clip: bool


@dataclass(frozen=True)
class Layout:
    """One of the known compositions of a file."""

    title: str
    encoders: tuple[Encoder, ...]
    sdxl: bool


LAYOUTS = (
    Layout(
        "SDXL",
        (
            Encoder("text_encoder", "conditioner.embedders.0.transformer.", False),
            Encoder("text_encoder_2", "conditioner.embedders.1.model.", True),
        ),
        True,
    ),
    Layout(
        "SDXL refiner", (Encoder("text_encoder_2", "conditioner.embedders.0.model.", True),), True
    ),
    Layout("SD 2.x", (Encoder("text_encoder", "cond_stage_model.model.", True),), False),
    Layout("SD 1.x", (Encoder("text_encoder", "cond_stage_model.transformer.", False),), False),
)

_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
"""What all of them were trained with; Rombach et al. 2022, arXiv:2112.10752, and their
configurations."""
_SCALING, _SCALING_XL = 0.18215, 0.13025


def layout_of(tensors: Mapping[str, Tensor], source: str) -> Layout:
    for layout in LAYOUTS:
        if all(any(name.startswith(e.prefix) for name in tensors) for e in layout.encoders):
            return layout
    heads = sorted({".".join(name.split(".")[:2]) for name in tensors})
    raise CheckpointError(
        f"{source}: no text encoder of a known layout",
        found=", ".join(map(shown, heads[:10])),
        expected="; or ".join(
            f"{' and '.join(e.prefix + '*' for e in one.encoders)} ({one.title})" for one in LAYOUTS
        ),
    )


def configs_of(
    tensors: Mapping[str, Tensor], layout: Layout, given: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    unet = unet_config(below(tensors, UNET), given.get("unet", {}))
    scaling = _SCALING_XL if layout.sdxl else _SCALING
    vae = vae_config(below(tensors, VAE), {"scaling_factor": scaling, **given.get("vae", {})})
    configs = {"unet": unet, "vae": vae}
    for one in layout.encoders:
        weights, more = below(tensors, one.prefix), given.get(one.part, {})
        if one.open_clip:
            found = open_clip_config(weights, more, one.part, penultimate=not layout.sdxl)
        else:
            found = clip_config(weights, more, one.part)
        configs[one.part] = found
    if layout.sdxl:
        _time_embedding(unet, configs, len(layout.encoders))
    elif "addition_embed_type" in unet:
        raise CheckpointError(
            "the UNet takes more than text and latents",
            found=f"{UNET}label_emb (unCLIP, or another network)",
            expected="SD 1.x, SD 2.x, SDXL or its refiner",
        )
    return configs


def _time_embedding(unet: dict[str, Any], configs: Mapping[str, Any], encoders: int) -> None:
    """The base is told six numbers, the refiner five; each is embedded."""
    width = unet.get("projection_class_embeddings_input_dim", 0)
    pooled, numbers = configs["text_encoder_2"]["projection_dim"], 6 if encoders == 2 else 5
    if width <= pooled or (width - pooled) % numbers:
        raise CheckpointError(
            "the UNet does not belong to these text encoders",
            found=f"{width} inputs of {UNET}label_emb, {pooled} of the pooled text",
            expected=f"{pooled} and a multiple of {numbers} more",
        )
    unet.setdefault("addition_time_embed_dim", (width - pooled) // numbers)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def index_of(layout: Layout, unet: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What model_index.json would hold."""
    channels = unet["in_channels"]
    if channels not in (4, 9):
        raise CheckpointError(
            f"{source}: the UNet's input is of a pipeline that pixelrt does not know",
            found=f"{channels} channels",
            expected="4 (latents) or 9 (latents, mask and masked picture)",
        )
    refiner = len(layout.encoders) == 1
    kind = "Inpaint" if channels == 9 else "Img2Img" if layout.sdxl and refiner else ""
    name = "StableDiffusionXL" if layout.sdxl else "StableDiffusion"
    index: dict[str, Any] = {
        "_class_name": f"{name}{kind}Pipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "force_zeros_for_empty_prompt": layout.sdxl and not refiner,
    }
    for one in layout.encoders:
        projected = one.part == "text_encoder_2"
        kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        index[one.part] = ["transformers", kind]
    return index


def scheduler_of(layout: Layout, prediction: str, *, zero_snr: bool) -> dict[str, Any]:
    """As in the published folders of diffusers."""
    if layout.sdxl:
        kind: dict[str, Any] = {
            "_class_name": "EulerDiscreteScheduler",
            "interpolation_type": "linear",
            "timestep_spacing": "leading",
        }
    elif prediction == "v_prediction":
        kind = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
    else:
        kind = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
    if zero_snr:
        kind["rescale_betas_zero_snr"] = True
    return {**_SCHEDULER, **kind, "prediction_type": prediction}


def sample_size(layout: Layout, prediction: str) -> int:
    """Side of the latents that it was trained on."""
    if layout.sdxl:
        return 128
    return 96 if prediction == "v_prediction" and layout.title == "SD 2.x" else 64
