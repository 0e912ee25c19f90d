"""OpenVINO through its own package, for processors that onnxruntime's plugin does not take."""

from __future__ import annotations

import importlib.util
import io
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from pixelrt.errors import BackendError
from pixelrt.runtime.backends.base import Array
from pixelrt.runtime.backends.onnxruntime import run_error
from pixelrt.runtime.backends.openvino_source import Source
from pixelrt.spec import TensorSpec

DEVICE = "CPU"
HINT = "pip install openvino"
MARK = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
ENDS, SUMS = "first and last convolution", "convolutions and sums"
"""What of a network of tokens can stay in float32: small parts of the work that cost most of what
bfloat16 loses. With the first Swin2SR light takes 1.03 times as long as in bfloat16 alone, with the
second 1.15 times, all in float32 1.6 times."""
FAILURES = (RuntimeError, MemoryError)
"""OpenVINO has no exception of its own; ``std::bad_alloc`` becomes the second."""


def missing_package() -> str:
    """Why the package cannot be used, as far as that shows without loading it."""
    if importlib.util.find_spec("openvino") is None:
        return f"openvino is not installed; {HINT}"
    return ""


@dataclass(frozen=True)
class Package:
    """The package, loaded. ``core``: its ``Core``; ``capabilities``: as of ``Plugin``."""

    core: Any
    version: str
    capabilities: frozenset[str]


def load_package() -> Package:
    """Raises ``BackendError`` where the package does not load or has no kernels for this CPU."""
    try:
        import openvino as ov

        core = ov.Core()
        capabilities = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    # a damaged package, a loader's message, OpenVINO's own RuntimeError
    except Exception as exc:
        found = str(exc) or type(exc).__name__
        raise BackendError("openvino could not be loaded", found=found, hint=HINT) from exc
    return Package(core, ov.__version__, frozenset(capabilities))


class CompiledGraph:
    """A compiled graph and the one request that runs it; who comes second waits."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()

    def run(self, outputs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            with self._lock:
                # Inputs are read in place; results are copies, since the next run overwrites them.
                results = self._request.infer(dict(feeds), share_inputs=True)
            return {spec.name: results[spec.name] for spec in outputs}
        # OpenVINO raises RuntimeError, TypeError and ValueError of its own words
        except Exception as exc:
            raise run_error("OpenVINO", exc, feeds) from exc


def read_graph(core: Any, path: str, kept: str) -> Any:
    """A graph as it is compiled; ``kept``: see ``Settings``."""
    model = core.read_model(path)
    return keep_float32(core, model, kept) if kept else model


def keep_float32(core: Any, model: Any, kept: str) -> Any:
    """``model`` with the operations of ``kept`` marked, so that a precision hint leaves them.

    The mark is an attribute that OpenVINO's Python has no word for, but its file format has:
    ``DisablePrecisionConversion``, from any type to float16, which OpenVINO's CPU kernels heed
    for bfloat16 as well (``intel_cpu/src/node.cpp``). Where a version does not, the results are
    those of bfloat16, and the reference outputs decide.
    """
    import openvino as ov

    # Where mapped files cannot be deleted, the system's own cleaning takes them.
    with tempfile.TemporaryDirectory(prefix="pixelrt-", ignore_cleanup_errors=True) as folder:
        file = Path(folder, "graph.xml")
        ov.serialize(model, file)
        tree = ET.parse(file)  # noqa: S314 (written here)
        layers = {layer.get("id", ""): layer for layer in tree.iterfind("layers/layer")}
        edges = [
            (edge.get("from-layer", ""), edge.get("to-layer", ""))
            for edge in tree.iterfind("edges/edge")
        ]
        types = {name: layer.get("type", "") for name, layer in layers.items()}
        for name in staying(types, edges, kept):
            found = layers[name].find("rt_info")
            marks = ET.SubElement(layers[name], "rt_info") if found is None else found
            ET.SubElement(marks, "attribute", MARK)
        tree.write(file)
        return core.read_model(file)


def staying(types: Mapping[str, str], edges: Sequence[tuple[str, str]], kept: str) -> set[str]:
    """The operations of ``kept``. ``types``: of operations by name, in the order in which they
    run; ``edges``: from and to."""
    convolutions = [name for name, kind in types.items() if kind == "Convolution"]
    if kept == SUMS:
        return {*convolutions, *(name for name, kind in types.items() if kind == "Add")}
    found = {*convolutions[:1], *convolutions[-1:]}
    for _ in ("bias", "sum"):  # OpenVINO computes both with the convolution, in one precision
        found |= {end for start, end in edges if start in found and types[end] == "Add"}
    return found


@dataclass(frozen=True)
class PackageSource(Source):
    """Through OpenVINO's own package."""

    package: Package

    def _versions(self) -> tuple[str, ...]:
        return ("openvino", self.package.version)

    def _compile(self) -> bytes:
        try:
            blob: io.BytesIO = self._compiled(self.path).export_model()
            return blob.getvalue()
        except FAILURES as exc:
            raise self._error(exc) from exc

    def _load(self, model: str | bytes) -> CompiledGraph:
        core, properties = self.package.core, self.settings.properties()
        try:
            if isinstance(model, str):
                return CompiledGraph(self._compiled(model))
            return CompiledGraph(core.import_model(io.BytesIO(model), DEVICE, properties))
        except FAILURES as exc:
            raise self._error(exc) from exc

    def _compiled(self, path: str) -> Any:
        core = self.package.core
        model = read_graph(core, path, self.settings.kept)
        if self.settings.shape:
            model.reshape({self.graph.inputs[0].name: list(self.settings.shape)})
        return core.compile_model(model, DEVICE, self.settings.properties())
