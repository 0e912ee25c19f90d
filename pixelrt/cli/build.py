"""``pixelrt build``: a bundle's graph to a TensorRT plan."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pixelrt.cli.options import ByteCount
from pixelrt.cli.terminal import note
from pixelrt.errors import OutputError, UsageError
from pixelrt.files import sha256_file

if TYPE_CHECKING:
    from pixelrt.bundle import Bundle
    from pixelrt.engines.build import BuildOptions, BuiltPlan
    from pixelrt.engines.report import Precision
    from pixelrt.manifest import Graph, GraphRole
    from pixelrt.plans.profiles import Profile, Shape
    from pixelrt.plans.target import Flavour, Target
    from pixelrt.spec import ImageSpec

Step = Callable[[str, int, int], None]


@click.command("build")
@click.argument("bundle_path", metavar="NAME.pixelrt", type=click.Path(path_type=Path))
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
@click.option("--static", is_flag=True, help="The optimum shape only: smaller and faster.")
@click.option(
    "--graph",
    type=click.Choice(["image", "core"]),
    default="image",
    show_default=True,
    help="image: uint8 in and out; core: float32.",
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
    default=60.0,
    show_default=True,
    help="Least PSNR of the converted graph against float32 on the bundle's samples.",
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
@click.option("--dla-core", type=click.IntRange(0), help="Run on this DLA of a Jetson.")
@click.option("--no-tf32", is_flag=True, help="Full float32 in matrix products.")
@click.option("--report", "show", is_flag=True, help="Show what TensorRT made of the graph.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write that as JSON.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="NAME.plan to write, or a folder."
)
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def command(
    bundle_path: Path,
    backend: str,
    target: str | None,
    shapes: tuple[str, ...],
    static: bool,
    graph: str,
    precision: str,
    target_db: float,
    show: bool,
    json_file: Path | None,
    output: Path | None,
    quiet: bool,
    no_tf32: bool,
    **more: Any,
) -> None:
    """Build a TensorRT plan from a bundle, and NAME.plan.json beside it: what the plan is bound
    to, its key and sha256, how the graph was converted, and what TensorRT made of it.

    A graph that misses the reference is not built, and a plan that does not run in the
    precision of its graph is not written.
    """
    from pixelrt.bundle import open_bundle
    from pixelrt.engines import build
    from pixelrt.engines.report import check_precision
    from pixelrt.plans.target import parse_capabilities

    flavour = cast("Flavour", backend)
    bundle = open_bundle(bundle_path)
    capabilities = parse_capabilities(target, flavour) if target else ()
    profiles = _profiles(shapes, bundle.manifest.image, static=static)
    chosen = bundle.component.graph(cast("GraphRole", graph))
    low = cast("Precision", precision)
    options = build.BuildOptions(
        profiles, precision=low, capabilities=capabilities, tf32=not no_tf32, **more
    )
    trt = build.load_tensorrt(flavour)
    build.check_options(options, trt)
    bound = build.target_of(options, trt)
    plan_file = _plan_file(output, bundle, graph, bound)
    with (
        _prepared(bundle, chosen, profiles[0].shapes[1], low, target_db, quiet=quiet) as lowered,
        _timing_cache(bound, options) as (with_cache, keep),
        phase_bar(enabled=not quiet) as step,
    ):
        built = build.build_plan(
            lowered.file,
            chosen.inputs,
            with_cache,
            trt=trt,
            origin=f"the {graph} graph of {bundle.manifest.name} ({_recipe(bundle)})",
            progress=step,
        )
        keep(built.timing_cache)
    check_precision(built.report, low)
    facts = _facts(bundle, chosen, options, lowered, bound, built, plan_file)
    _write(plan_file, built.plan, facts, json_file)
    if not quiet:
        _tell(plan_file, built, show=show)


@dataclass(frozen=True)
class Lowered:
    """The graph that TensorRT gets, and what was done to the bundle's."""

    file: Path
    facts: dict[str, Any]


@contextmanager
def _prepared(
    bundle: Bundle,
    graph: Graph,
    shape: Shape,
    precision: Precision,
    target_db: float,
    *,
    quiet: bool,
) -> Iterator[Lowered]:
    """The graph rewritten and converted in a temporary folder, checked on the samples."""
    from pixelrt.engines.precision import Policy
    from pixelrt.engines.prepare import prepare_graph

    policy = None if precision == "float32" else Policy(dtype=precision, target_db=target_db)
    with tempfile.TemporaryDirectory(prefix="pixelrt-build-") as folder:
        file = Path(folder, "graph.onnx")
        if not quiet:
            note(f"converting the graph to {precision} and checking it on the samples")
        converted = prepare_graph(bundle, graph, shape, policy, file)
        facts: dict[str, Any] = {"precision": precision, "sha256": sha256_file(file)}
        if converted:
            if not quiet:
                note(converted.describe())
            facts |= {
                "target_db": target_db,
                "worst_db": min(one.psnr for one in converted.fidelity),
                "share": converted.fp16_share,
                "kept": [[one.node, one.op, one.reason] for one in converted.kept],
            }
        yield Lowered(file, facts)


def _profiles(shapes: tuple[str, ...], spec: ImageSpec, *, static: bool) -> tuple[Profile, ...]:
    from pixelrt.plans.profiles import check_profiles, default_profile, parse_profile

    profiles = tuple(parse_profile(text) for text in shapes) or (default_profile(spec),)
    if static:
        profiles = tuple(profile.as_static() for profile in profiles)
    if len(set(profiles)) < len(profiles):
        raise UsageError("a profile is given twice", found=", ".join(map(str, profiles)))
    check_profiles(profiles, spec)
    return profiles


def _plan_file(output: Path | None, bundle: Bundle, graph: str, target: Target) -> Path:
    name = f"{bundle.manifest.name}-{graph}-{target}.plan"
    if output is None:
        return Path(name)
    return output / name if output.is_dir() else output


def _recipe(bundle: Bundle) -> str:
    return f"family {bundle.manifest.family}, variant {bundle.manifest.variant}"


def _facts(
    bundle: Bundle,
    graph: Graph,
    options: BuildOptions,
    lowered: Lowered,
    target: Target,
    built: BuiltPlan,
    plan_file: Path,
) -> dict[str, Any]:
    """What stands beside the plan: enough to know whether it may be used, and for what."""
    from pixelrt.plans.target import CacheKey

    files = bundle.manifest.files
    weights = tuple(files[name].sha256 for name in graph.data)
    decided = {**options.as_json(), "target_db": lowered.facts.get("target_db")}
    key = CacheKey(files[graph.file].sha256, weights, decided, target)
    return {
        "plan": plan_file.name,
        "sha256": built.sha256,
        "bytes": len(built.plan),
        "key": key.key(),
        "target": target.as_json(),
        "options": decided,
        "conversion": lowered.facts,
        "bundle": bundle.sha256,
        "graph": {"role": graph.role, "sha256": key.graph, "weights": list(weights)},
        "seconds": round(built.seconds, 3),
        "warnings": list(built.warnings),
        "report": built.report.as_json(),
    }


def _write(plan_file: Path, plan: bytes, facts: dict[str, Any], json_file: Path | None) -> None:
    from pixelrt.files import atomic_write

    text = json.dumps(facts, indent=1).encode() + b"\n"
    with atomic_write(plan_file) as file:
        file.write(plan)
    for path in (plan_file.with_name(f"{plan_file.name}.json"), json_file):
        if path:
            with atomic_write(path) as file:
                file.write(text)


def _tell(plan_file: Path, built: BuiltPlan, *, show: bool) -> None:
    from pixelrt.engines.report import megabytes, node_table

    for words in built.warnings:
        note(f"TensorRT: {words}")
    if show:
        click.echo(node_table(built.report))
        click.echo()
        click.echo(built.report.text())
    size = megabytes(len(built.plan))
    click.echo(f"{plan_file}: {size}, built in {built.seconds:.1f} s, sha256 {built.sha256}")


@contextmanager
def _timing_cache(
    target: Target, options: BuildOptions
) -> Iterator[tuple[BuildOptions, Callable[[bytes], None]]]:
    """The options with what earlier builds for this target measured, and how to keep it."""
    from dataclasses import replace

    from pixelrt.cache import cache_folder
    from pixelrt.files import atomic_write

    name = hashlib.sha256(json.dumps(target.as_json(), sort_keys=True).encode()).hexdigest()
    path = cache_folder() / "timing" / f"{name}.bin"

    def keep(timings: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(timings)
        except (OSError, OutputError) as exc:
            note(f"the next build measures again: {exc}")

    known = b""
    with contextlib.suppress(OSError):
        known = path.read_bytes()
    yield replace(options, timing_cache=known), keep


@contextmanager
def phase_bar(*, enabled: bool) -> Iterator[Step | None]:
    """A bar of the builder's phases on standard error; nothing where that is no terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting TensorRT", total=None)

        def step(phase: str, done: int, total: int) -> None:
            progress.update(task, description=phase, completed=done, total=total or None)

        yield step
