"""pix2pix: image translation with a U-Net (Isola et al. 2017, arXiv:1611.07004).

Configuration: ``variant``; ``channels_in``, ``channels_out`` (1 or 3); ``width`` (channels of
the first level); ``downs`` (halvings); ``norm``; with batch norm ``norm_statistics``, see
``with_norm_statistics``. All but the last are read off the weights.

The official test script leaves dropout on as a source of noise. Here it is always off.
"""

from __future__ import annotations

from collections.abc import Callable

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
from pixelrt.export.networks.phases import with_phases
from pixelrt.export.networks.pix2pix import CHAPTER_DOWNS, ChapterUNet, SkipUNet
from pixelrt.export.recipe import Config, Network, Recipe, Tensors, Variant
from pixelrt.manifest import OPENVINO_LOW
from pixelrt.spec import Tolerance

_SHARED: Choices = {
    "channels_in": CHANNELS,
    "channels_out": CHANNELS,
    "width": range(1, 1025),
}
CHOICES: dict[str, Choices] = {
    "chapter": {
        "variant": ("chapter",),
        **_SHARED,
        "downs": (CHAPTER_DOWNS,),
        "norm": ("instance",),
    },
    "unet": {
        "variant": ("unet",),
        **_SHARED,
        "downs": range(5, 11),
        "norm": ("batch", "instance", "none"),
        "norm_statistics": STATISTICS,
    },
}
_RGB: Config = {"channels_in": 3, "channels_out": 3, "width": 64, "downs": 8}
DEFAULTS: dict[str, Config] = {
    "chapter": {"variant": "chapter", **_RGB, "norm": "instance"},
    "unet": {"variant": "unet", **_RGB, "norm": "batch"},
}


def load(variant: str, tensors: Tensors, config: Config | None) -> Network:
    """The network of a checkpoint; the contract is ``Recipe.load``."""
    found = _detect_chapter(tensors) if variant == "chapter" else _detect_unet(tensors)
    settled, tensors = settle_read(found, config, CHOICES[variant], tensors)
    return _network(load_strictly(_builder(settled), tensors), settled)


def random(config: Config | None, seed: int) -> Network:
    """Seeded random weights; ``config`` may leave out keys. Usual: ``unet_256``, batch norm."""
    settled = settle_random(config, "unet", DEFAULTS, CHOICES)
    return _network(randomise(_builder(settled), seed), settled)


def _detect_chapter(tensors: Tensors) -> Config:
    width, channels_in, *_ = shape_of(tensors, "down1.model.0.weight")
    channels_out = shape_of(tensors, "final.2.weight")[0]
    return {
        **DEFAULTS["chapter"],
        "channels_in": channels_in,
        "channels_out": channels_out,
        "width": width,
    }


def _detect_unet(tensors: Tensors) -> Config:
    width, channels_in, *_ = shape_of(tensors, "model.model.0.weight")
    return {
        "variant": "unet",
        "channels_in": channels_in,
        "channels_out": shape_of(tensors, "model.model.3.weight")[1],
        "width": width,
        "downs": 1 + count(tensors, _down_convolution),
        "norm": find_norm(tensors, "model.model.1.model.2.weight", "model.model.0.bias"),
    }


def _down_convolution(level: int) -> str:
    """Name of a halving convolution below the outermost; each level nests in ``model.3``."""
    return "model.model.1." + "model.3." * level + "model.1.weight"


def _builder(config: Config) -> Callable[[], nn.Module]:
    names = ["channels_in", "channels_out", "width"]
    if config["variant"] == "chapter":
        return lambda: ChapterUNet(**{name: config[name] for name in names})
    return lambda: SkipUNet(**{name: config[name] for name in [*names, "downs", "norm"]})


def _network(net: nn.Module, config: Config) -> Network:
    reference, graph = translation_modules(net, config)
    grid = 2 ** config["downs"]
    image = translation_image(config, multiple=grid, minimum=grid)
    return Network(config, image, reference, graph, {OPENVINO_LOW: with_phases(graph)})


RECIPE = Recipe(
    name="pix2pix",
    summary="image translation with the U-Net of pix2pix",
    variants=(
        Variant(
            "chapter", (r"down1\.model\.0\.weight", r"up7\.model\.0\.weight", r"final\.2\.weight")
        ),
        Variant(
            "unet",
            (
                r"model\.model\.0\.weight",
                r"model\.model\.1\.model\.1\.weight",
                r"model\.model\.3\.weight",
            ),
        ),
    ),
    load=load,
    random=random,
    tolerance=Tolerance(max_abs=1e-5),
)
