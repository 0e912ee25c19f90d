"""From a bundle to a finished plan: convert, build, prove, describe; once for many who ask."""

from __future__ import annotations

import gc
import hashlib
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

import pixelrt
from pixelrt.bundle import Bundle, BundledNetwork
from pixelrt.engines.build import BuildOptions, BuiltPlan, TensorRT, build_plan
from pixelrt.engines.passes.fp16 import Low
from pixelrt.engines.precision import Kept, Policy
from pixelrt.engines.prepare import prepare_graph
from pixelrt.engines.report import check_precision
from pixelrt.engines.samples import plan_samples
from pixelrt.engines.structure import encode_structure, structure_of
from pixelrt.engines.trt import Progress
from pixelrt.files import sha256_file
from pixelrt.manifest import FileEntry, Graph, GraphRole
from pixelrt.plans.cache import PlanCache
from pixelrt.plans.facts import FORMAT, PlanFacts, PlanGraph, PlanSample, PlanTarget
from pixelrt.plans.seal import Artefact
from pixelrt.plans.store import as_artefact, from_entry
from pixelrt.plans.target import CacheKey, Target

PLAN, REPORT, GRAPH = "engine.plan", "report.json", "graph.onnx"
STRUCTURE = "structure.json"
"""Beside a plan built with ``refit``: what it was built from, to be compared with others."""
REPORT_LISTS = ("nodes", "products", "engine_layers")

Note = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is wanted of a plan. ``target_db``: least PSNR of the converted graph, of the range
    of images, or of the largest magnitude of a tensor in a pipeline. ``refitted_from``: SHA-256
    of the plan that gets this graph's weights; empty for one that is built."""

    bundle: BundledNetwork
    role: GraphRole
    options: BuildOptions
    target: Target
    target_db: float = 60.0
    refitted_from: str = ""

    @property
    def graph(self) -> Graph:
        return self.bundle.component.graph(self.role)

    @property
    def decided(self) -> dict[str, Any]:
        """Every option that decides what the plan is; graph passes come with our version."""
        low = self.options.precision != "float32"
        return {
            **self.options.as_json(),
            "target_db": self.target_db if low else None,
            "pixelrt": pixelrt.__version__,
            **({"refitted_from": self.refitted_from} if self.refitted_from else {}),
        }

    @property
    def key(self) -> str:
        """The cache key, hexadecimal SHA-256."""
        files, graph = self.bundle.files, self.graph
        weights = tuple(files[name].sha256 for name in graph.data)
        return CacheKey(files[graph.file].sha256, weights, self.decided, self.target).key()


@dataclass(frozen=True)
class Made:
    """A plan's facts and files by name. ``fresh``: built just now, not found in the cache."""

    facts: PlanFacts
    files: dict[str, memoryview]
    fresh: bool


def obtain_plan(
    request: Request,
    trt: TensorRT,
    cache: PlanCache,
    *,
    timing_cache: Callable[[], bytes] = bytes,
    keep_timings: Callable[[bytes], None] = lambda _: None,
    note: Note = lambda _: None,
    progress: Progress | None = None,
) -> Made:
    """The plan from the cache, or built and put there; of many who ask at once, one builds.

    Raises ``FidelityError`` where the graph misses the reference, ``CheckError`` where the
    engine runs in another precision than its graph, ``BackendError`` where TensorRT fails.
    """

    def make() -> Artefact:
        facts, files, timings = make_plan(
            request, trt, timing_cache=timing_cache(), note=note, progress=progress
        )
        keep_timings(timings)
        return as_artefact(facts, files)

    return once(cache, request.key, make)


def once(cache: PlanCache, key: str, make: Callable[[], Artefact]) -> Made:
    """The plan of ``key``, made by ``make`` unless the cache has it."""
    with cache.get_or_make(key, make) as entry:
        facts, files = from_entry(entry)
        return Made(facts, files, entry.made)


def make_plan(
    request: Request,
    trt: TensorRT,
    *,
    timing_cache: bytes = b"",
    note: Note = lambda _: None,
    progress: Progress | None = None,
) -> tuple[PlanFacts, dict[str, bytes], bytes]:
    """A plan's facts, its files by name, and TensorRT's measurements for the next build."""
    low = request.options.precision
    bundle, graph = request.bundle, request.graph
    with tempfile.TemporaryDirectory(prefix="pixelrt-build-") as folder:
        file = Path(folder, GRAPH)
        conversion = convert_graph(request, file, note)
        samples, files = plan_samples(bundle, request.options.profiles)
        built = build_plan(
            file,
            graph.inputs,
            replace(request.options, timing_cache=timing_cache),
            trt=trt,
            origin=f"the {graph.role} graph of {bundle.name}{_recipe(bundle)}",
            progress=progress,
        )
        check_precision(built.report, low)
        files = {PLAN: built.plan, REPORT: _json(built.report.as_json()), **files}
        if request.options.refit:
            files[STRUCTURE] = encode_structure(structure_of(ir.load(file)))
        if request.options.strip_plan:  # where its weights come from when it is loaded
            files |= {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    facts = plan_facts(
        request,
        trt,
        conversion,
        samples,
        files,
        seconds=built.seconds,
        warnings=list(built.warnings),
        report=_summary(built),
    )
    return facts, files, built.timing_cache


def convert_graph(
    request: Request, file: Path, note: Note, kept: tuple[Kept, ...] | None = None
) -> dict[str, Any]:
    """Write the graph that TensorRT gets to ``file``; what ``PlanFacts.conversion`` says of it.

    ``kept``: see ``Policy``.
    """
    low = request.options.precision
    policy = None if low == "float32" else _policy(request, low, kept)
    shape = request.options.profiles[0].shapes[1]
    note(f"converting the graph to {low} and checking it on the samples")
    converted = prepare_graph(request.bundle, request.graph, shape, policy, file)
    conversion: dict[str, Any] = {"precision": low, "sha256": sha256_file(file)}
    if converted:
        note(converted.describe())
        conversion |= {
            "target_db": request.target_db,
            "worst_db": min(one.psnr for one in converted.fidelity),
            "share": converted.fp16_share,
            "kept": [[one.node, one.op, one.reason] for one in converted.kept],
        }
    del converted
    gc.collect()  # graphs are cycles, which hold the weights while TensorRT builds
    return conversion


def plan_facts(
    request: Request,
    trt: TensorRT,
    conversion: dict[str, Any],
    samples: list[PlanSample],
    files: Mapping[str, bytes | memoryview],
    *,
    seconds: float,
    warnings: list[str],
    report: dict[str, Any],
) -> PlanFacts:
    """What stands beside a plan that was made here for ``request``."""
    low = request.options.precision
    return PlanFacts(
        format=FORMAT,
        plan=PLAN,
        key=request.key,
        target=msgspec.convert(request.target.as_json(), PlanTarget),
        graph=_plan_graph(request.bundle, request.graph),
        profiles=[str(profile) for profile in request.options.profiles],
        precision=low,
        target_db=0.0 if low == "float32" else request.target_db,
        options=request.decided,
        conversion=conversion,
        bundle=request.bundle.sha256,
        samples=samples,
        seconds=round(seconds, 3),
        warnings=warnings,
        report=report,
        made_by=_made_by(trt),
        files={name: _entry(data) for name, data in files.items()},
    )


def _policy(request: Request, low: Low, kept: tuple[Kept, ...] | None) -> Policy:
    relative = request.role == "network"
    return Policy(dtype=low, target_db=request.target_db, relative=relative, kept=kept)


def _plan_graph(bundle: BundledNetwork, graph: Graph) -> PlanGraph:
    files = bundle.files
    weights = [files[name].sha256 for name in graph.data]
    digest = files[graph.file].sha256
    network = bundle.component.name if graph.role == "network" else ""
    return PlanGraph(graph.role, digest, weights, graph.inputs, graph.outputs, network)


def _summary(built: BuiltPlan) -> dict[str, Any]:
    """The report without its lists, which are in a file of their own."""
    whole = built.report.as_json()
    return {name: whole[name] for name in whole if name not in REPORT_LISTS}


def _made_by(trt: TensorRT) -> dict[str, str]:
    packages = {name: version(name) for name in ("onnx", "onnx-ir", "onnxruntime")}
    python = platform.python_version()
    return {"pixelrt": pixelrt.__version__, "python": python, trt.flavour: trt.version, **packages}


def _recipe(bundle: BundledNetwork) -> str:
    if not isinstance(bundle, Bundle):
        return ""
    return f" (family {bundle.manifest.family}, variant {bundle.manifest.variant})"


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _entry(data: bytes | memoryview) -> FileEntry:
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))
