"""Configurations of networks in the layout of CompVis and Stability AI, from shapes of weights.

Heads of attention and groups of norms leave no trace in shapes. Those of the published networks
(SD 1.x, 2.x, SDXL) are known by the width of the network; of others, a configuration must name
them. Names of options are those of diffusers and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pixelrt.errors import CheckpointError

Weights = Mapping[str, Tensor]
UNET_WIDTHS = (320, 384)
"""Of SD 1.x, 2.x and SDXL; and of SDXL's refiner."""
VAE_WIDTHS = (128,)
TEXT_WIDTHS = (768, 1024, 1280)
"""CLIP ViT-L/14, OpenCLIP ViT-H/14 and ViT-bigG/14: 64 channels for each head."""
HEAD = 64
GROUPS = 32


def unet_config(weights: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the weights without ``model.diffusion_model.``; ``given`` goes before what is found."""
    first = _shape(weights, "input_blocks.0.0.weight")
    channels, depths, counts = _down(weights)
    middle = _depth(weights, "middle_block.1")
    cross = ["CrossAttn" if depth else "" for depth in depths]
    # diffusers takes the depth of the middle from the last block, with attention or without.
    layers = [depth or 1 for depth in depths[:-1]] + [middle or 1]
    linear = len(_shape(weights, "middle_block.1.proj_in.weight")) == 2
    config: dict[str, Any] = {
        "in_channels": first[1],
        "out_channels": _shape(weights, "out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": counts[0],
        "down_block_types": [f"{kind}DownBlock2D" for kind in cross],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(cross)],
        "transformer_layers_per_block": layers,
        "cross_attention_dim": _shape(
            weights, "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
        )[1],
        "use_linear_projection": linear,
    }
    if "label_emb.0.0.weight" in weights:
        config["addition_embed_type"] = "text_time"
        config["projection_class_embeddings_input_dim"] = _shape(weights, "label_emb.0.0.weight")[1]
    if first[0] in UNET_WIDTHS:
        config["attention_head_dim"] = [width // HEAD for width in channels] if linear else 8
        config["norm_num_groups"] = GROUPS
    config |= given
    _require("unet", first[0], UNET_WIDTHS, config, ("attention_head_dim", "norm_num_groups"))
    return config


def _down(weights: Weights) -> tuple[list[int], list[int], list[int]]:
    """Channels, depth of attention (0 for none) and resnets of every block on the way down."""
    channels, depths, counts = [0], [0], [0]
    for number in range(1, _count(weights, "input_blocks")):
        name = f"input_blocks.{number}"
        if f"{name}.0.op.weight" in weights:
            for values in (channels, depths, counts):
                values.append(0)
            continue
        channels[-1] = _shape(weights, f"{name}.0.in_layers.2.weight")[0]
        depths[-1] = max(depths[-1], _depth(weights, f"{name}.1"))
        counts[-1] += 1
    if len(set(counts)) > 1 or not counts[0]:
        raise CheckpointError(
            "the UNet's blocks differ in length",
            found=f"{', '.join(map(str, counts))} residual blocks between halvings",
            expected="as many in each",
        )
    return channels, depths, counts


def _depth(weights: Weights, name: str) -> int:
    return _count(weights, f"{name}.transformer_blocks")


def vae_config(weights: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the weights without ``first_stage_model.``, without the scale of the latents."""
    blocks = range(_count(weights, "encoder.down"))
    channels = [_shape(weights, f"encoder.down.{n}.block.0.conv1.weight")[0] for n in blocks]
    width = _shape(weights, "encoder.conv_in.weight")[0]
    config: dict[str, Any] = {
        "in_channels": _shape(weights, "encoder.conv_in.weight")[1],
        "out_channels": _shape(weights, "decoder.conv_out.weight")[0],
        "latent_channels": _shape(weights, "decoder.conv_in.weight")[1],
        "block_out_channels": channels,
        "layers_per_block": _count(weights, "encoder.down.0.block"),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
    }
    if width in VAE_WIDTHS:
        config["norm_num_groups"] = GROUPS
    config |= given
    _require("vae", width, VAE_WIDTHS, config, ("norm_num_groups",))
    return config


def clip_config(weights: Weights, given: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Of the weights of transformers' CLIP, from ``text_model.`` on."""
    layers = "text_model.encoder.layers"
    words, width = _shape(weights, "text_model.embeddings.token_embedding.weight", (2,))
    found = {
        "max_position_embeddings": _shape(
            weights, "text_model.embeddings.position_embedding.weight"
        )[0],
        "intermediate_size": _shape(weights, f"{layers}.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(weights, layers),
        "hidden_act": "quick_gelu",
        "projection_dim": width,
    }
    return _text(part, words, width, found, given)


def open_clip_config(
    weights: Weights, given: Mapping[str, Any], part: str, *, penultimate: bool
) -> dict[str, Any]:
    """Of the weights of ``open_clip``. ``penultimate``: the last layer is left out."""
    layers = "transformer.resblocks"
    words, width = _shape(weights, "token_embedding.weight", (2,))
    count = _count(weights, layers)
    # Those of SD 2.x have 24 layers, and 23 where they were written from diffusers' folders.
    unused = penultimate and not (width == 1024 and count == 23)
    found = {
        "max_position_embeddings": _shape(weights, "positional_embedding")[0],
        "intermediate_size": _shape(weights, f"{layers}.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": count - 1 if unused else count,
        "hidden_act": "gelu",
        "projection_dim": _shape(weights, "text_projection")[1]
        if "text_projection" in weights
        else width,
    }
    return _text(part, words, width, found, given)


def _text(
    part: str, words: int, width: int, found: dict[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    config = {
        "vocab_size": words,
        "hidden_size": width,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
        **found,
    }
    if width in TEXT_WIDTHS:
        config["num_attention_heads"] = width // HEAD
    config |= given
    _require(part, width, TEXT_WIDTHS, config, ("num_attention_heads",))
    return config


def _require(
    part: str, width: int, widths: tuple[int, ...], config: dict[str, Any], names: tuple[str, ...]
) -> None:
    lacking = [name for name in names if name not in config]
    if lacking:
        raise CheckpointError(
            f"the {part} is not one of the published ones, and its weights do not tell all of it",
            found=f"a width of {width}",
            expected=f"a width of {' or '.join(map(str, widths))}",
            hint=f"give --config FILE with {', '.join(lacking)} under {part!r}",
        )


def _shape(weights: Weights, name: str, ndims: tuple[int, ...] = (2, 4)) -> tuple[int, ...]:
    """Of a matrix or a convolution."""
    if name not in weights:
        raise CheckpointError("the checkpoint lacks a weight", expected=name)
    shape = tuple(weights[name].shape)
    if len(shape) not in ndims:
        raise CheckpointError(
            f"the weight {name} is of another network",
            found=f"shape {shape}",
            expected=f"{' or '.join(map(str, ndims))} dimensions",
        )
    return shape


def _count(weights: Weights, name: str) -> int:
    """How many numbered things there are at ``name``."""
    found = (re.match(rf"{re.escape(name)}\.(\d+)\.", key) for key in weights)
    return len({match[1] for match in found if match})
