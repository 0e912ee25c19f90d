"""Small pipelines of diffusers' own classes, with seeded random weights, saved as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
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


def vae() -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=[16, 32, 32, 32],
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


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


def stable_diffusion(folder: Path, **scheduler: Any) -> StableDiffusionPipeline:
    """The classes of Stable Diffusion 1.5, small; also saved at ``folder``."""
    words = tokenizer(folder / "made")
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(len(words))),
        tokenizer=words,
        unet=unet(),
        scheduler=DDIMScheduler(**{**SD15_SCHEDULER, **scheduler}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "pipe")
    return pipe


def stable_diffusion_xl(folder: Path) -> StableDiffusionXLPipeline:
    """The classes of SDXL's base, small; also saved at ``folder``."""
    words = tokenizer(folder / "made")
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(len(words))),
        text_encoder_2=CLIPTextModelWithProjection(text_config(len(words), hidden_act="gelu")),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet(
            64,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        scheduler=DDIMScheduler(**SD15_SCHEDULER),
    )
    pipe.save_pretrained(folder / "pipe")
    return pipe
