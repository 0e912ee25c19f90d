"""Normalisation layers of the GAN generators, and their two rewrites for export."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Norm = Literal["batch", "instance", "none"]
"""``batch``: affine, with running statistics; ``instance``: neither; ``none``: the identity."""


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A layer for ``(N, channels, H, W)``. It takes a place in a Sequential for every kind."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.InstanceNorm2d(channels) if norm == "instance" else nn.Identity()


def neighbours(net: nn.Module) -> Iterator[tuple[nn.Sequential, int, nn.Module, nn.Module]]:
    """``(sequential, i, sequential[i], sequential[i + 1])`` for every pair of layers in ``net``."""
    for sequential in [m for m in net.modules() if isinstance(m, nn.Sequential)]:
        for i, (first, second) in enumerate(pairwise(list(sequential))):
            yield sequential, i, first, second


def fold_batch_norms(net: nn.Module) -> None:
    """Replace, in place, each convolution and the BatchNorm2d after it by one convolution.

    ``net`` is in eval mode. Folded in fp64, so that the only error is one rounding of each
    weight to fp32. Layers keep their numbers: an Identity takes the norm's place.
    """
    for sequential, i, conv, norm in neighbours(net):
        if isinstance(norm, nn.BatchNorm2d):
            # A layer without its convolution beside it would be left unfolded in silence.
            assert isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d))
            sequential[i] = _folded(conv, norm)
            sequential[i + 1] = nn.Identity()


def _folded(conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> nn.Module:
    transposed = isinstance(conv, nn.ConvTranspose2d)
    # .double() and .float() work in place on `conv` and `norm`, which are dropped here.
    return fuse_conv_bn_eval(conv.double(), norm.double(), transpose=transposed).float()


def use_image_statistics(net: nn.Module) -> None:
    """Make, in place, each BatchNorm2d normalise an image with that image's own statistics.

    This is what a BatchNorm2d in training mode does to a batch of one: mean and biased
    variance over H and W, then its affine weights. Running statistics are dropped.
    """
    for name, norm in list(net.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            instance = nn.InstanceNorm2d(norm.num_features, eps=norm.eps, affine=True)
            instance.weight, instance.bias = norm.weight, norm.bias
            net.set_submodule(name, instance.eval())
