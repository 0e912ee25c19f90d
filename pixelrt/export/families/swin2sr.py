"""Swin2SR: super-resolution and JPEG artefact removal (Conde et al. 2022, arXiv:2209.11345).

Two forms of checkpoints: those of transformers (``Swin2SRForImageSuperResolution`` with its
``config.json``) and the authors' own ``.pth`` files (mv-lab/swin2sr). The configuration is
that of transformers' ``Swin2SRConfig`` and one key more, ``maths``: whose formulas are
followed where the two implementations differ (:data:`swin2sr_heads.Maths`). It is the name
of the variant unless given: published weights were trained by the authors' code, but
whoever exports a transformers model expects what that library computes.
"""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from pixelrt.errors import CheckpointError
from pixelrt.export.families._weights import differences
from pixelrt.export.families.swin2sr_config import DEFAULTS, settle
from pixelrt.export.families.swin2sr_infer import WINDOW_BUFFERS, infer
from pixelrt.export.families.swin2sr_keys import to_authors_name, to_library_names
from pixelrt.export.networks.swin2sr import Swin2SR
from pixelrt.export.networks.swin2sr_openvino import OpenVINOSwin2SR
from pixelrt.export.recipe import Config, Network, Recipe, Tensors, Variant
from pixelrt.manifest import OPENVINO
from pixelrt.spec import ImageSpec, Tolerance

LIGHT: Config = {
    "embed_dim": 60,
    "depths": [6, 6, 6, 6],
    "num_heads": [6, 6, 6, 6],
    "upsampler": "pixelshuffledirect",
    "upscale": 2,
    "maths": "transformers",
}
PROCESSOR_DIVISOR = 8
"""``size_divisor`` of transformers' Swin2SRImageProcessor, whatever the window."""


# References ---------------------------------------------------------------------------------


class Reference(nn.Module):
    """The library's model: pixels in [0, 1] to pixels."""

    def __init__(self, model: Swin2SRForImageSuperResolution) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x).reconstruction
        return y


class AuthorsReference(nn.Module):
    """The library's model (a copy) with the least that gives the authors' results."""

    def __init__(self, model: Swin2SRForImageSuperResolution) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for stage in self.model.swin2sr.encoder.stages:
            for layer in stage.layers:
                layer.attention.register_forward_pre_hook(_halve_mask)
        if self.model.upsampler == "pixelshuffle_aux":
            self.model.upsample.conv_bicubic.register_forward_pre_hook(self._normalise)

    def _normalise(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        # The bicubic weights sum to one, so the order of enlarging and normalising is free.
        body = self.model.swin2sr
        return ((args[0] - body.mean) * body.img_range,)

    def forward(self, x: Tensor) -> Tensor:
        body = self.model.swin2sr
        y: Tensor
        if self.model.upsampler:
            y = self.model(x).reconstruction
            return y
        features = body(x).last_hidden_state
        y = x + self.model.final_convolution(features) / body.img_range
        return y


def _halve_mask(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The library adds its mask twice, the authors once."""
    windows, mask = args
    return windows, None if mask is None else mask / 2


# Checkpoints --------------------------------------------------------------------------------


def load(variant: str, tensors: Tensors, config: Config | None) -> Network:
    """The network of a checkpoint; the contract is ``Recipe.load``.

    What ``config`` leaves out is read off the weights. Files without the window's buffers
    say nothing about ``window_size`` and ``img_range``: with an upsampler all published
    models have 8 and 1.0; without one (JPEG models) a configuration has to say it.
    """
    buffers = {name: t for name, t in tensors.items() if _is_buffer(name)}
    given = {name: t for name, t in tensors.items() if not _is_buffer(name)}
    weights = to_library_names(given) if variant == "authors" else given
    known = infer(weights, buffers)
    if "window_size" not in known:
        _check_window_given(known, config or {})
    settled = settle({**known, "maths": variant}, config)
    _check_window(settled, known)
    model = _build(settled)
    _check_parameters(model.state_dict(), weights, given if variant == "authors" else None)
    model.load_state_dict({name: t.detach().float() for name, t in weights.items()})
    return _network(model, settled)


def _is_buffer(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in WINDOW_BUFFERS)


def _check_window_given(known: Config, given: Config) -> None:
    """A whole config.json (with ``model_type``) leaves out only what has its default."""
    lacking = [key for key in ("window_size", "img_range") if key not in given]
    if known["upsampler"] == "" and "model_type" not in given and lacking:
        raise CheckpointError(
            f"The weights do not say {' and '.join(lacking)}, nor does a configuration.",
            found="a Swin2SR without an upsampler and without the buffers of its windows",
            hint='give them, e.g. {"window_size": 7, "img_range": 255.0} for the JPEG models',
        )


def _check_window(config: Config, known: Config) -> None:
    size = config["image_size"]
    window = min(config["window_size"], *(size if isinstance(size, list) else [size]))
    if window != known.get("window_size", window):
        raise CheckpointError(
            "The configuration and the weights disagree about window_size.",
            found=f"{window} in the configuration, {known['window_size']} in the weights "
            "(relative_position_index)",
            hint="leave window_size out: it is read off the weights",
        )


def _check_parameters(expected: Tensors, given: Tensors, authors: Tensors | None) -> None:
    """CheckpointError for each difference, in the names of the file: ``authors``, if theirs."""
    # Several parameters of the library may be one of theirs.
    named = (lambda name: to_authors_name(name, authors)) if authors is not None else str
    found = differences(expected, given, named)
    if found:
        raise CheckpointError(
            "The weights do not fit the network of the configuration.",
            found=found,
            hint="check that the configuration, where there is one, belongs to these weights",
        )


# Networks -----------------------------------------------------------------------------------


def _build(config: Config) -> Swin2SRForImageSuperResolution:
    """The library's model of a settled configuration, without touching the global seed."""
    library = Swin2SRConfig(**{key: config[key] for key in DEFAULTS})
    with torch.random.fork_rng(devices=[]):
        model = Swin2SRForImageSuperResolution(library)
        if config["maths"] == "authors" and config["resi_connection"] == "3conv":
            # The library forgets the 3conv after the last stage.
            model.swin2sr.conv_after_body = _three_convolutions(config["embed_dim"])
    return model.eval().requires_grad_(False)


def _three_convolutions(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels // 4, 3, 1, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels // 4, channels // 4, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels // 4, channels, 3, 1, 1),
    )


def _network(model: Swin2SRForImageSuperResolution, config: Config) -> Network:
    authors = config["maths"] == "authors"
    reference = AuthorsReference(model) if authors else Reference(model)
    graph = Swin2SR(model, config["maths"])
    # The library pads to config's window first, then to the window that its layers use, which
    # an image_size below it makes smaller: on the grid of both it pads nothing.
    multiple = math.lcm(config["window_size"], graph.window)
    divisor = multiple if authors else PROCESSOR_DIVISOR
    image = ImageSpec(
        task="super-resolution" if config["upscale"] > 1 else "restoration",
        scale=config["upscale"],
        channels_in=config["num_channels"],
        channels_out=config["num_channels_out"],
        multiple=multiple,
        minimum=multiple,
        pad_mode="symmetric",
        statistics="local",
        # With another window the library's two paddings do not make one grid.
        library_divisor=divisor if divisor == multiple else 0,
    )
    variants = {OPENVINO: OpenVINOSwin2SR(model, config["maths"])}
    return Network(config, image, reference.eval(), graph, variants)


# Random weights -----------------------------------------------------------------------------


def random(config: Config | None, seed: int) -> Network:
    """Seeded random weights; ``config`` may leave out keys. Usual: ``LIGHT``.

    Trained networks attend sharply and differ from layer to layer; the library's own start
    values hardly do either, and a test with them would pass whatever attention computes.
    """
    settled = settle({"maths": "transformers"}, LIGHT if config is None else config)
    model = _build(settled)
    _fill(model, torch.Generator().manual_seed(seed))
    return _network(model, settled)


def _fill(model: Swin2SRForImageSuperResolution, generator: torch.Generator) -> None:
    """Keep variances from layer to layer; the branches of ``img_range`` are as strong as it."""
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):  # up to about 30: some heads sharp, some blurred
            parameter.uniform_(0.7, 3.4, generator=generator)
        elif parameter.ndim > 1:
            parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
        elif "layernorm" in name and name.endswith("weight"):
            parameter.normal_(0.3, 0.05, generator=generator)
        else:
            parameter.normal_(0, 0.05, generator=generator)
    body = model.swin2sr
    for stage in body.encoder.stages:
        for layer in stage.layers:  # so that the bias uses much of its range from 0 to 16
            layer.attention.self.continuous_position_bias_mlp[2].weight.mul_(2)
    _convolutions(body.conv_after_body)[-1].weight.mul_(body.img_range)
    # So that output values use much of [0, 1]. The rectifiers of this upsampler damp most.
    _convolutions(model)[-1].weight.mul_(1.5 if model.upsampler == "nearest+conv" else 0.3)


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [child for child in module.modules() if isinstance(child, nn.Conv2d)]


RECIPE = Recipe(
    name="swin2sr",
    summary="super-resolution and JPEG artefact removal with Swin2SR",
    variants=(
        Variant(
            "transformers",
            (
                r"swin2sr\.first_convolution\.weight",
                r"swin2sr\.encoder\.stages\.\d+\.layers\.\d+\.attention\.self\.logit_scale",
            ),
        ),
        Variant(
            "authors",
            (
                r"conv_first\.weight",
                r"layers\.\d+\.residual_group\.blocks\.\d+\.attn\.logit_scale",
            ),
        ),
    ),
    load=load,
    random=random,
    tolerance=Tolerance(max_abs=5e-5),
)
