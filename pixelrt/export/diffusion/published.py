"""Configurations of published pipelines, for networks of their size without their weights.

From ``config.json`` of the folders of runwayml/stable-diffusion-v1-5, stabilityai/
stable-diffusion-2-1 and stabilityai/stable-diffusion-xl-base-1.0: what differs from the
defaults of diffusers and transformers, and what names a size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixelrt.export.diffusion.prediction import Prediction

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """``layout``: the title of one of ``layouts.LAYOUTS``; ``networks``: configurations by
    component."""

    name: str
    layout: str
    networks: Mapping[str, Config]
    prediction: Prediction = "epsilon"


_UNET: Config = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "cross_attention_dim": 768,
    "sample_size": 64,
}
_UNET_2: Config = {
    **_UNET,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
    "sample_size": 96,
}
_UNET_XL: Config = {
    **_UNET,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
_VAE: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_CLIP_L: Config = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
_CLIP_H: Config = {
    **_CLIP_L,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,  # of 24: the last one is not used
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
_CLIP_G: Config = {
    **_CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}

PUBLISHED = (
    Published(
        "stable-diffusion-1.5", "SD 1.x", {"unet": _UNET, "vae": _VAE, "text_encoder": _CLIP_L}
    ),
    Published(
        "stable-diffusion-2.1",
        "SD 2.x",
        {
            "unet": _UNET_2,
            "vae": {**_VAE, "sample_size": 768},
            "text_encoder": _CLIP_H,
        },
        "v_prediction",
    ),
    Published(
        "stable-diffusion-xl",
        "SDXL",
        {
            "unet": _UNET_XL,
            "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
            "text_encoder": _CLIP_L,
            "text_encoder_2": _CLIP_G,
        },
    ),
)
