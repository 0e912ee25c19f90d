"""What ``benchmarks.openvino`` measures, through pixelrt's own graphs, settings and limits.

Each part takes a bundle and the size of a picture and gives rows; seconds and bytes.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from msgspec.structs import replace

from benchmarks.isolated import run_isolated
from benchmarks.pairs import interleave
from benchmarks.records import OpenVinoRow
from benchmarks.rounding import ROUNDINGS, with_rounding
from pixelrt.bench.resources import host_peak
from pixelrt.bench.statistics import percentile
from pixelrt.bundle import Bundle, BundledNetwork, open_bundle
from pixelrt.errors import BackendError
from pixelrt.geometry import Size
from pixelrt.grid import grid_size
from pixelrt.manifest import Graph, GraphRole
from pixelrt.runtime.backends import openvino_source
from pixelrt.runtime.backends.base import BackendInfo, Session
from pixelrt.runtime.backends.onnxruntime import OnnxRuntimeCpu, OnnxRuntimeSession
from pixelrt.runtime.backends.openvino import openvino_here
from pixelrt.runtime.backends.openvino_cache import worth_keeping
from pixelrt.runtime.backends.openvino_source import Source
from pixelrt.runtime.backends.select import Choice, offers_of, open_session
from pixelrt.runtime.machine import processor_name, usable_cpus
from pixelrt.runtime.verify import check_all

PLAIN = "onnxruntime"
ONE_SHAPE = ", one shape"
"""After the arithmetic of a graph that was compiled for the shape it was run at."""
ROUNDS = 11
TURN_SECONDS = 0.25


def psnr_rows(bundle: Bundle, _size: Size, _rounds: int) -> Iterator[OpenVinoRow]:
    """The worst samples in each precision, then with bfloat16 rounding alone, in float32."""
    for offer in offers_of(openvino_here(), bundle, "core"):
        try:
            with offer.open() as session:
                yield OpenVinoRow("psnr", offer.info.arithmetic, worst_samples(bundle, session))
        except BackendError as exc:  # the hint was not followed
            yield OpenVinoRow("psnr", offer.info.arithmetic, {}, reason=f"{exc.message}")
    import onnx_ir as ir

    graph = bundle.component.graph("core")
    model = ir.load(bundle.path(graph.file))
    info = BackendInfo(PLAIN, "", processor_name(), "float32")
    for rounding in ROUNDINGS:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "rounded.onnx")
            ir.save(with_rounding(model, rounding), file)
            other = replace(graph, file=str(file), data=[])
            with OnnxRuntimeSession(bundle, other, info, usable_cpus()) as session:
                facts = worst_samples(bundle, session)
        yield OpenVinoRow("psnr", rounding.name, facts, note="emulated in float32")


def worst_samples(bundle: Bundle, session: Session) -> dict[str, float]:
    """The lowest PSNR of the bundle's samples against PyTorch, by kind, and the largest error."""
    facts: dict[str, float] = {}
    for check in check_all(bundle, session, "core"):
        kind, found = check.sample.kind, check.comparison
        facts[kind] = min(facts.get(kind, math.inf), found.psnr)
        facts["max_abs"] = max(facts.get("max_abs", 0.0), min(found.max_abs, 1e9))
    return facts


def opening_rows(bundle: Bundle, _size: Size, rounds: int) -> Iterator[OpenVinoRow]:
    """Opening the graph by compiling it and by reading what was compiled, in turn, in a cache
    of its own, whatever pixelrt itself would choose."""
    arithmetic, source = running_source(bundle)

    def open_kept(kept: bool) -> float:
        with patch.object(openvino_source, "worth_keeping", lambda *_: kept):
            return timed(source.open)

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, {"PIXELRT_CACHE": folder}),
    ):
        turns = (partial(open_kept, False), partial(open_kept, True))
        compiled, read = (percentile(times, 50) for times in interleave(turns, rounds))
    kept = worth_keeping(bundle, source.graph)
    facts = {"compiled": compiled, "read": read, "kept": float(kept)}
    yield OpenVinoRow("opening", arithmetic, facts)


def shape_rows(bundle: Bundle, size: Size, rounds: int) -> Iterator[OpenVinoRow]:
    """Runs of the graph for any shape and of the one for this shape, in turn."""
    feeds = feeds_of(bundle, bundle.component.graph("image"), size)
    (shape,) = (array.shape for array in feeds.values())
    for arithmetic, source in sources_of(bundle, "image").items():
        outputs = tuple(source.graph.outputs)
        fixed = source.fixed(shape)
        turns = []
        for one in (source, fixed):
            run = partial(one.open().run, outputs, feeds)
            run()
            turns.append(partial(median_run, run))
        times = interleave(tuple(turns), rounds)
        ratios = [fast / slow for slow, fast in zip(*times, strict=True)]
        facts = {
            "any shape": percentile(times[0], 50),
            "one shape": percentile(times[1], 50),
            "saved": 1 - percentile(ratios, 50),
            "compiling": percentile([timed(fixed.open) for _ in range(3)], 50),
        }
        yield OpenVinoRow("shape", arithmetic, facts)


def memory_rows(bundle: Bundle, size: Size, _rounds: int) -> Iterator[OpenVinoRow]:
    """Growth of a process's peak from ``size`` to twice its sides, by input pixel."""
    large = Size(2 * size.height, 2 * size.width)
    grown = grid_size(large, bundle.manifest.image).pixels
    grown -= grid_size(size, bundle.manifest.image).pixels
    ways = [(PLAIN, False)]
    for offer in offers_of(openvino_here(), bundle, "image"):
        ways += [(offer.info.arithmetic, one_shape) for one_shape in (False, True)]
    for name, one_shape in ways:
        low, high = (
            run_isolated(peak_of, bundle.root, name, one, one_shape=one_shape)
            for one in (size, large)
        )
        facts = {"bytes per pixel": (high - low) / grown}
        yield OpenVinoRow("memory", f"{name}{ONE_SHAPE if one_shape else ''}", facts)
    estimate = float(bundle.manifest.memory.per_pixel)
    yield OpenVinoRow("memory", "estimate", {"bytes per pixel": estimate}, note="of the bundle")


def peak_of(root: Path, name: str, size: Size, *, one_shape: bool) -> int:
    """Peak memory of this process in one run: of plain onnxruntime or an arithmetic of OpenVINO,
    compiled for any shape or for this one."""
    bundle = open_bundle(root)
    feeds = feeds_of(bundle, bundle.component.graph("image"), size)
    if name == PLAIN:
        offer = offers_of(OnnxRuntimeCpu(), bundle, "image")[0]
        with offer.open() as session:
            return _peak(lambda: session.infer(feeds))
    source = sources_of(bundle, "image")[name]
    (shape,) = (array.shape for array in feeds.values())
    engine = (source.fixed(shape) if one_shape else source).open()
    return _peak(lambda: engine.run(tuple(source.graph.outputs), feeds))


def _peak(run: Callable[[], object]) -> int:
    with host_peak() as peak:
        run()
    if not peak.value:
        raise BackendError("memory cannot be measured here", found=peak.method)
    return peak.value


def sources_of(bundle: BundledNetwork, role: GraphRole) -> dict[str, Source]:
    """What pixelrt gives OpenVINO to compile, by arithmetic, best first."""
    found = {}
    for offer in offers_of(openvino_here(), bundle, role):
        assert isinstance(offer.open, partial)
        source: Source = offer.open.args[0]
        found[offer.info.arithmetic] = source
    return found


def running_source(bundle: Bundle) -> tuple[str, Source]:
    """The arithmetic that the bundle's reference outputs allow here, and its source."""
    with open_session(bundle, "image", Choice(openvino_here().name)).session as session:
        arithmetic = session.info.arithmetic
        return arithmetic, sources_of(bundle, "image")[arithmetic]


def feeds_of(bundle: Bundle, graph: Graph, size: Size) -> dict[str, Any]:
    """Noise of ``size``, padded to the grid, for an ``image`` graph."""
    spec = bundle.manifest.image
    padded = grid_size(size, spec)
    shape = (1, padded.height, padded.width, spec.channels_in)
    return {graph.inputs[0].name: np.random.default_rng(0).integers(0, 256, shape, np.uint8)}


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_run(run: Callable[[], object]) -> float:
    """The median of the runs of at least a quarter of a second."""
    times: list[float] = []
    while not times or sum(times) < TURN_SECONDS:
        times.append(timed(run))
    return percentile(times, 50)
