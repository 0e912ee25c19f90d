"""What the time of a run is spent on, as OpenVINO's own counters have it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.openvino_parts import feeds_of, median_run, running_source
from benchmarks.records import OpenVinoRow
from pixelrt.bench.statistics import percentile
from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError
from pixelrt.geometry import Size
from pixelrt.runtime.backends.openvino_package import read_graph
from pixelrt.runtime.backends.openvino_source import Source

LAST = 3
NOT_RUN = "not_executed"
FUSED = "Subgraph "
"""Kernels that OpenVINO makes of several operations, such as an attention. It does not always say
which matrix products are in them: those that are in no other one are."""
TOGETHER = f"{FUSED}together"
"""No kernel: products that are in one of several fused ones, it does not say in which."""
PRODUCT_ALONE = "/WithoutBiases"
"""What OpenVINO adds to the name of a node whose bias it has made a node of its own."""


def operation_rows(bundle: Bundle, size: Size, rounds: int) -> Iterator[OpenVinoRow]:
    """Those of ``counted_rows`` for one picture of ``size``."""
    _require_package()
    _, source = running_source(bundle)
    yield from counted_rows(source, feeds_of(bundle, source.graph, size), rounds)


def counted_rows(source: Source, feeds: dict[str, Any], rounds: int) -> Iterator[OpenVinoRow]:
    """Seconds of one run by type of operation and kernel, for the shapes of ``feeds``.

    The ``openvino`` package compiles the graph that pixelrt gives OpenVINO, in the same
    precision with the same settings, ``rounds`` times: medians. ``operations per second`` is
    twice the multiply-adds of the ONNX nodes that a kernel computes over its time. Raises
    ``BackendError`` without the package, and where a product of the graph is in no kernel.
    """
    _require_package()
    import openvino as ov

    path = source.bundle.path(source.graph.file)
    properties = source.settings.properties() | {"PERF_COUNT": "YES"}
    core = ov.Core()
    model = read_graph(core, str(path), source.settings.kept)
    model.reshape({name: list(feed.shape) for name, feed in feeds.items()})
    runs: list[list[float]] = []
    for _ in range(rounds):
        compiled = core.compile_model(model, "CPU", properties)
        request = compiled.create_infer_request()
        run = partial(request.infer, feeds, share_inputs=True, share_outputs=True)
        runs.append(counted(compiled, run))
    each = [percentile(times, 50) for times in zip(*runs, strict=True)]
    settings = source.settings
    note = f"{settings.precision} and float32" if settings.kept else settings.precision
    facts = {"seconds": sum(each), "seconds of a run": median_run(run)}
    yield OpenVinoRow("operations", "all", facts, note=note)
    products, sums = products_of(path, feeds)
    yield from grouped(kernels_of(compiled), each, products, note, sums)


def _require_package() -> None:
    if importlib.util.find_spec("openvino") is None:
        raise BackendError(
            "the package openvino is not installed",
            found="onnxruntime's plugin gives no counters; pip install 'pixelrt[benchmarks]'",
        )


def counted(compiled: Any, run: Callable[[], object]) -> list[float]:
    """Seconds of each node in the last of ``LAST`` runs. OpenVINO's counters are means over all
    runs so far, in whole microseconds: the fewer runs, the finer the difference."""
    totals = []
    for number in range(1, LAST + 1):
        run()
        totals.append([number * seconds_of(kernel) for kernel in kernels_of(compiled)])
    return [max(0.0, end - start) for start, end in zip(*totals[-2:], strict=True)]


def kernels_of(compiled: Any) -> list[dict[str, str]]:
    """The executed graph's facts of each node (OpenVINO's ``ExecutionInfo``)."""
    nodes = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    return [{key: str(getattr(v, "value", v)) for key, v in facts.items()} for facts in nodes]


def seconds_of(kernel: dict[str, str]) -> float:
    time = kernel["execTimeMcs"]
    return 0.0 if time == NOT_RUN else int(time) / 1e6


def products_of(path: Path, feeds: dict[str, Any]) -> tuple[dict[str, int], dict[str, str]]:
    """Multiply-adds of the graph's products, and the addition that is all that uses one of them:
    a product with its bias bears the name of the addition in OpenVINO."""
    import onnx_ir as ir

    from pixelrt.engines.calibrate import measure_shapes
    from pixelrt.engines.flops import multiply_adds

    model = ir.load(path)
    products = multiply_adds(model.graph, measure_shapes(model, feeds))
    sums = {}
    for node in model.graph:
        users = node.outputs[0].consumers()
        if node.name in products and len(users) == 1 and users[0].op_type == "Add":
            sums[str(node.name)] = str(users[0].name)
    return products, sums


def grouped(
    kernels: list[dict[str, str]],
    seconds: list[float],
    products: dict[str, int],
    note: str,
    sums: Mapping[str, str] | None = None,
) -> Iterator[OpenVinoRow]:
    """A row for each type and kernel, the longest first.

    ``products``: multiply-adds by node; ``sums``: other names of some of them, for kernels that
    have not the first.
    """
    named = [
        [name.removesuffix(PRODUCT_ALONE) for name in kernel["originalLayersNames"].split(",")]
        for kernel in kernels
    ]
    known = {name for names in named for name in names}
    left: dict[str, int] = {}
    for product, count in products.items():
        name = product if product in known else (sums or {}).get(product, product)
        left[name] = left.get(name, 0) + count
    groups: dict[str, dict[str, float]] = {}
    for kernel, names, each in zip(kernels, named, seconds, strict=True):
        adds = sum(left.pop(name, 0) for name in names)
        if kernel["execTimeMcs"] == NOT_RUN and not adds and not each:
            continue
        group = groups.setdefault(f"{kernel['layerType']} {kernel['primitiveType']}", {})
        for name, value in (("count", 1.0), ("seconds", each), ("multiply-adds", float(adds))):
            group[name] = group.get(name, 0.0) + value
    fused = [group for name, group in groups.items() if name.startswith(FUSED)]
    if fused and any(left.values()):
        none = {"count": 0.0, "seconds": 0.0, "multiply-adds": 0.0}
        one = fused[0] if len(fused) == 1 else groups.setdefault(TOGETHER, none)
        one["multiply-adds"] += float(sum(left.values()))
        left.clear()
    if any(left.values()):
        raise BackendError(
            "products of the graph are in no kernel of OpenVINO",
            found=", ".join(sorted(name for name, count in left.items() if count)[:5]),
        )
    for name, facts in sorted(groups.items(), key=lambda item: -item[1]["seconds"]):
        if facts["multiply-adds"] and facts["seconds"]:
            facts["operations per second"] = 2 * facts["multiply-adds"] / facts["seconds"]
        yield OpenVinoRow("operations", name, facts, note=note)
