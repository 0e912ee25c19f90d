"""The configuration of Swin2SR: what it may hold and what goes together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers.activations import ACT2FN

from pixelrt.errors import CheckpointError
from pixelrt.export.recipe import Config

DEFAULTS: Config = {
    "image_size": 64,
    "patch_size": 1,
    "num_channels": 3,
    "num_channels_out": None,
    "embed_dim": 180,
    "depths": [6, 6, 6, 6, 6, 6],
    "num_heads": [6, 6, 6, 6, 6, 6],
    "window_size": 8,
    "mlp_ratio": 2.0,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
    "upscale": 2,
    "img_range": 1.0,
    "resi_connection": "1conv",
    "upsampler": "pixelshuffle",
}
"""Every key of transformers' ``Swin2SRConfig`` that changes the result, with its default."""

WITHOUT_EFFECT = frozenset(
    {
        "attention_probs_dropout_prob",
        "chunk_size_feed_forward",
        "drop_path_rate",
        "hidden_dropout_prob",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "num_layers",
        "output_attentions",
        "output_hidden_states",
        "path_norm",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "dtype",
        "architectures",
        "transformers_version",
        "model_type",
    }
)
"""Further keys of a config.json: training, book-keeping, and what the library never reads."""

UPSAMPLERS = {
    "pixelshuffle": "3 or a power of two up to 16",
    "pixelshuffle_aux": "3 or a power of two up to 16",
    "pixelshuffledirect": "1 to 16",
    "nearest+conv": "4",
    "": "1",
}
"""Upsampler to the scales that it has. ``""``: none, for images restored at their own size."""

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "num_channels": (1, 3),
    "num_channels_out": (1, 3),
    "resi_connection": ("1conv", "3conv"),
    "upsampler": tuple(UPSAMPLERS),
    "maths": ("transformers", "authors"),
    "patch_size": (1,),
    "use_absolute_embeddings": (False,),
}
INTEGERS = ("embed_dim", "window_size", "upscale")
FLOATS = ("mlp_ratio", "layer_norm_eps", "img_range")


def settle(known: Config, given: Config | None) -> Config:
    """Complete and check a configuration: defaults, then ``known``, then ``given``.

    Gives every key of ``DEFAULTS`` and ``maths``. Raises CheckpointError for a key that
    Swin2SR does not have and for values that do not go together.
    """
    given = dict(given or {})
    if given.get("model_type", "swin2sr") != "swin2sr":
        raise CheckpointError(
            "The configuration is of another network.",
            found=f"model_type {given['model_type']!r}",
            expected="swin2sr",
        )
    unknown = [
        key
        for key in given
        if not (key.startswith("_") or key in {*DEFAULTS, "maths", *WITHOUT_EFFECT})
    ]
    if unknown:
        raise CheckpointError(
            f"Swin2SR's configuration has no key {', '.join(unknown[:5])}.",
            expected=", ".join([*DEFAULTS, "maths"]),
        )
    used = {key: value for key, value in given.items() if key in {*DEFAULTS, "maths"}}
    config = _plain({**DEFAULTS, **known, **used})
    _check_values(config)
    _check_together(config)
    return config


def _plain(config: Config) -> Config:
    """One spelling for each thing, in JSON's types."""
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
    if config["num_channels_out"] is None:
        config["num_channels_out"] = config["num_channels"]
    if config["upsampler"] is None:
        config["upsampler"] = ""
    if config["patch_size"] == [1, 1]:
        config["patch_size"] = 1
    for key in FLOATS:
        if _is_number(config[key]):
            config[key] = float(config[key])
    return config


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_values(config: Config) -> None:
    for key, choices in CHOICES.items():
        value = config[key]
        if not any(value == c and type(value) is type(c) for c in choices):
            raise unsupported(key, value, " or ".join(map(repr, choices)))
    for key in INTEGERS:
        if not _is_count(config[key]):
            raise unsupported(key, config[key], "an integer of at least 1")
    for key in FLOATS:
        if not (_is_number(config[key]) and 0 < config[key] < math.inf):
            raise unsupported(key, config[key], "a positive number")
    for key in ("depths", "num_heads"):
        value = config[key]
        if not (isinstance(value, list) and value and all(map(_is_count, value))):
            raise unsupported(key, value, "a list of integers, one for each stage")
    size = config["image_size"]
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(map(_is_count, sides)):
        raise unsupported("image_size", size, "an integer, or a list of two")
    if not isinstance(config["qkv_bias"], bool):
        raise unsupported("qkv_bias", config["qkv_bias"], "true or false")
    if config["hidden_act"] not in list(ACT2FN):  # in ACT2FN itself would hash a list
        raise unsupported("hidden_act", config["hidden_act"], "a name that transformers knows")


def _check_together(config: Config) -> None:
    upsampler, upscale = config["upsampler"], config["upscale"]
    if len(config["depths"]) != len(config["num_heads"]):
        raise CheckpointError(
            "depths and num_heads disagree about the number of stages.",
            found=f"depths {config['depths']}, num_heads {config['num_heads']}",
        )
    for heads in config["num_heads"]:
        if config["embed_dim"] % heads:
            raise unsupported("num_heads", heads, f"a divisor of embed_dim {config['embed_dim']}")
    if int(config["embed_dim"] * config["mlp_ratio"]) < 1:
        raise unsupported("mlp_ratio", config["mlp_ratio"], "at least one hidden channel")
    if not _has_scale(upsampler, upscale):
        raise CheckpointError(
            f"Swin2SR's upsampler {upsampler!r} cannot enlarge by {upscale}.",
            expected="; ".join(f"{name!r}: {scales}" for name, scales in UPSAMPLERS.items()),
        )
    if upsampler == "pixelshuffle_aux" and config["num_channels"] != 3:
        raise unsupported("num_channels", config["num_channels"], "3 with pixelshuffle_aux")
    if upsampler == "" and config["num_channels"] != config["num_channels_out"]:
        raise unsupported(
            "num_channels_out", config["num_channels_out"], "num_channels, without an upsampler"
        )


def _has_scale(upsampler: str, scale: int) -> bool:
    if upsampler == "pixelshuffledirect":
        return scale <= 16
    if upsampler in ("pixelshuffle", "pixelshuffle_aux"):
        return scale == 3 or (scale <= 16 and scale & (scale - 1) == 0)
    return scale == (4 if upsampler == "nearest+conv" else 1)


def unsupported(key: str, value: object, expected: str) -> CheckpointError:
    hint = ""
    if key == "use_absolute_embeddings":
        hint = "absolute position embeddings tie a network to one image size; none is published"
    return CheckpointError(
        f"{key} has a value that Swin2SR cannot have here.",
        found=repr(value),
        expected=expected,
        hint=hint,
    )
