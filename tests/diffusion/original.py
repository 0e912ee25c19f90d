"""Pipelines written in the layout of CompVis and Stability AI, walked block by block as the
constructor of ``openaimodel.UNetModel`` walks them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def put(into: State, prefix: str, module: nn.Module, parts: dict[str, str] | None = None) -> None:
    """The weights of ``module`` below ``prefix``, with its parts renamed."""
    if parts is None:
        into |= {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
        return
    for part, name in parts.items():
        inner = module
        for step in part.split("."):
            inner = getattr(inner, step, None)  # type: ignore[assignment]
            if inner is None:
                break
        else:
            put(into, f"{prefix}.{name}", inner)


def unet_state(unet: Any) -> State:
    into: State = {}
    top = "model.diffusion_model"
    put(into, f"{top}.time_embed", unet.time_embedding, {"linear_1": "0", "linear_2": "2"})
    if getattr(unet, "add_embedding", None) is not None:
        put(into, f"{top}.label_emb.0", unet.add_embedding, {"linear_1": "0", "linear_2": "2"})
    put(into, f"{top}.input_blocks.0.0", unet.conv_in)
    at = 1
    for block in unet.down_blocks:
        for number, resnet in enumerate(block.resnets):
            put(into, f"{top}.input_blocks.{at}.0", resnet, RESNET)
            if hasattr(block, "attentions"):
                put(into, f"{top}.input_blocks.{at}.1", block.attentions[number])
            at += 1
        if block.downsamplers:
            put(into, f"{top}.input_blocks.{at}.0.op", block.downsamplers[0].conv)
            at += 1
    put(into, f"{top}.middle_block.0", unet.mid_block.resnets[0], RESNET)
    put(into, f"{top}.middle_block.1", unet.mid_block.attentions[0])
    put(into, f"{top}.middle_block.2", unet.mid_block.resnets[1], RESNET)
    at = 0
    for block in unet.up_blocks:
        for number, resnet in enumerate(block.resnets):
            put(into, f"{top}.output_blocks.{at}.0", resnet, RESNET)
            below = 1
            if hasattr(block, "attentions"):
                put(into, f"{top}.output_blocks.{at}.1", block.attentions[number])
                below = 2
            if number == len(block.resnets) - 1 and block.upsamplers:
                put(into, f"{top}.output_blocks.{at}.{below}.conv", block.upsamplers[0].conv)
            at += 1
    put(into, f"{top}.out.0", unet.conv_norm_out)
    put(into, f"{top}.out.2", unet.conv_out)
    return into


def vae_state(vae: Any) -> State:
    into: State = {}
    names = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
    resnet = {**names, "conv_shortcut": "nin_shortcut"}
    for half in ("encoder", "decoder"):
        net, top = getattr(vae, half), f"first_stage_model.{half}"
        put(into, f"{top}.conv_in", net.conv_in)
        put(into, f"{top}.norm_out", net.conv_norm_out)
        put(into, f"{top}.conv_out", net.conv_out)
        put(into, f"{top}.mid.block_1", net.mid_block.resnets[0], resnet)
        put(into, f"{top}.mid.block_2", net.mid_block.resnets[1], resnet)
        put(into, f"{top}.mid.attn_1", net.mid_block.attentions[0], VAE_ATTENTION)
        down = half == "encoder"
        for level, block in enumerate(net.down_blocks if down else reversed(net.up_blocks)):
            way = f"{top}.{'down' if down else 'up'}.{level}"
            for number, one in enumerate(block.resnets):
                put(into, f"{way}.block.{number}", one, resnet)
            sampler = block.downsamplers if down else block.upsamplers
            if sampler:
                put(into, f"{way}.{'downsample' if down else 'upsample'}.conv", sampler[0].conv)
    put(into, "first_stage_model.quant_conv", vae.quant_conv)
    put(into, "first_stage_model.post_quant_conv", vae.post_quant_conv)
    for name, tensor in into.items():
        # Attention was a convolution of 1 x 1.
        if ".attn_1." in name and tensor.ndim == 2:
            into[name] = tensor[:, :, None, None]
    return into


def clip_state(encoder: Any, prefix: str) -> State:
    """As transformers wrote it in 2022."""
    names = {n.removeprefix("text_model."): t for n, t in encoder.state_dict().items()}
    return {f"{prefix}.transformer.text_model.{name}": tensor for name, tensor in names.items()}


def open_clip_state(encoder: Any, prefix: str, *, unused_layer: bool = False) -> State:
    text = getattr(encoder, "text_model", encoder)
    into = {
        f"{prefix}.model.token_embedding.weight": text.embeddings.token_embedding.weight,
        f"{prefix}.model.positional_embedding": text.embeddings.position_embedding.weight,
    }
    put(into, f"{prefix}.model.ln_final", text.final_layer_norm)
    layers = list(text.encoder.layers)
    for number, layer in enumerate([*layers, *layers[:1]] if unused_layer else layers):
        top, heads = f"{prefix}.model.transformer.resblocks.{number}", layer.self_attn
        put(into, f"{top}.ln_1", layer.layer_norm1)
        put(into, f"{top}.ln_2", layer.layer_norm2)
        put(into, f"{top}.mlp", layer.mlp, {"fc1": "c_fc", "fc2": "c_proj"})
        put(into, f"{top}.attn.out_proj", heads.out_proj)
        three = (heads.q_proj, heads.k_proj, heads.v_proj)
        into[f"{top}.attn.in_proj_weight"] = torch.cat([one.weight for one in three])
        into[f"{top}.attn.in_proj_bias"] = torch.cat([one.bias for one in three])
    if hasattr(encoder, "text_projection"):
        into[f"{prefix}.model.text_projection"] = encoder.text_projection.weight.T
    return into


def pipeline_state(pipe: Any) -> State:
    """A whole file: SDXL where there are two text encoders, else SD 1.x."""
    state = {**unet_state(pipe.unet), **vae_state(pipe.vae)}
    if hasattr(pipe, "text_encoder_2"):
        state |= clip_state(pipe.text_encoder, "conditioner.embedders.0")
        state |= open_clip_state(pipe.text_encoder_2, "conditioner.embedders.1")
    else:
        state |= clip_state(pipe.text_encoder, "cond_stage_model")
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}
