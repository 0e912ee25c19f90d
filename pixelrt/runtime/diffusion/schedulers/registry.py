"""Schedulers by the class that a configuration names, or by the name that a user chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pixelrt.errors import InputError, UsageError
from pixelrt.runtime.diffusion.schedulers.base import Scheduler
from pixelrt.runtime.diffusion.schedulers.ddim import DDIMOptions, DDIMScheduler
from pixelrt.runtime.diffusion.schedulers.ddpm import (
    DDPMOptions,
    DDPMScheduler,
    UnCLIPOptions,
    UnCLIPScheduler,
)
from pixelrt.runtime.diffusion.schedulers.dpm_solver import DPMSolverOptions, DPMSolverScheduler
from pixelrt.runtime.diffusion.schedulers.euler import (
    EulerAncestralOptions,
    EulerAncestralScheduler,
    EulerOptions,
    EulerScheduler,
)
from pixelrt.runtime.diffusion.schedulers.lcm import LCMOptions, LCMScheduler
from pixelrt.runtime.diffusion.schedulers.options import Options, read_options
from pixelrt.runtime.diffusion.schedulers.pndm import PNDMOptions, PNDMScheduler
from pixelrt.runtime.diffusion.schedulers.unipc import UniPCOptions, UniPCScheduler

CLASSES: tuple[tuple[type[Scheduler[Any]], type[Options]], ...] = (
    (DDIMScheduler, DDIMOptions),
    (DDPMScheduler, DDPMOptions),
    (DPMSolverScheduler, DPMSolverOptions),
    (EulerAncestralScheduler, EulerAncestralOptions),
    (EulerScheduler, EulerOptions),
    (LCMScheduler, LCMOptions),
    (PNDMScheduler, PNDMOptions),
    (UnCLIPScheduler, UnCLIPOptions),
    (UniPCScheduler, UniPCOptions),
)

SHARED_KEYS = frozenset(item.name for _, options in CLASSES for item in fields(options))


@dataclass(frozen=True)
class Choice:
    """A name, its class, and the options that the name stands for."""

    name: str
    kind: type[Scheduler[Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


_KARRAS = {
    "use_karras_sigmas": True,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
}
_ODE = {"algorithm_type": "dpmsolver++"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}

CHOICES = (
    Choice("ddim", DDIMScheduler),
    Choice("ddpm", DDPMScheduler),
    Choice("dpm++", DPMSolverScheduler, _ODE),
    Choice("dpm++-karras", DPMSolverScheduler, _ODE | _KARRAS),
    Choice("dpm++-sde", DPMSolverScheduler, _SDE),
    Choice("dpm++-sde-karras", DPMSolverScheduler, _SDE | _KARRAS),
    Choice("euler", EulerScheduler),
    Choice("euler-a", EulerAncestralScheduler),
    Choice("euler-karras", EulerScheduler, _KARRAS),
    Choice("lcm", LCMScheduler),
    Choice("pndm", PNDMScheduler),
    Choice("unclip", UnCLIPScheduler),
    Choice("unipc", UniPCScheduler),
    Choice("unipc-karras", UniPCScheduler, _KARRAS),
)
NAMES = tuple(choice.name for choice in CHOICES)
"""What a user may choose."""


def make_scheduler(config: Mapping[str, Any], name: str | None = None) -> Scheduler[Any]:
    """The scheduler of a model's ``scheduler_config.json``, or another one for that model.

    ``name``: one of ``NAMES``. The class changes and the options that both have stay, as
    with diffusers' ``Scheduler.from_config(pipe.scheduler.config)``.

    Raises ``UsageError`` for an unknown name; ``InputError`` for a configuration that names
    no known class, and for an unknown option or a value that is not implemented.
    """
    if name is None:
        return _make(_class_named(config), config)
    for choice in CHOICES:
        if choice.name == name:
            return _make(choice.kind, {**config, **choice.options})
    raise UsageError(f"unknown scheduler {name!r}", expected=", ".join(NAMES))


def _make(kind: type[Scheduler[Any]], config: Mapping[str, Any]) -> Scheduler[Any]:
    options = dict(CLASSES)[kind]
    return kind(read_options(options, config, kind.name, SHARED_KEYS))


def _class_named(config: Mapping[str, Any]) -> type[Scheduler[Any]]:
    name = config.get("_class_name")
    for kind, _ in CLASSES:
        if kind.name == name:
            return kind
    raise InputError(
        "the model's scheduler is not implemented"
        if name
        else "the scheduler's configuration names no class (_class_name)",
        found=repr(name),
        expected=", ".join(kind.name for kind, _ in CLASSES),
        hint=f"choose a scheduler by name: {', '.join(NAMES)}",
    )
