"""SRGAN and SRResNet: super-resolution by 2, 4 or 8 (Ledig et al. 2017, arXiv:1609.04802).

Checkpoints of sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution. Input values are normalised
with the mean and deviation of ImageNet, output values are in [-1, 1].

Configuration: ``scale``, ``channels``, ``blocks`` (residual blocks), ``large_kernel`` (first
and last convolution), ``small_kernel`` (all others). All are read off the weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pixelrt.errors import CheckpointError
from pixelrt.export.families._gan import exportable, randomise
from pixelrt.export.families._weights import (
    Choices,
    count,
    load_strictly,
    settle,
    shape_of,
)
from pixelrt.export.networks.srgan import ResidualBlock, SRResNet
from pixelrt.export.recipe import Config, Network, Recipe, Tensors, Variant
from pixelrt.spec import ImageSpec, Tolerance

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UPSAMPLERS = {2: 1, 4: 2, 8: 3}
"""Scale to the number of blocks that double."""

OUTPUT_GAIN = 0.12
"""Of random weights: the sum over the residual blocks reaches the output unnormalised."""

CHOICES: Choices = {
    "scale": tuple(UPSAMPLERS),
    "channels": range(1, 1025),
    "blocks": range(1, 257),
    "large_kernel": range(1, 32, 2),
    "small_kernel": range(1, 32, 2),
}
DEFAULTS: Config = {
    "scale": 4,
    "channels": 64,
    "blocks": 16,
    "large_kernel": 9,
    "small_kernel": 3,
}


class Reference(nn.Module):
    """RGB in [0, 1] to RGB in [0, 1], with the tutorial's arithmetic around the network."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: SRResNet) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = (self.net((x - self.mean) / self.std) + 1) / 2
        return y


class Graph(nn.Module):
    """The same from an ``exportable`` network. Zero padding follows the normalisation, so
    that this cannot go into the first convolution."""

    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(self, net: SRResNet) -> None:
        super().__init__()
        self.net = net
        mean, std = (torch.tensor(t, dtype=torch.float64) for t in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("factor", (1 / std).float().view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).float().view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.net(x * self.factor + self.shift)
        return y


def load(variant: str, tensors: Tensors, config: Config | None) -> Network:
    """The network of a checkpoint; the contract is ``Recipe.load``."""
    prefix = "net." if variant == "generator" else ""
    found = _detect(tensors, prefix)
    settled = settle(found, config, CHOICES, fixed=True)

    def build() -> nn.Module:
        net = _build(settled)
        return nn.ModuleDict({"net": net}) if prefix else net

    net = load_strictly(build, tensors)
    net = net.get_submodule(prefix.rstrip("."))
    assert isinstance(net, SRResNet)
    return _network(net, settled)


def random(config: Config | None, seed: int) -> Network:
    """Seeded random weights; ``config`` may leave out keys. Usual: ``DEFAULTS``."""
    settled = settle(DEFAULTS, config, CHOICES, fixed=False)
    net = randomise(
        lambda: _build(settled), seed, residual_ends=_residual_ends, output_gain=OUTPUT_GAIN
    )
    return _network(net, settled)


def _residual_ends(net: SRResNet) -> Iterable[nn.Module]:
    blocks = (block for block in net.modules() if isinstance(block, ResidualBlock))
    return [block.conv_block2.conv_block[1] for block in blocks]


def _detect(tensors: Tensors, prefix: str) -> Config:
    channels, channels_in, large, _ = shape_of(tensors, f"{prefix}conv_block1.conv_block.0.weight")
    if channels_in != 3:
        raise CheckpointError(
            "Only networks for RGB images are supported.", found=f"{channels_in} input channels"
        )

    def residual(block: int) -> str:
        return f"{prefix}residual_blocks.{block}.conv_block1.conv_block.0.weight"

    def doubling(block: int) -> str:
        return f"{prefix}subpixel_convolutional_blocks.{block}.conv.weight"

    return {
        "scale": 2 ** count(tensors, doubling),
        "channels": channels,
        "blocks": count(tensors, residual),
        "large_kernel": large,
        "small_kernel": shape_of(tensors, residual(0))[-1],
    }


def _build(config: Config) -> SRResNet:
    names = ["channels", "blocks", "large_kernel", "small_kernel"]
    sizes = {name: config[name] for name in names}
    return SRResNet(upsamplers=UPSAMPLERS[config["scale"]], **sizes)


def _with_constant_slopes(net: SRResNet) -> SRResNet:
    """PReLU with its one learnt slope is LeakyReLU, which runtimes fuse into convolutions."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.PReLU):
            net.set_submodule(name, nn.LeakyReLU(module.weight.item()))
    return net


def _network(net: SRResNet, config: Config) -> Network:
    image = ImageSpec(
        task="super-resolution",
        scale=config["scale"],
        channels_in=3,
        channels_out=3,
        multiple=1,
        minimum=1,
        pad_mode="edge",
        statistics="local",
    )
    graph = Graph(_with_constant_slopes(exportable(net)))
    return Network(config=config, image=image, reference=Reference(net).eval(), graph=graph.eval())


RECIPE = Recipe(
    name="srgan",
    summary="super-resolution by 2, 4 or 8 with SRResNet, as trained by SRGAN",
    variants=(
        Variant(
            "generator",
            (
                r"net\.conv_block1\.conv_block\.0\.weight",
                r"net\.subpixel_convolutional_blocks\.0\.conv\.weight",
            ),
        ),
        Variant(
            "srresnet",
            (
                r"conv_block1\.conv_block\.0\.weight",
                r"subpixel_convolutional_blocks\.0\.conv\.weight",
            ),
        ),
    ),
    load=load,
    random=random,
    tolerance=Tolerance(max_abs=1e-5),
)
