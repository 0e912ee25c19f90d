"""What a family has to provide to be exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pixelrt.spec import ImageSpec, Tolerance

Tensors = Mapping[str, torch.Tensor]
"""A state dict: parameter name to tensor, without any common prefix."""

Config = dict[str, Any]
"""The configuration of a network: plain JSON values only."""


@dataclass(frozen=True)
class Variant:
    """One form in which checkpoints of a family are found.

    ``keys`` are regular expressions; a state dict is of this variant when each of them
    fully matches at least one parameter name.
    """

    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Network:
    """A network with its weights, ready to be exported. Both modules are in eval mode.

    ``reference`` defines what is right: the published maths in fp32. ``graph`` is the same
    function in the form that is exported (constants precomputed, exporter-friendly); it may
    be the same object. Both take ``(N, channels_in, H, W)`` float32 in [0, 1] and give
    ``(N, channels_out, scale*H, scale*W)`` float32 with nominal range [0, 1], not clamped;
    the network's own normalisation is inside. H and W are multiples of ``image.multiple``
    and at least ``image.minimum``.

    ``variants``: further forms of the same function, by the backend that runs them faster
    than ``graph``. They are exported and verified like it.
    """

    config: Config
    image: ImageSpec
    reference: nn.Module
    graph: nn.Module
    variants: Mapping[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A family of networks.

    ``load(variant, tensors, config)``: the network of a checkpoint. ``config`` is what came
    with the checkpoint (``config.json``) or from the user, or ``None``: then it is found from
    the names and shapes of the tensors. Raises ``CheckpointError`` where tensors and
    configuration disagree, naming the parameter.

    ``random(config, seed)``: the architecture with seeded random weights; ``config`` ``None``
    means the family's usual one.
    """

    name: str
    summary: str
    variants: tuple[Variant, ...]
    load: Callable[[str, Tensors, Config | None], Network]
    random: Callable[[Config | None, int], Network]
    tolerance: Tolerance
