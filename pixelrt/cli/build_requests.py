"""What ``pixelrt build`` is asked for: a plan of an image bundle, or those of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pixelrt.errors import UsageError

if TYPE_CHECKING:
    from pixelrt.bundle import BundledNetwork
    from pixelrt.engines.make import Request
    from pixelrt.engines.options import BuildOptions
    from pixelrt.manifest import GraphRole
    from pixelrt.plans.profiles import Profile
    from pixelrt.plans.target import Flavour
    from pixelrt.plans.tensorrt import TensorRT
    from pixelrt.spec import ImageSpec

TARGET_DB = 60.0
"""Least PSNR of a converted image network against float32."""


@dataclass(frozen=True)
class Wishes:
    """What a user says of graphs, shapes and fidelity. ``target_db``: ``None`` for the usual."""

    shapes: tuple[str, ...] = ()
    static: bool = False
    graph: GraphRole | None = None
    networks: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    target_db: float | None = None


def requests_of(
    path: Path, wishes: Wishes, options: BuildOptions, flavour: Flavour
) -> tuple[TensorRT, list[Request]]:
    """The plans to build, one after the other. ``options``: all but the profiles.

    Raises ``UsageError``, ``BundleError``, and what ``load_tensorrt`` and ``check_options`` raise.
    """
    from pixelrt.engines import build
    from pixelrt.engines.make import Request
    from pixelrt.pipeline_bundle import is_pipeline

    made: Iterable[tuple[BundledNetwork, GraphRole, BuildOptions, float]]
    made = (_networks if is_pipeline(path) else _image)(path, wishes, options)
    trt = build.load_tensorrt(flavour)
    requests = []
    for network, role, chosen, target_db in made:
        build.check_options(chosen, trt)
        requests.append(
            Request(
                network,
                role,
                chosen,
                build.target_of(chosen, trt),
                wishes.target_db or target_db,
            )
        )
    return trt, requests


def _image(
    path: Path, wishes: Wishes, options: BuildOptions
) -> list[tuple[BundledNetwork, GraphRole, BuildOptions, float]]:
    from pixelrt.bundle import open_bundle

    bundle = open_bundle(path)
    _refuse(path, "no pipeline", {"--network": wishes.networks, "--axis": wishes.axes})
    profiles = _profiles(wishes.shapes, bundle.manifest.image, static=wishes.static)
    return [(bundle, wishes.graph or "image", replace(options, profiles=profiles), TARGET_DB)]


def _networks(
    path: Path, wishes: Wishes, options: BuildOptions
) -> list[tuple[BundledNetwork, GraphRole, BuildOptions, float]]:
    from pixelrt.pipeline_bundle import open_pipeline
    from pixelrt.plans.axis_defaults import pipeline_profiles

    bundle = open_pipeline(path)
    _refuse(path, "a pipeline", {"--graph": wishes.graph or ""})
    names = list(dict.fromkeys(wishes.networks)) or list(bundle.names())
    profiles = pipeline_profiles(bundle, names, wishes.shapes, wishes.axes, static=wishes.static)
    found = [bundle.network(name) for name in names]
    return [
        (
            one,
            "network",
            replace(options, profiles=profiles[one.component.name]),
            one.network.low_psnr,
        )
        for one in found
    ]


def _refuse(path: Path, what: str, options: dict[str, Sequence[str]]) -> None:
    for name, given in options.items():
        if given:
            raise UsageError(f"{path} is {what}, which {name} is not for", hint=f"leave {name} out")


def _profiles(shapes: tuple[str, ...], spec: ImageSpec, *, static: bool) -> tuple[Profile, ...]:
    from pixelrt.plans.profiles import check_profiles, default_profile, parse_profile

    profiles = tuple(parse_profile(text) for text in shapes) or (default_profile(spec),)
    if static:
        profiles = tuple(profile.as_static() for profile in profiles)
    if len(set(profiles)) < len(profiles):
        raise UsageError("a profile is given twice", found=", ".join(map(str, profiles)))
    check_profiles(profiles, spec)
    return profiles


def check_places(requests: Sequence[Request], output: Path | None, json_file: Path | None) -> None:
    """Raise ``UsageError`` where one file would have to hold what belongs to several networks."""
    if len(requests) == 1:
        return
    names = ", ".join(request.bundle.component.name for request in requests)
    if output is not None and not output.is_dir():
        raise UsageError(
            f"{output} cannot hold several plans",
            found=names,
            expected="a folder that exists, or one --network",
        )
    if json_file is not None:
        raise UsageError("--json writes one report", found=names, hint="name one --network")
