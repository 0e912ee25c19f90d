"""Parameter names of the authors' Swin2SR (mv-lab/swin2sr) and those of transformers.

Facts of both are from ``models/network_swin2sr.py`` and ``modeling_swin2sr.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from pixelrt.errors import CheckpointError
from pixelrt.export.recipe import Tensors

BLOCK = "layers.{}.residual_group.blocks.{}."
LAYER = "swin2sr.encoder.stages.{}.layers.{}."

BODY = (
    ("conv_first", "swin2sr.first_convolution"),
    ("patch_embed.proj", "swin2sr.embeddings.patch_embeddings.projection"),
    ("patch_embed.norm", "swin2sr.embeddings.patch_embeddings.layernorm"),
    ("absolute_pos_embed", "swin2sr.embeddings.position_embeddings"),
    (BLOCK + "norm1", LAYER + "layernorm_before"),
    (BLOCK + "norm2", LAYER + "layernorm_after"),
    (BLOCK + "mlp.fc1", LAYER + "intermediate.dense"),
    (BLOCK + "mlp.fc2", LAYER + "output.dense"),
    (BLOCK + "attn.proj", LAYER + "attention.output.dense"),
    (BLOCK + "attn.logit_scale", LAYER + "attention.self.logit_scale"),
    (BLOCK + "attn.cpb_mlp.{}", LAYER + "attention.self.continuous_position_bias_mlp.{}"),
    (BLOCK + "attn.q_bias", LAYER + "attention.self.query.bias"),
    (BLOCK + "attn.v_bias", LAYER + "attention.self.value.bias"),
    ("layers.{}.conv", "swin2sr.encoder.stages.{}.conv"),
    ("layers.{}.conv.{}", "swin2sr.encoder.stages.{}.conv.{}"),
    ("layers.{}.patch_embed.proj", "swin2sr.encoder.stages.{}.patch_embed.projection"),
    ("norm", "swin2sr.layernorm"),
    ("conv_after_body", "swin2sr.conv_after_body"),
    ("conv_after_body.{}", "swin2sr.conv_after_body.{}"),
)
"""Names that mean the same, theirs first; ``{}`` is a number."""

BEFORE_AND_LAST = (
    ("conv_before_upsample.0", "upsample.conv_before_upsample"),
    ("conv_last", "upsample.final_convolution"),
)
DIRECT = (("upsample.0", "upsample.conv"),)
NEAREST = (
    *BEFORE_AND_LAST,
    ("conv_up1", "upsample.conv_up1"),
    ("conv_up2", "upsample.conv_up2"),
    ("conv_hr", "upsample.conv_hr"),
)
AUX = (
    ("conv_bicubic", "upsample.conv_bicubic"),
    ("conv_aux", "upsample.conv_aux"),
    ("conv_after_aux.0", "upsample.conv_after_aux.0"),
)
DOUBLINGS = tuple((f"upsample.{2 * i}", f"upsample.upsample.convolution_{i}") for i in range(4))
TRIPLING = (("upsample.0", "upsample.upsample.convolution"),)
NO_UPSAMPLER = (("conv_last", "final_convolution"),)

JOINED = re.compile(r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\.attn\.qkv\.weight")
PARTS = ("query", "key", "value")
LEAF = r"(\.(?:weight|bias))?"

Pairs = tuple[tuple[str, str], ...]


def to_library_names(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The same weights under transformers' names; the joint ``qkv`` is split.

    Raises CheckpointError naming each parameter that Swin2SR does not have.
    """
    if any(name.startswith("layers_hf.") for name in tensors):
        raise CheckpointError(
            "Swin2SR with the upsampler pixelshuffle_hf is not supported.",
            found="parameters layers_hf.*",
            expected="pixelshuffle, pixelshuffledirect, pixelshuffle_aux, nearest+conv or none",
        )
    pairs = (*BODY, *_head(tensors))
    converted: dict[str, torch.Tensor] = {}
    unexpected = []
    for name, tensor in tensors.items():
        if match := JOINED.fullmatch(name):
            converted.update(_split(name, tensor, LAYER.format(*match.groups())))
        elif known := _translate(name, pairs):
            converted[known] = tensor
        else:
            unexpected.append(name)
    if unexpected:
        raise CheckpointError(
            "The weights have parameters that Swin2SR does not have.",
            found=f"{len(unexpected)}: {', '.join(unexpected[:5])}",
        )
    return converted


def to_authors_name(name: str, tensors: Tensors) -> str:
    """Their name of a parameter of transformers, for messages about their file."""
    joined = re.fullmatch(
        r"swin2sr\.encoder\.stages\.(\d+)\.layers\.(\d+)\.attention\.self\.\w+\.weight", name
    )
    if joined:
        return f"{BLOCK.format(*joined.groups())}attn.qkv.weight"
    swapped = tuple((ours, theirs) for theirs, ours in (*BODY, *_head(tensors)))
    return _translate(name, swapped) or name


def _head(tensors: Tensors) -> Pairs:
    """The names that belong to the file's own upsampler."""
    if "conv_up1.weight" in tensors:
        return NEAREST
    if "conv_before_upsample.0.weight" in tensors:
        aux = AUX if "conv_bicubic.weight" in tensors else ()
        return (*BEFORE_AND_LAST, *aux, *(TRIPLING if _triples(tensors) else DOUBLINGS))
    return DIRECT if "upsample.0.weight" in tensors else NO_UPSAMPLER


def _triples(tensors: Tensors) -> bool:
    weight = tensors.get("upsample.0.weight")
    return weight is not None and weight.ndim == 4 and weight.shape[0] == 9 * weight.shape[1]


def _translate(name: str, pairs: Pairs) -> str:
    for given, wanted in pairs:
        pattern = re.escape(given).replace(r"\{\}", r"(\d+)") + LEAF
        if match := re.fullmatch(pattern, name):
            *numbers, leaf = match.groups()
            return wanted.format(*numbers) + (leaf or "")
    return ""


def _split(name: str, joined: torch.Tensor, layer: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Rows of query, key and value lie one after the other, as in their forward pass."""
    if joined.ndim != 2 or joined.shape[0] != 3 * joined.shape[1]:
        raise CheckpointError(
            f"{name} has a shape that Swin2SR cannot have.",
            found=str(tuple(joined.shape)),
            expected="(3 * embed_dim, embed_dim)",
        )
    for part, rows in zip(PARTS, joined.chunk(3), strict=True):
        yield f"{layer}attention.self.{part}.weight", rows
