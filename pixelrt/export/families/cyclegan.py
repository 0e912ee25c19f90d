"""CycleGAN: image translation with a residual network (Zhu et al. 2017, arXiv:1703.10593).

Configuration: ``variant``; ``channels_in``, ``channels_out`` (1 or 3); ``width`` (channels
after the first convolution); ``blocks`` (residual blocks); ``norm``; ``dropout`` (a layer that
is off, but shifts the names of parameters); with batch norm ``norm_statistics``, see
``with_norm_statistics``. All but the last are read off the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from pixelrt.export.families._gan import (
    STATISTICS,
    find_norm,
    randomise,
    settle_random,
    settle_read,
    translation_image,
    translation_modules,
)
from pixelrt.export.families._weights import CHANNELS, Choices, count, load_strictly, shape_of
from pixelrt.export.networks.cyclegan import ChapterResNet, DeconvBlock, DeconvResNet
from pixelrt.export.recipe import Config, Network, Recipe, Tensors, Variant
from pixelrt.spec import Tolerance

FIRST_BLOCK = 10
"""Number of the first residual block in the generator's list of layers."""

_SHARED: Choices = {
    "channels_in": CHANNELS,
    "channels_out": CHANNELS,
    "width": range(1, 1025),
    "blocks": range(1, 65),
}
CHOICES: dict[str, Choices] = {
    "chapter": {"variant": ("chapter",), **_SHARED, "norm": ("instance",)},
    "resnet": {
        "variant": ("resnet",),
        **_SHARED,
        "norm": ("batch", "instance", "none"),
        "dropout": (False, True),
        "norm_statistics": STATISTICS,
    },
}
_RGB: Config = {"channels_in": 3, "channels_out": 3, "width": 64, "blocks": 9}
DEFAULTS: dict[str, Config] = {
    "chapter": {"variant": "chapter", **_RGB, "norm": "instance"},
    "resnet": {"variant": "resnet", **_RGB, "norm": "instance", "dropout": False},
}


def load(variant: str, tensors: Tensors, config: Config | None) -> Network:
    """The network of a checkpoint; the contract is ``Recipe.load``."""
    found = _detect_chapter(tensors) if variant == "chapter" else _detect_resnet(tensors)
    settled, tensors = settle_read(found, config, CHOICES[variant], tensors)
    return _network(load_strictly(_builder(settled), tensors), settled)


def random(config: Config | None, seed: int) -> Network:
    """Seeded random weights; ``config`` may leave out keys. Usual: ``resnet_9blocks``."""
    settled = settle_random(config, "resnet", DEFAULTS, CHOICES)
    return _network(randomise(_builder(settled), seed, residual_ends=_residual_ends), settled)


def _residual_ends(net: nn.Module) -> Iterable[nn.Module]:
    for block in net.modules():
        if isinstance(block, DeconvBlock):
            *_, conv, norm = block.conv_block
            yield norm if isinstance(norm, nn.BatchNorm2d) else conv


def _sizes(tensors: Tensors, block: str, last: int) -> Config:
    """``last``: how many layers after the residual blocks the last convolution comes."""
    width, channels_in, *_ = shape_of(tensors, "model.1.weight")
    blocks = count(tensors, lambda i: f"model.{FIRST_BLOCK + i}.{block}.1.weight")
    channels_out = shape_of(tensors, f"model.{FIRST_BLOCK + blocks + last}.weight")[0]
    return {
        "channels_in": channels_in,
        "channels_out": channels_out,
        "width": width,
        "blocks": blocks,
    }


def _detect_chapter(tensors: Tensors) -> Config:
    return {**DEFAULTS["chapter"], **_sizes(tensors, "block", last=9)}


def _detect_resnet(tensors: Tensors) -> Config:
    return {
        "variant": "resnet",
        **_sizes(tensors, "conv_block", last=7),
        "norm": find_norm(tensors, "model.2.weight", "model.1.bias"),
        "dropout": f"model.{FIRST_BLOCK}.conv_block.6.weight" in tensors
        and f"model.{FIRST_BLOCK}.conv_block.5.weight" not in tensors,
    }


def _builder(config: Config) -> Callable[[], nn.Module]:
    names = ["channels_in", "channels_out", "width", "blocks"]
    if config["variant"] == "chapter":
        return lambda: ChapterResNet(**{name: config[name] for name in names})
    return lambda: DeconvResNet(**{name: config[name] for name in [*names, "norm", "dropout"]})


def _network(net: nn.Module, config: Config) -> Network:
    reference, graph = translation_modules(net, config)
    # A quarter of 4 is 1 pixel: too few to reflect at, and no statistics.
    image = translation_image(config, multiple=4, minimum=8)
    return Network(config=config, image=image, reference=reference, graph=graph)


RECIPE = Recipe(
    name="cyclegan",
    summary="image translation with the residual network of CycleGAN",
    variants=(
        Variant("chapter", (r"model\.1\.weight", r"model\.10\.block\.1\.weight")),
        Variant("resnet", (r"model\.1\.weight", r"model\.10\.conv_block\.1\.weight")),
    ),
    load=load,
    random=random,
    tolerance=Tolerance(max_abs=1e-5),
)
