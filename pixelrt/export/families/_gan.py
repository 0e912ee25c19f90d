"""What the GAN generators share: configuration, random weights, value ranges, exported form."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import nn

from pixelrt.errors import CheckpointError
from pixelrt.export.families._weights import COUNTER, Choices, settle
from pixelrt.export.networks.norm import fold_batch_norms, neighbours, use_image_statistics
from pixelrt.export.recipe import Config, Tensors
from pixelrt.spec import ImageSpec, Statistics

STATISTICS = ("running", "image")
"""Values of the configuration's ``norm_statistics``."""

Net = TypeVar("Net", bound=nn.Module)


# Configuration ------------------------------------------------------------------------------


def with_norm_statistics(config: Config) -> Config:
    """``config`` with ``norm_statistics`` if, and only if, it has batch norm.

    ``running`` (default): the statistics of the training, as in eval mode; ``image``: those
    of the image itself, as the official test script does without ``--eval``.
    """
    if config["norm"] == "batch":
        return {"norm_statistics": "running", **config}
    if "norm_statistics" in config:
        raise CheckpointError(
            "norm_statistics chooses the statistics of batch norm, which this network lacks.",
            found=f"norm: {config['norm']}",
            hint="leave norm_statistics out",
        )
    return config


def find_norm(tensors: Tensors, norm_weight: str, conv_bias: str) -> str:
    """The kind of norm: batch has weights; beside instance norm the convolutions have biases."""
    if norm_weight in tensors:
        return "batch"
    return "instance" if conv_bias in tensors else "none"


def settle_read(
    found: Config, config: Config | None, choices: Choices, tensors: Tensors
) -> tuple[Config, Tensors]:
    """The whole configuration of a translation network, and the weights that it takes.

    ``found`` was read off the weights; see ``settle``.
    """
    settled = with_norm_statistics(settle(found, config, choices, fixed=True))
    whole_image = settled["norm"] == "instance"
    return settled, drop_instance_statistics(tensors) if whole_image else tensors


def settle_random(
    config: Config | None,
    usual: str,
    defaults: Mapping[str, Config],
    choices: Mapping[str, Choices],
) -> Config:
    """The whole configuration of a translation network without weights.

    ``defaults`` and ``choices`` by variant; ``usual``: the one where ``config`` names none.
    """
    variant = (config or {}).get("variant", usual)
    settled = settle({"variant": variant}, None, {"variant": tuple(defaults)}, fixed=False)
    settled = settle(defaults[settled["variant"]], config, choices[variant], fixed=False)
    return with_norm_statistics(settled)


def drop_instance_statistics(tensors: Tensors) -> Tensors:
    """Without the running statistics that old versions of InstanceNorm2d wrote.

    junyanz/pytorch-CycleGAN-and-pix2pix discards them too (``base_model.py``): the
    statistics are those of the image.
    """
    ends = (".running_mean", ".running_var", f".{COUNTER}")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(ends)}


# Random weights -----------------------------------------------------------------------------


def randomise(
    build: Callable[[], Net],
    seed: int,
    *,
    residual_ends: Callable[[Net], Iterable[nn.Module]] = lambda net: (),
    output_gain: float = 0.5,
) -> Net:
    """``build()`` with seeded weights that keep the variance of a signal from layer to layer.

    Batch norms get statistics and affine weights away from 0 and 1. ``residual_ends``: the
    last layer with weights of each residual branch. They are damped, or many branches would
    add up to a huge signal. ``output_gain`` scales the convolution before the tanh, so that
    the output neither saturates nor goes flat.
    """
    with torch.device("meta"):
        net = build()
    net.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    last = [conv for _, _, conv, after in neighbours(net) if isinstance(after, nn.Tanh)]
    ends = list(residual_ends(net))
    for module in net.modules():
        gain = output_gain if module in last else 0.25 if module in ends else math.sqrt(2)
        _fill(module, gain, generator)
    return net


def _fill(module: nn.Module, gain: float, generator: torch.Generator) -> None:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        inputs = module.in_channels * math.prod(module.kernel_size)
        if isinstance(module, nn.ConvTranspose2d):
            inputs //= math.prod(module.stride)  # an output pixel sees this share of the taps
        module.weight.normal_(0, gain / math.sqrt(inputs), generator=generator)
        if module.bias is not None:
            module.bias.normal_(0, 0.05, generator=generator)
    elif isinstance(module, nn.BatchNorm2d):
        assert module.running_mean is not None
        assert module.running_var is not None
        assert module.num_batches_tracked is not None
        module.weight.normal_(1, 0.1, generator=generator).mul_(min(gain, 1))
        module.bias.normal_(0, 0.1, generator=generator)
        module.running_mean.normal_(0, 0.1, generator=generator)
        module.running_var.uniform_(0.5, 1.5, generator=generator)
        module.num_batches_tracked.zero_()
    elif isinstance(module, nn.PReLU):
        module.weight.uniform_(0.1, 0.3, generator=generator)
    else:  # a new kind of layer must not keep the uninitialised memory it was given
        assert not list(module.parameters(recurse=False)), type(module)


# Value ranges and the exported form ---------------------------------------------------------


class SignedRange(nn.Module):
    """A network from [-1, 1] to [-1, 1] as one from [0, 1] to [0, 1]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = (self.net(x * 2 - 1) + 1) / 2
        return y


class SignedInput(nn.Module):
    """A network from [-1, 1] to [0, 1] as one from [0, 1] to [0, 1]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.net(x * 2 - 1)
        return y


def exportable(net: Net) -> Net:
    """A copy of ``net`` that gives [0, 1] for its [-1, 1], batch norms folded.

    ``(tanh(x) + 1) / 2`` is ``sigmoid(2 * x)``: the 2 goes into the last convolution, where
    doubling is exact, and three graph nodes become one.
    """
    net = copy.deepcopy(net)
    fold_batch_norms(net)
    for sequential, i, conv, after in list(neighbours(net)):
        if isinstance(after, nn.Tanh):
            assert isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d))
            assert conv.bias is not None
            conv.weight.mul_(2)
            conv.bias.mul_(2)
            sequential[i + 1] = nn.Sigmoid()
    return net


def translation_image(config: Config, multiple: int, minimum: int) -> ImageSpec:
    """The facts of a translation network: as large a picture comes out as goes in."""
    whole = config["norm"] == "instance" or config.get("norm_statistics") == "image"
    statistics: Statistics = "image" if whole else "local"
    return ImageSpec(
        task="translation",
        scale=1,
        channels_in=config["channels_in"],
        channels_out=config["channels_out"],
        multiple=multiple,
        minimum=minimum,
        pad_mode="reflect",
        statistics=statistics,
    )


def translation_modules(net: nn.Module, config: Config) -> tuple[nn.Module, nn.Module]:
    """``(reference, graph)`` of a translation network from [-1, 1] to [-1, 1]."""
    if config.get("norm_statistics") == "image":
        use_image_statistics(net)
    return SignedRange(net).eval(), SignedInput(exportable(net)).eval()
