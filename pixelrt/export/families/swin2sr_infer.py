"""The configuration of Swin2SR read off its weights, under transformers' names."""

from __future__ import annotations

import math
import re

from pixelrt.export.families._weights import count, shape_of
from pixelrt.export.families.swin2sr_config import unsupported
from pixelrt.export.recipe import Config, Tensors

STAGE = "swin2sr.encoder.stages.{}"
LAYER = STAGE + ".layers.{}"
FIRST = LAYER.format(0, 0)
WINDOW_BUFFERS = (
    r".*\.relative_position_index",
    r".*\.relative_coords_table",
    r".*\.attn_mask",
)
"""Constants that older checkpoints carry along: read here, then dropped."""


def infer(tensors: Tensors, buffers: Tensors) -> Config:
    """What the weights, under transformers' names, say about the configuration.

    ``buffers``: those of ``WINDOW_BUFFERS`` that the file has. Without them
    ``window_size``, ``img_range`` and ``image_size`` are left out. Raises CheckpointError
    where a parameter that this is read off is missing.
    """
    if "swin2sr.embeddings.position_embeddings" in tensors:
        raise unsupported("use_absolute_embeddings", True, "False")
    embed, channels, _, _ = shape_of(tensors, "swin2sr.first_convolution.weight")
    hidden, _ = shape_of(tensors, f"{FIRST}.intermediate.dense.weight", 2)
    depths = _depths(tensors)
    return {
        "num_channels": channels,
        "embed_dim": embed,
        "depths": depths,
        "num_heads": [
            shape_of(tensors, f"{LAYER.format(i, 0)}.attention.self.logit_scale", 3)[0]
            for i in range(len(depths))
        ],
        "mlp_ratio": _ratio(hidden, embed),
        "qkv_bias": f"{FIRST}.attention.self.query.bias" in tensors,
        "resi_connection": "3conv" if f"{STAGE.format(0)}.conv.0.weight" in tensors else "1conv",
        **_infer_head(tensors, channels),
        **_infer_window(buffers, depths),
    }


def _depths(tensors: Tensors) -> list[int]:
    depths: list[int] = []
    while depth := count(
        tensors, lambda j: f"{LAYER.format(len(depths), j)}.attention.self.logit_scale"
    ):
        depths.append(depth)
    if not depths:
        shape_of(tensors, f"{FIRST}.attention.self.logit_scale", 3)  # raises
    return depths


def _ratio(hidden: int, embed: int) -> float:
    """The ratio whose product with ``embed``, rounded down, is ``hidden``."""
    ratio = hidden / embed
    return ratio if int(ratio * embed) == hidden else (hidden + 0.5) / embed


def _infer_head(tensors: Tensors, channels: int) -> Config:
    if "upsample.conv.weight" in tensors:
        shuffled = shape_of(tensors, "upsample.conv.weight")[0]
        for out in (channels, 3, 1):
            scale = math.isqrt(shuffled // out)
            if scale * scale * out == shuffled:
                return {
                    "upsampler": "pixelshuffledirect",
                    "upscale": scale,
                    "num_channels_out": out,
                }
        raise unsupported("upsample.conv.weight", shuffled, "scale**2 * channels outputs")
    if "upsample.final_convolution.weight" not in tensors:
        out = shape_of(tensors, "final_convolution.weight")[0]
        return {"upsampler": "", "upscale": 1, "num_channels_out": out}
    out = shape_of(tensors, "upsample.final_convolution.weight")[0]
    if "upsample.conv_up1.weight" in tensors:
        return {"upsampler": "nearest+conv", "upscale": 4, "num_channels_out": out}
    aux = "upsample.conv_bicubic.weight" in tensors
    doublings = count(tensors, "upsample.upsample.convolution_{}.weight".format)
    return {
        "upsampler": "pixelshuffle_aux" if aux else "pixelshuffle",
        "upscale": 3 if "upsample.upsample.convolution.weight" in tensors else 2**doublings,
        "num_channels_out": out,
    }


def _infer_window(buffers: Tensors, depths: list[int]) -> Config:
    """``image_size`` only decides whether layers shift: not where it is within a window."""
    shapes = {re.sub(r".*\.", "", name): tuple(t.shape) for name, t in buffers.items()}
    if len(shape := shapes.get("relative_position_index", ())) == 2:
        window = math.isqrt(shape[0])
    elif len(shape := shapes.get("relative_coords_table", ())) == 4:
        window = (shape[1] + 1) // 2
    elif len(shape := shapes.get("attn_mask", ())) == 3:
        window = math.isqrt(shape[1])
    else:
        return {}
    # main_test_swin2sr.py of the authors: only the JPEG models have windows of 7 (JPEG's own
    # blocks are 8x8), and only they take values up to 255. The file itself does not say.
    found: Config = {"window_size": window, "img_range": 255.0 if window == 7 else 1.0}
    if len(shape := shapes.get("attn_mask", ())) == 3:
        found["image_size"] = math.isqrt(shape[0]) * window
    elif max(depths) > 1 and "relative_position_index" in shapes:
        found["image_size"] = window
    return found
