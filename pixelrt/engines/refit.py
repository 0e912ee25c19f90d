"""A plan of one network with the weights of another that differs from it in nothing else.

Such are a network and the same one with LoRA files merged in, or trained on. TensorRT's search
for kernels, which takes most of a build, is not done again.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from pixelrt.bundle import BundledNetwork
from pixelrt.engines.make import (
    GRAPH,
    PLAN,
    REPORT,
    STRUCTURE,
    Made,
    Note,
    Request,
    convert_graph,
    once,
    plan_facts,
)
from pixelrt.engines.options import options_of
from pixelrt.engines.passes.clean import unused_removed
from pixelrt.engines.passes.fold_constants import widen_weights
from pixelrt.engines.precision import Kept
from pixelrt.engines.samples import plan_samples
from pixelrt.engines.structure import Structure, decode_structure, encode_structure, structure_of
from pixelrt.errors import BackendError, InputError
from pixelrt.manifest import Graph, GraphRole
from pixelrt.plans.cache import PlanCache
from pixelrt.plans.facts import PlanFacts
from pixelrt.plans.refit import put_weights, runtime_for
from pixelrt.plans.seal import Artefact
from pixelrt.plans.store import StoredPlan, as_artefact, find_plans, graph_mismatch
from pixelrt.plans.target import Target, mismatch
from pixelrt.plans.tensorrt import TensorRT, listening


@dataclass(frozen=True)
class Source:
    """A plan that takes other weights, and the network that it was made from."""

    plan: StoredPlan
    network: BundledNetwork

    def request(self, network: BundledNetwork, target_db: float | None = None) -> Request:
        """What is wanted of this plan: ``network``'s weights, all else as it was.

        Raises ``InputError`` where the inputs or outputs of the networks differ.
        """
        facts = self.plan.facts
        graph = network.component.graph(facts.graph.role)
        if (graph.inputs, graph.outputs) != (facts.graph.inputs, facts.graph.outputs):
            raise InputError(
                f"the plan in {self.plan.place} is of other inputs or outputs than {network.name}",
                found=_tensors(graph),
                expected=_tensors(facts.graph),
                hint="build a plan of its own: leave --refit-from out",
            )
        same = not graph_mismatch(facts, network, graph)
        return Request(
            network,
            facts.graph.role,
            options_of(facts),
            facts.bound_to,
            target_db or facts.target_db,
            "" if same else facts.sha256,
        )


def sources_of(
    network: BundledNetwork, graph: Graph, here: Target
) -> tuple[list[Source], list[str]]:
    """Plans of a network whose weights can be replaced ``here``, and why the others cannot."""
    search = find_plans(network, graph)
    plans = {plan.facts.sha256: plan for plan in reversed(search.plans)}  # the bundle's, if both
    refused = {plan.place: refusal(plan.facts, here) for plan in plans.values()}
    sources = [Source(plan, network) for plan in plans.values() if not refused[plan.place]]
    reasons = [f"{place}: {words}" for place, words in refused.items() if words]
    return sources, [*reasons, *search.problems]


def refusal(facts: PlanFacts, here: Target) -> str:
    """Why a plan cannot be given other weights ``here``, or an empty string."""
    if problem := mismatch(facts.bound_to, here, {}):
        return problem
    if facts.options.get("strip_plan"):
        return "it was built with --strip: weights that are not in it cannot be compared"
    if not facts.options.get("refit"):
        return "it was built without --refit"
    if STRUCTURE not in facts.files:
        return "it was built before pixelrt kept what is needed: build it again with --refit"
    return ""


def check_refit(trt: TensorRT) -> None:
    """Raise ``BackendError`` where this TensorRT cannot write back what it has refitted."""
    if not hasattr(trt.module.SerializationFlag, "INCLUDE_REFIT"):
        raise BackendError(
            f"{trt} cannot write a refitted plan that stays refittable",
            found="no SerializationFlag.INCLUDE_REFIT",
            expected="TensorRT 10.14 or later",
        )


def refitted_plan(
    request: Request, source: Source, trt: TensorRT, cache: PlanCache, note: Note = lambda _: None
) -> Made:
    """The plan of ``source`` with the weights of ``request``'s network, or from the cache.

    ``request``: that of ``Source.request``. A plan of the very same weights is taken as it is.
    Raises ``InputError`` where the graphs differ in more than weights or TensorRT does not take
    them, ``FidelityError`` where half precision needs other float32 nodes, ``BackendError``
    with TensorRT's words where it fails.
    """

    same = not request.refitted_from

    def make() -> Artefact:
        if same:
            facts = msgspec.structs.replace(source.plan.facts, bundle=request.bundle.sha256)
            return as_artefact(facts, source.plan.read())
        return as_artefact(*_refitted(request, source, trt, note))

    if not same:
        return once(cache, request.key, make)
    note(
        f"{request.bundle.name} has the weights of the plan in {source.plan.place}: taken as it is"
    )
    return replace(once(cache, source.plan.facts.key, make), fresh=False)


def _refitted(
    request: Request, source: Source, trt: TensorRT, note: Note
) -> tuple[PlanFacts, dict[str, bytes | memoryview]]:
    start = time.perf_counter()
    plan, old = source.plan, source.plan.facts
    _compare(request, source)
    stored = plan.read()
    built = decode_structure(stored[STRUCTURE], plan.place)
    kept = tuple(Kept(*one) for one in old.conversion.get("kept", ()))
    with tempfile.TemporaryDirectory(prefix="pixelrt-refit-") as folder:
        file = Path(folder, GRAPH)
        conversion = convert_graph(request, file, note, kept)
        now = structure_of(ir.load(file))
        built.check(now, "the graph of the plan and this one, converted as it was,")
        samples, files = plan_samples(request.bundle, request.options.profiles)
        data = _swapped(trt, source.plan, stored[old.plan], file, built.changed(now))
    written: dict[str, bytes | memoryview] = {
        PLAN: data,
        REPORT: stored[REPORT],
        STRUCTURE: encode_structure(now),
        **files,
    }
    facts = plan_facts(
        request,
        trt,
        conversion,
        samples,
        written,
        seconds=time.perf_counter() - start,
        warnings=old.warnings,
        report=old.report,
    )
    return facts, written


def _compare(request: Request, source: Source) -> None:
    """The graphs as they were exported: what differs there is said before anything long."""
    old, new = (_as_exported(one, request.role) for one in (source.network, request.bundle))
    old.check(new, f"{source.network.name} and {request.bundle.name}")


def _as_exported(network: BundledNetwork, role: GraphRole) -> Structure:
    """In which type weights are stored does not count: they are float32 when a plan is made."""
    model = ir.load(network.path(network.component.graph(role).file))
    widen_weights(model)
    unused_removed(model)
    return structure_of(model)


def _swapped(
    trt: TensorRT, plan: StoredPlan, data: memoryview, graph: Path, changed: list[str]
) -> bytes:
    """The bytes of a plan with the weights of ``graph``, of which ``changed`` are others."""
    with listening(trt.module) as told:
        runtime = runtime_for(trt, plan.facts, told)
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendError(f"{trt} could not load the plan in {plan.place}", found=told.words)
        if not engine.refittable:
            raise InputError(
                f"the plan in {plan.place} takes no other weights",
                found=f"{trt} says that it is not refittable",
                hint="build it again with `pixelrt build --refit`",
            )
        put_weights(trt, engine, graph, told, plan.place, changed)
        written = engine.serialize_with_config(_whole(trt, engine))
        if written is None:
            raise BackendError(f"{trt} could not write the refitted plan", found=told.words)
        return bytes(written)


def _whole(trt: TensorRT, engine: Any) -> Any:
    """Weights in, and to be replaced again."""
    flags, config = trt.module.SerializationFlag, engine.create_serialization_config()
    config.clear_flag(flags.EXCLUDE_WEIGHTS)
    config.set_flag(flags.INCLUDE_REFIT)
    return config


def _tensors(graph: Any) -> str:
    return ", ".join(map(str, [*graph.inputs, *graph.outputs]))
