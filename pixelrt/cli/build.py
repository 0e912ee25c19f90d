"""``pixelrt build``: a bundle's graph to a TensorRT plan."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pixelrt.cache import cache_folder
from pixelrt.cli.build_refit import refits_of, refuse_others
from pixelrt.cli.build_requests import Wishes, check_places, requests_of
from pixelrt.cli.options import ByteCount
from pixelrt.cli.terminal import note, phase_bar
from pixelrt.errors import BackendError, CheckError, OutputError
from pixelrt.files import atomic_write
from pixelrt.runtime.load import SHIPPED, bundle_path

if TYPE_CHECKING:
    from pixelrt.bundle import Bundle
    from pixelrt.engines.make import Made, Request
    from pixelrt.engines.report import Precision
    from pixelrt.manifest import GraphRole
    from pixelrt.plans.target import Flavour, Target
    from pixelrt.plans.tensorrt import TensorRT


@click.command("build")
@click.argument("bundle_name", metavar="BUNDLE")
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    default="tensorrt",
    show_default=True,
    help="tensorrt builds for this machine's GPU; tensorrt-rtx without a GPU, for RTX GPUs.",
)
@click.option("--target", metavar="SM", help="GPUs to build for (tensorrt-rtx): sm86,sm89,sm120.")
@click.option(
    "--shapes",
    multiple=True,
    metavar="MIN,OPT,MAX",
    help="Heights and widths that the plan takes: 64x64,256x256,512x512, or with a batch "
    "1x64x64,1x256x256,4x512x512. Once for each profile.",
)
@click.option("--network", "networks", multiple=True, help="Of a pipeline, these alone: unet.")
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="NAME=MIN,OPT,MAX",
    help="Of a pipeline, how long an axis may be, by its name in `pixelrt inspect`: "
    "B=1,2,8, h=64. Once for each axis.",
)
@click.option("--static", is_flag=True, help="The optimum shape only: smaller and faster.")
@click.option(
    "--graph",
    type=click.Choice(["image", "core"]),
    help="image (the default): uint8 in and out; core: float32.",
)
@click.option(
    "--precision",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    default="float16",
    show_default=True,
    help="What the graph is converted to before the build; parts that need it stay float32.",
)
@click.option(
    "--target-db",
    type=click.FloatRange(20, 120),
    help="Least PSNR of the converted graph against float32 on the bundle's samples: 60, or "
    "what a pipeline's bundle says of a network.",
)
@click.option("--workspace", type=ByteCount(), help="Scratch memory that a layer may use: 2GB.")
@click.option("--level", type=click.IntRange(0, 5), help="0 builds fast, 5 runs fast; else 3.")
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
    default="none",
    help="GPUs beside this one that the plan runs on (tensorrt).",
)
@click.option("--version-compatible", is_flag=True, help="Runs on later TensorRT versions too.")
@click.option("--strip", "strip_plan", is_flag=True, help="Leave the weights out of the plan.")
@click.option("--refit", is_flag=True, help="Weights can be replaced later.")
@click.option(
    "--refit-from",
    metavar="OLD",
    help="Build nothing: give the plans of this bundle, built with --refit, BUNDLE's weights.",
)
@click.option("--dla-core", type=click.IntRange(0), help="Run on this DLA of a Jetson.")
@click.option("--no-tf32", is_flag=True, help="Full float32 in matrix products.")
@click.option("--report", "show", is_flag=True, help="Show what TensorRT made of the graph.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write that as JSON.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="NAME.plan to write, or a folder; else the plan goes into the bundle.",
)
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def command(
    bundle_name: str,
    backend: str,
    target: str | None,
    shapes: tuple[str, ...],
    static: bool,
    networks: tuple[str, ...],
    axes: tuple[str, ...],
    graph: str | None,
    precision: str,
    target_db: float | None,
    show: bool,
    json_file: Path | None,
    output: Path | None,
    quiet: bool,
    no_tf32: bool,
    refit_from: str | None,
    **more: Any,
) -> None:
    """Build a TensorRT plan from BUNDLE and put it there, where `pixelrt run` finds it.

    Of a pipeline, plans of all its networks, or of those named by --network.

    Beside the plan stand its facts (what it is bound to, its key and digests, how the graph
    was converted), a report of what TensorRT made of it, and a sample of its size to be held
    against. A graph that misses the reference is not built, and a plan that does not run in
    the precision of its graph is not written.

    With --refit-from no kernels are chosen again: the same network with other weights, such as
    with a LoRA merged in, takes the plans of OLD.
    """
    from pixelrt.engines.options import BuildOptions
    from pixelrt.plans.target import parse_capabilities

    flavour = cast("Flavour", backend)
    options = BuildOptions(
        (),
        precision=cast("Precision", precision),
        capabilities=parse_capabilities(target, flavour) if target else (),
        tf32=not no_tf32,
        **more,
    )
    role = cast("GraphRole | None", graph)
    wishes = Wishes(shapes, static, role, networks, axes, target_db)
    path = bundle_path(bundle_name)
    jobs: list[tuple[Request, Callable[[], Made]]]
    if refit_from is None:
        trt, requests = requests_of(path, wishes, options, flavour)
        jobs = [(request, partial(_make, request, trt, quiet=quiet)) for request in requests]
    else:
        refuse_others(click.get_current_context())
        jobs = _refits(path, bundle_path(refit_from), wishes, flavour, quiet=quiet)
    check_places([request for request, _ in jobs], output, json_file)
    for request, make in jobs:
        if len(jobs) > 1 and not quiet:
            profiles = " and ".join(map(str, request.options.profiles))
            note(f"{request.bundle.component.name}: {profiles}")
        made = make()
        if json_file:
            with atomic_write(json_file) as file:
                file.write(made.files[REPORT])
        proof = prove(made, request)
        place = _keep(made, request, output, shipped=bundle_name in SHIPPED)
        if not quiet:
            note(proof)
            _tell(made, place, show=show)


REPORT = "report.json"


def ensure_plan(bundle: Bundle, *, shipped: bool, quiet: bool) -> None:
    """Build a plan for this machine's GPU, with the usual options, unless one fits it.

    Where that cannot be, the reasons are told and nothing happens: another backend may do.
    """
    from pixelrt.engines import build
    from pixelrt.engines.make import Request
    from pixelrt.plans.profiles import default_profile
    from pixelrt.plans.target import detect_target

    reasons = []
    flavours: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")
    for flavour in flavours:
        try:
            trt = build.load_tensorrt(flavour)
            here = detect_target(flavour, trt.version)
            if not _fits(bundle, here):
                rtx = flavour == "tensorrt-rtx"
                options = build.BuildOptions(
                    (default_profile(bundle.manifest.image),),
                    precision="float16",
                    capabilities=here.capabilities if rtx else (),
                )
                request = Request(bundle, "image", options, build.target_of(options, trt))
                made = _make(request, trt, quiet=quiet)
                note(prove(made, request))
                note(f"built {_keep(made, request, None, shipped=shipped)}")
        except (BackendError, CheckError) as exc:
            reasons.append(f"{flavour}: {exc}")
        else:
            return
    for reason in reasons:
        note(f"no plan was built  {reason}")


def prove(made: Made, request: Request) -> str:
    """Hold a new plan against its samples on its GPU; the verdict in words.

    Raises ``FidelityError`` for a wrong plan. Without its GPU that waits for the first use.
    """
    from pixelrt.plans.store import StoredPlan
    from pixelrt.runtime.backends.select import Choice, open_session
    from pixelrt.runtime.backends.tensorrt import TensorRTBackend

    plan = StoredPlan(made.facts, "the plan just built", lambda: made.files)
    backend = TensorRTBackend(request.target.flavour, plan=plan)
    try:
        opened = open_session(request.bundle, request.role, Choice(backend.name), (backend,))
    except BackendError as exc:
        words = "; ".join(part for part in (exc.found, exc.hint) if part) or exc.message
        return f"not executed here, so it is checked where it is first used: {words}"
    opened.session.close()
    return opened.verdict


def _fits(bundle: Bundle, here: Target) -> bool:
    from pixelrt.plans.store import find_plans
    from pixelrt.plans.target import mismatch

    plans = find_plans(bundle, bundle.component.graph("image")).plans
    return any(not mismatch(one.facts.bound_to, here, one.facts.options) for one in plans)


def _make(request: Request, trt: TensorRT, *, quiet: bool) -> Made:
    from pixelrt.engines.make import obtain_plan
    from pixelrt.plans.store import plan_cache

    timings = _timing_file(request.target)
    with phase_bar(enabled=not quiet) as step:
        return obtain_plan(
            request,
            trt,
            plan_cache(note),
            timing_cache=lambda: _read(timings),
            keep_timings=lambda data: _keep_timings(timings, data),
            note=(lambda _: None) if quiet else note,
            progress=step,
        )


def _refits(
    path: Path, old: Path, wishes: Wishes, flavour: Flavour, *, quiet: bool
) -> list[tuple[Request, Callable[[], Made]]]:
    from pixelrt.engines.refit import refitted_plan
    from pixelrt.plans.store import plan_cache

    say: Callable[[str], None] = (lambda _: None) if quiet else note
    trt, found = refits_of(path, old, wishes, flavour, say)
    cache = plan_cache(note)
    return [(one, partial(refitted_plan, one, source, trt, cache, say)) for one, source in found]


def _keep(made: Made, request: Request, output: Path | None, *, shipped: bool) -> str:
    """Put the plan where it belongs; gives the place in words. It is in the cache already."""
    from pixelrt.plans.store import ENGINES, write_plan

    bundle, facts = request.bundle, made.facts
    what = facts.graph.network or facts.graph.role
    name = f"{what}-{facts.precision}-{facts.key[:12]}.plan"
    path = bundle.root / ENGINES / str(request.target) / name
    if output is not None:
        path = output / f"{bundle.root.stem}-{name}" if output.is_dir() else output
    in_cache = f"the cache ({facts.key[:12]})"
    if shipped and output is None:
        return in_cache
    try:
        write_plan(path, facts, made.files)
    except (OSError, OutputError) as exc:
        if output is not None:
            raise
        note(f"the plan stays in the cache: {exc}")
        return in_cache
    return str(path)


def _tell(made: Made, place: str, *, show: bool) -> None:
    from pixelrt.engines.report import megabytes, node_table, report_of

    facts = made.facts
    for words in facts.warnings:
        note(f"TensorRT: {words}")
    if show:
        report = report_of(bytes(made.files[REPORT]))
        click.echo(node_table(report))
        click.echo()
        click.echo(report.text())
    size = megabytes(facts.files[facts.plan].bytes)
    verb = "refitted" if "refitted_from" in facts.options else "built"
    how = f"{verb} in {facts.seconds:.1f} s" if made.fresh else f"{verb} before"
    click.echo(f"{place}: {size}, {how}, sha256 {facts.sha256}")


# --- TensorRT's measurements, kept for the next build on the same target -----------------


def _timing_file(target: Target) -> Path:
    name = hashlib.sha256(json.dumps(target.as_json(), sort_keys=True).encode()).hexdigest()
    return cache_folder() / "timing" / f"{name}.bin"


def _read(timings: Path) -> bytes:
    with contextlib.suppress(OSError):  # none yet
        return timings.read_bytes()
    return b""


def _keep_timings(path: Path, timings: bytes) -> None:
    if not timings:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(timings)
    except (OSError, OutputError) as exc:
        note(f"the next build measures again: {exc}")
