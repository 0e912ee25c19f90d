"""Strict reading of weights and their configuration, for families without a library."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from pixelrt.errors import CheckpointError
from pixelrt.export.recipe import Config, Tensors

Net = TypeVar("Net", bound=nn.Module)

COUNTER = "num_batches_tracked"
"""Last part of the name of a BatchNorm2d's counter, which only training reads."""

CHANNELS = (1, 3)
SHOWN = 5
"""So many names are listed in a message before it says ``and ... more``."""

Choices = Mapping[str, Collection[Any]]
"""For every key of a configuration the values that it may have."""


# Configuration ------------------------------------------------------------------------------


def settle(known: Config, given: Config | None, choices: Choices, *, fixed: bool) -> Config:
    """``known``, overridden and completed by ``given``.

    ``fixed``: ``known`` was read off the weights, so ``given`` has to agree with it; else
    ``known`` are defaults. Raises CheckpointError for a key that is not in ``choices``, a
    value that is not among its choices, or a disagreement.
    """
    given = given or {}
    for key, value in given.items():
        if key not in choices:
            raise CheckpointError(
                f"The configuration has a key that this network does not know: {key}.",
                expected=", ".join(choices),
            )
        if fixed and key in known and known[key] != value:
            raise CheckpointError(
                f"The configuration and the weights disagree about {key}.",
                found=f"{value!r} in the configuration, {known[key]!r} in the weights",
                hint=f"leave {key} out: it is read off the weights",
            )
    config = {**known, **given}
    for key, value in config.items():
        _check_choice(key, value, choices[key])
    return config


def _check_choice(key: str, value: object, choice: Collection[Any]) -> None:
    # 1.0 and True compare equal to 1, so the type counts too.
    if value in choice and type(value) is type(next(iter(choice))):
        return
    allowed = f"{choice.start} to {choice.stop - 1}" if isinstance(choice, range) else choice
    expected = str(allowed) if isinstance(allowed, str) else " or ".join(map(repr, allowed))
    message = f"{key} has a value that this network cannot have."
    if choice is CHANNELS:
        message = f"Only images with 1 or 3 channels are supported, and {key} is neither."
    raise CheckpointError(message, found=repr(value), expected=expected)


# Weights ------------------------------------------------------------------------------------


def shape_of(tensors: Tensors, name: str, dims: int = 4) -> tuple[int, ...]:
    """The shape of a parameter; CheckpointError if it is not there or not ``dims``-dimensional."""
    if name not in tensors:
        raise CheckpointError(f"The weights have no parameter {name}.", found=_names(tensors))
    shape = tuple(tensors[name].shape)
    if len(shape) != dims:
        raise CheckpointError(
            f"{name} has a shape that this network cannot have.",
            found=str(shape),
            expected=f"{dims} dimensions",
        )
    return shape


def count(tensors: Tensors, name: Callable[[int], str]) -> int:
    """How many of the parameters ``name(0)``, ``name(1)``, … there are without a gap."""
    number = 0
    while name(number) in tensors:
        number += 1
    return number


def load_strictly(build: Callable[[], Net], tensors: Tensors) -> Net:
    """``build()`` with exactly these weights, in fp32 and eval mode, without gradients.

    Batch counters may be there or not. Raises CheckpointError that names each parameter
    which is missing, unexpected, of another shape or not of floating point.
    """
    with torch.device("meta"):
        net = build()
    expected = net.state_dict()
    given = {name: t for name, t in tensors.items() if name.rpartition(".")[2] != COUNTER}
    counters = [name for name in expected if name.rpartition(".")[2] == COUNTER]
    check_parameters({n: t for n, t in expected.items() if n not in counters}, given)
    weights = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in given.items()}
    weights |= {name: torch.zeros((), dtype=torch.long) for name in counters}
    net.load_state_dict(weights, assign=True)
    return net.eval().requires_grad_(False)


def check_parameters(expected: Tensors, given: Tensors) -> None:
    """Raises CheckpointError unless both have the same names with the same shapes, and
    ``given`` is of floating point."""
    found = differences(expected, given)
    if found:
        raise CheckpointError(
            "The weights do not fit the network.",
            found=found,
            hint="check that the file holds this generator, not a discriminator or a changed one",
        )


def differences(
    expected: Tensors, given: Tensors, named: Callable[[str], str] = lambda name: name
) -> str:
    """Each parameter that is missing, unexpected, of another shape or not of floating point.

    ``named``: a parameter's name in the file; those of one name are told once. Empty where
    all is as it should be.
    """
    both = [name for name in expected if name in given]
    kinds = {
        "missing": {name: "" for name in expected if name not in given},
        "unexpected": {name: "" for name in given if name not in expected},
        "other shape": {
            name: f" {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in both
            if given[name].shape != expected[name].shape
        },
        "not floating point": {n: "" for n in both if not given[n].is_floating_point()},
    }
    told = {
        kind: {named(name): detail for name, detail in names.items()}
        for kind, names in kinds.items()
        if names
    }
    return "; ".join(
        f"{kind}: {_names(name + detail for name, detail in names.items())}"
        for kind, names in told.items()
    )


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) + more) or "no parameters at all"
