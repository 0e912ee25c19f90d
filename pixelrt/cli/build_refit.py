"""``pixelrt build --refit-from``: which plans of another bundle get this one's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pixelrt.cli.build_requests import Wishes
from pixelrt.errors import InputError, UsageError

if TYPE_CHECKING:
    from pixelrt.bundle import BundledNetwork
    from pixelrt.engines.make import Request
    from pixelrt.engines.refit import Source
    from pixelrt.plans.target import Flavour
    from pixelrt.plans.tensorrt import TensorRT

    Pairs = list[tuple[BundledNetwork, BundledNetwork]]
    """A network and the one of the same name whose plans are looked for."""

TOGETHER = (
    "bundle_name",
    "refit_from",
    "refit",
    "backend",
    "networks",
    "graph",
    "target_db",
    "show",
    "json_file",
    "output",
    "quiet",
)
"""Options that go with --refit-from; the others say what a plan is, which the old one has said."""


def refuse_others(context: click.Context) -> None:
    """Raise ``UsageError`` for options of a build that a refitted plan cannot follow."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name
        and parameter.name not in TOGETHER
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(
            "a refitted plan keeps sizes, precision and all else that it was built with",
            found=", ".join(given),
            hint=f"leave {given[0]} out, or build a plan of its own without --refit-from",
        )


def refits_of(
    path: Path, old: Path, wishes: Wishes, flavour: Flavour, note: Callable[[str], None]
) -> tuple[TensorRT, list[tuple[Request, Source]]]:
    """What is to be refitted, plan by plan; ``note`` hears what is left out and why.

    Raises ``BackendError`` without a GPU or a TensorRT that can do it, before a bundle is read;
    ``BundleError``; ``InputError`` where nothing, or not all that was named, can be refitted.
    """
    from pixelrt.engines import build
    from pixelrt.engines.options import gpu_for
    from pixelrt.engines.refit import check_refit, sources_of
    from pixelrt.pipeline_bundle import is_pipeline

    trt = build.load_tensorrt(flavour)
    check_refit(trt)
    here = gpu_for("the weights of a plan are replaced", trt)
    pairs, reasons = (_networks if is_pipeline(path) else _image)(path, old, wishes)
    found: list[tuple[Request, Source]] = []
    for network, before in pairs:
        for graph in before.component.graphs:
            if wishes.graph in (None, graph.role):
                sources, words = sources_of(before, graph, here)
                if graph.role == "network" and not (sources or words):
                    words = [f"{before.name}: no plan"]
                found += [(one.request(network, wishes.target_db), one) for one in sources]
                reasons += words
    lacking = set(wishes.networks) - {request.bundle.component.name for request, _ in found}
    if lacking or not found:
        raise InputError(
            f"{old} has no plan that can be given the weights of {path}",
            found="; ".join(dict.fromkeys(reasons)) or "no plan at all",
            expected=f"a plan that `pixelrt build {old} --refit` made on this machine",
        )
    for reason in dict.fromkeys(reasons):
        note(f"left out  {reason}")
    return trt, found


def _image(path: Path, old: Path, wishes: Wishes) -> tuple[Pairs, list[str]]:
    from pixelrt.bundle import open_bundle

    if wishes.networks:
        raise UsageError(f"{path} is no pipeline, which --network is not for")
    return [(open_bundle(path), open_bundle(old))], []


def _networks(path: Path, old: Path, wishes: Wishes) -> tuple[Pairs, list[str]]:
    from pixelrt.pipeline_bundle import open_pipeline

    if wishes.graph:
        raise UsageError(f"{path} is a pipeline, which --graph is not for")
    bundle, before = open_pipeline(path), open_pipeline(old)
    names = wishes.networks or tuple(dict.fromkeys((*bundle.names(), *before.names())))
    pairs: Pairs = []
    reasons: list[str] = []
    for name in names:
        if lacking := [str(one.root) for one in (bundle, before) if name not in one.names()]:
            reasons.append(f"{name}: {' and '.join(lacking)} has no such network")
        else:
            pairs.append((bundle.network(name), before.network(name)))
    return pairs, reasons
