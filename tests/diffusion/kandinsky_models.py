"""Kandinsky 2.2 of diffusers' own classes, small, with seeded random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    KandinskyV22CombinedPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tests.diffusion.models import text_config, tokenizer

WIDTH = 32
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": True,
    "clip_sample_range": 2.0,
    "thresholding": True,
    "sample_max_value": 2.0,
    "variance_type": "learned_range",
}
"""The published decoder's."""
PRIOR_SCHEDULER = {
    "variance_type": "fixed_small_log",
    "num_train_timesteps": 1000,
    "clip_sample": True,
    "clip_sample_range": 5.0,
    "prediction_type": "sample",
    "beta_schedule": "squaredcos_cap_v2",
}


@dataclass(frozen=True)
class Folders:
    """Both pipelines of diffusers, and where they are saved."""

    prior: KandinskyV22PriorPipeline
    decoder: KandinskyV22Pipeline
    prior_folder: Path
    decoder_folder: Path


def prior_transformer() -> PriorTransformer:
    torch.manual_seed(11)
    made = PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, embedding_dim=WIDTH, num_layers=2
    )
    # What training fills and diffusers begins with zeros.
    for name in ("positional_embedding", "prd_embedding", "clip_mean", "clip_std"):
        with torch.no_grad():
            getattr(made, name).normal_()
    return made


def image_encoder() -> CLIPVisionModelWithProjection:
    torch.manual_seed(12)
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        image_size=32,
        patch_size=8,
        projection_dim=WIDTH,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
    )
    return CLIPVisionModelWithProjection(config)


def unet(**more: Any) -> UNet2DConditionModel:
    torch.manual_seed(13)
    config: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 8,
        "addition_embed_type": "image",
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "encoder_hid_dim": WIDTH,
        "encoder_hid_dim_type": "image_proj",
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "resnet_time_scale_shift": "scale_shift",
    }
    return UNet2DConditionModel(**{**config, **more})


def movq() -> VQModel:
    torch.manual_seed(14)
    return VQModel(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def kandinsky(root: Path) -> Folders:
    """Saved as two folders, as they are published."""
    words = tokenizer(root / "made")
    torch.manual_seed(10)
    prior = KandinskyV22PriorPipeline(
        prior=prior_transformer(),
        image_encoder=image_encoder(),
        text_encoder=CLIPTextModelWithProjection(text_config(len(words), WIDTH)),
        tokenizer=words,
        scheduler=UnCLIPScheduler(**PRIOR_SCHEDULER),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    )
    decoder = KandinskyV22Pipeline(unet=unet(), scheduler=DDPMScheduler(**SCHEDULER), movq=movq())
    for pipe, name in ((prior, "prior"), (decoder, "decoder")):
        pipe.save_pretrained(root / name)
        pipe.set_progress_bar_config(disable=True)
    return Folders(prior, decoder, root / "prior", root / "decoder")


def combined(made: Folders) -> KandinskyV22CombinedPipeline:
    """The same components as one pipeline."""
    parts = {f"prior_{name}": part for name, part in made.prior.components.items()}
    return KandinskyV22CombinedPipeline(**made.decoder.components, **parts)
