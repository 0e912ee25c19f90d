"""Graphs that OpenVINO has compiled, kept from one start to the next.

What is kept is onnxruntime's context model: one node that holds OpenVINO's blob. OpenVINO's
own ``CACHE_DIR`` is not used: with one bit flipped in its file it loads all the same and
gives other pictures (seen with 2026.4). Here every load is compared with its seal.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable

from pixelrt.bundle import BundledNetwork
from pixelrt.cache import cache_folder
from pixelrt.errors import InputError, OutputError
from pixelrt.manifest import Graph
from pixelrt.plans.cache import PlanCache
from pixelrt.plans.seal import Artefact
from pixelrt.runtime.machine import processor_flags, processor_name

FORMAT = 1
MAX_BYTES = 2 * 2**30

WEIGHTS_PER_GRAPH_BYTE = 256
"""Compiling takes about 2.5 ms for each kB of the graph without its weights, reading a blob
9 ms for each MB of weights. Swin2SR light: 0.50 s and 0.15 s; U-Net-256: 0.4 s and 4 s."""


def worth_keeping(bundle: BundledNetwork, graph: Graph) -> bool:
    """Whether a compiled graph is read faster than it is compiled."""
    files = bundle.files
    weights = sum(files[name].bytes for name in graph.data)
    return weights < WEIGHTS_PER_GRAPH_BYTE * files[graph.file].bytes


def cache_key(
    bundle: BundledNetwork, graph: Graph, settings: str, versions: tuple[str, ...]
) -> str:
    """SHA-256 of all that decides the blob: graph, weights, settings, versions, processor."""
    files = bundle.files
    facts = {
        "format": FORMAT,
        "graph": files[graph.file].sha256,
        "weights": [files[name].sha256 for name in graph.data],
        "settings": settings,
        "versions": versions,
        "machine": [platform.system(), platform.machine(), processor_name()],
        "flags": sorted(processor_flags()),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def kept_blob(key: str, compile_graph: Callable[[], bytes]) -> bytes | None:
    """The compiled graph of ``key``, compiled now if it is not there or damaged.

    Of several processes one compiles and the others wait. ``None`` where the cache cannot
    be written: then there is nothing to be gained. What ``compile_graph`` raises is passed on.
    """
    cache = PlanCache(cache_folder() / "openvino", max_bytes=MAX_BYTES)
    try:
        with cache.get_or_make(key, lambda: Artefact(compile_graph())) as entry:
            return entry.read()
    except (OutputError, InputError):
        return None
