"""Small pipelines of diffusers' own classes, with seeded random weights, saved as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests import clip_tokenizers


def tokenizer(folder: Path, length: int = 77) -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's form that knows a few words; see ``clip_tokenizers``."""
    return CLIPTokenizer.from_pretrained(
        clip_tokenizers.write_folder(folder, model_max_length=length)
    )


def text_config(words: int, width: int = 32, **more: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        projection_dim=width,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
        **more,
    )


def vae(levels: int = 4, **more: Any) -> AutoencoderKL:
    """Of a picture, each latent is ``2 ** (levels - 1)`` pixels on a side."""
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=[16, 32, 32, 32][:levels],
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        **more,
    )


def controlnet(network: UNet2DConditionModel, seed: int) -> ControlNetModel:
    """For pictures of two pixels to a latent. What training would begin with zeros is random."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(
        network, conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False
    )
    for last in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(last.weight, std=0.2)
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=0.2)
    return net


def unet(text: int = 32, **more: Any) -> UNet2DConditionModel:
    torch.manual_seed(1)
    config: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": text,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**config, **more})


SD15_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


XL_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}

NO_CHECKER = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}


def _saved(folder: Path, pipe: Any) -> Any:
    pipe.save_pretrained(folder / "pipe")
    return pipe


def _parts(folder: Path, network: Any, levels: int = 2) -> dict[str, Any]:
    """Tokenizer, text encoder, UNet and VAE as Stable Diffusion has them."""
    words = tokenizer(folder / "made")
    torch.manual_seed(0)
    encoder = CLIPTextModel(text_config(len(words)))
    return {"vae": vae(levels), "text_encoder": encoder, "tokenizer": words, "unet": network}


def stable_diffusion(folder: Path, **scheduler: Any) -> StableDiffusionPipeline:
    """The classes of Stable Diffusion 1.5, small; also saved at ``folder``."""
    parts = _parts(folder, unet(), levels=4)
    solver = DDIMScheduler(**{**SD15_SCHEDULER, **scheduler})
    return _saved(folder, StableDiffusionPipeline(**parts, scheduler=solver, **NO_CHECKER))


def controlled(folder: Path) -> StableDiffusionControlNetPipeline:
    """Stable Diffusion 2.x, which predicts velocities, with two ControlNets."""
    network = unet(use_linear_projection=True, attention_head_dim=(2, 4))
    return _saved(
        folder,
        StableDiffusionControlNetPipeline(
            **_parts(folder, network),
            controlnet=[controlnet(network, 4), controlnet(network, 5)],
            scheduler=DDIMScheduler(**SD15_SCHEDULER, prediction_type="v_prediction"),
            **NO_CHECKER,
        ),
    )


def inpainting(folder: Path) -> StableDiffusionInpaintPipeline:
    """A UNet that is shown the mask and the masked picture."""
    solver = DDIMScheduler(**SD15_SCHEDULER)
    parts = _parts(folder, unet(in_channels=9))
    return _saved(folder, StableDiffusionInpaintPipeline(**parts, scheduler=solver, **NO_CHECKER))


def latent_consistency(folder: Path) -> LatentConsistencyModelPipeline:
    """A UNet that is told the guidance scale."""
    parts = _parts(folder, unet(time_cond_proj_dim=16))
    return _saved(
        folder, LatentConsistencyModelPipeline(**parts, scheduler=LCMScheduler(), **NO_CHECKER)
    )


def _xl_unet(text: int, numbers: int, **more: Any) -> UNet2DConditionModel:
    """``numbers``: how many it is told of sizes."""
    return unet(
        text,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=numbers * 8 + 32,
        **more,
    )


def _xl_parts(folder: Path, network: Any, levels: int) -> dict[str, Any]:
    parts = _parts(folder, network, levels)
    words = parts["tokenizer"]
    second = CLIPTextModelWithProjection(text_config(len(words), hidden_act="gelu"))
    return {**parts, "text_encoder_2": second, "tokenizer_2": words}


def stable_diffusion_xl(folder: Path) -> StableDiffusionXLPipeline:
    """The classes of SDXL's base, small; also saved at ``folder``."""
    parts = _xl_parts(folder, _xl_unet(64, 6), levels=4)
    solver = DDIMScheduler(**SD15_SCHEDULER)
    return _saved(folder, StableDiffusionXLPipeline(**parts, scheduler=solver))


def controlled_xl(folder: Path) -> StableDiffusionXLControlNetPipeline:
    """SDXL's base with one ControlNet."""
    network = _xl_unet(64, 6)
    return _saved(
        folder,
        StableDiffusionXLControlNetPipeline(
            **_xl_parts(folder, network, levels=2),
            controlnet=controlnet(network, 4),
            scheduler=EulerDiscreteScheduler(**XL_SCHEDULER),
        ),
    )


def inpainting_xl(folder: Path) -> StableDiffusionXLInpaintPipeline:
    """SDXL's UNet for inpainting, which is shown the mask and the masked picture."""
    return _saved(
        folder,
        StableDiffusionXLInpaintPipeline(
            **_xl_parts(folder, _xl_unet(64, 6, in_channels=9), levels=2),
            scheduler=EulerDiscreteScheduler(**XL_SCHEDULER),
        ),
    )


def refiner(folder: Path) -> StableDiffusionXLImg2ImgPipeline:
    """SDXL's refiner: the second text encoder alone, and a score of aesthetics."""
    parts = _xl_parts(folder, _xl_unet(32, 5), levels=4)
    return _saved(
        folder,
        StableDiffusionXLImg2ImgPipeline(
            **{**parts, "text_encoder": None, "tokenizer": None},
            scheduler=EulerDiscreteScheduler(**XL_SCHEDULER),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
        ),
    )


def latent_upscaler(folder: Path) -> StableDiffusionLatentUpscalePipeline:
    """The x2 upscaler of latents: k-diffusion's blocks, told of noise and of the pooled text."""
    network = unet(
        block_out_channels=(32, 64, 64),
        in_channels=8,
        out_channels=5,
        down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
        up_block_types=("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
        mid_block_type=None,
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        time_cond_proj_dim=128 + 32,
        conv_in_kernel=1,
        conv_out_kernel=1,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
    )
    solver = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
    )
    return _saved(
        folder, StableDiffusionLatentUpscalePipeline(**_parts(folder, network), scheduler=solver)
    )


def upscaler(folder: Path) -> StableDiffusionUpscalePipeline:
    """The upscaler of pictures, by two where the published one does four; velocities."""
    network = unet(
        in_channels=7,
        num_class_embeds=1000,
        only_cross_attention=(True, False),
        use_linear_projection=True,
    )
    return _saved(
        folder,
        StableDiffusionUpscalePipeline(
            **_parts(folder, network),
            low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
            scheduler=DDIMScheduler(**SD15_SCHEDULER, prediction_type="v_prediction"),
        ),
    )
