"""Names of weights in the layout of CompVis and Stability AI, from those of diffusers.

The layout is that of the modules in ``ldm/modules/diffusionmodules`` of CompVis/latent-diffusion
(UNet, VAE) and of ``open_clip`` (text encoders of SD 2.x and SDXL). Names may be those of modules
or of parameters.
"""

from __future__ import annotations

import re

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(\..+)?"
)


def unet_name(name: str, layers: int, attends: list[bool]) -> str:
    """Without ``model.diffusion_model.``. ``layers``: resnets of a block on the way down;
    ``attends``: for each block on the way up, whether it has attention."""
    found = _BLOCK.fullmatch(name)
    if not found:
        head = next((one for one in _UNET_ENDS if name == one or name.startswith(f"{one}.")), "")
        rest = name.removeprefix(head)
        return _UNET_ENDS.get(head, "") + (_resnet(rest) if "resnets" in head else rest)
    way, block, kind, place, rest = found.groups(default="")
    first = int(block) * (layers + 1) + (1 if way == "down" else 0)
    side = "input" if way == "down" else "output"
    if kind == "downsamplers":
        return f"input_blocks.{first + layers}.0" + rest.replace(".conv", ".op", 1)
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{2 if attends[int(block)] else 1}{rest}"
    number = f"{side}_blocks.{first + int(place)}"
    return f"{number}.0{_resnet(rest)}" if kind == "resnets" else f"{number}.1{rest}"


def _resnet(rest: str) -> str:
    return _replaced(rest, _UNET_RESNET)


def vae_name(name: str, blocks: int) -> str:
    """Without ``first_stage_model.``. ``blocks``: how many the decoder has."""
    half, dot, rest = name.partition(".")
    if half not in ("encoder", "decoder"):
        return name
    rest = rest.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(\..+)?", rest)
    if found:
        way, block, kind, place, end = found.groups(default="")
        # The decoder's blocks are counted from the full size on.
        number = int(block) if way == "down" else blocks - 1 - int(block)
        inner = f"block.{place}" if kind == "resnets" else kind.removesuffix("rs")
        return f"{half}.{way}.{number}.{inner}{end}"
    found = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)(\..+)?", rest)
    if found:
        kind, place, end = found.groups(default="")
        if kind == "resnets":
            return f"{half}.mid.block_{int(place) + 1}{end}"
        return f"{half}.mid.attn_1" + _replaced(end, _VAE_ATTENTION)
    return half + dot + rest


def open_clip_name(name: str) -> tuple[str, int | None]:
    """The name in ``open_clip`` of a parameter, without ``text_model.``; and which third of the
    rows it is, where that is a part of a parameter that holds queries, keys and values."""
    if name in _OPEN_CLIP:
        return _OPEN_CLIP[name], None
    name = name.replace("final_layer_norm", "ln_final")
    name = name.replace("encoder.layers", "transformer.resblocks")
    found = re.fullmatch(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
    if found:
        layer, which, kind = found.groups()
        return f"{layer}.attn.in_proj_{kind}", "qkv".index(which)
    for theirs, original in _OPEN_CLIP_LAYER.items():
        name = name.replace(f".{theirs}.", f".{original}.")
    return name, None


def _replaced(rest: str, names: dict[str, str]) -> str:
    """``.name.more`` with ``name`` as the other layout calls it."""
    for theirs, original in names.items():
        if rest == f".{theirs}" or rest.startswith(f".{theirs}."):
            return f".{original}" + rest.removeprefix(f".{theirs}")
    return rest
