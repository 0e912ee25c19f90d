"""One network of a pipeline: module to verified graph with its samples."""

from __future__ import annotations

import gc
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.export import Dim

from pixelrt.errors import ExportError
from pixelrt.export.check import BACKEND, open_graph
from pixelrt.export.segment_graph import Built
from pixelrt.export.segments import run_in_tiles, write_segments
from pixelrt.export.shared_weights import save_sharing
from pixelrt.export.to_onnx import OPSET, export_module
from pixelrt.export.weights import Weights, round_weights, store
from pixelrt.fidelity import Comparison, compare, histogram
from pixelrt.manifest import (
    OPENVINO_BFLOAT16,
    Component,
    Graph,
    GraphVariant,
    Measured,
    Network,
    NetworkSample,
)
from pixelrt.pipeline_bundle import INPUT, OUTPUT
from pixelrt.spec import TensorSpec, Tolerance

MAX_ABS = 1e-4
LOW_PSNR = 35.0
"""Of a network whose errors the next steps meet as they meet noise; see ``Network``."""
MAX_LENGTH = 2**14

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
"""Inputs by name to outputs in order."""


@dataclass(frozen=True)
class Axis:
    """A dynamic axis: multiples of ``step``, ``step * low`` to ``step * high``."""

    name: str
    step: int = 1
    low: int = 1
    high: int = MAX_LENGTH

    def __str__(self) -> str:
        return self.name if self.step == 1 else f"{self.step}*{self.name}"


@dataclass(frozen=True)
class Part:
    """A network and what it is exported with.

    ``inputs``, ``outputs``: the dynamic axes of each by position, in the order of the module;
    axes of one name are equally long.
    ``samples``: inputs in order, at two sizes or more; the first is the example of the
    export, none of whose dynamic axes is 1 long.
    ``segments``: the same function in pieces for tiles, where there are any.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Mapping[int, Axis]]
    outputs: Mapping[str, Mapping[int, Axis]]
    samples: Sequence[tuple[Tensor, ...]]
    max_abs: float = MAX_ABS
    low_psnr: float = LOW_PSNR
    segments: Sequence[Built] = ()


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Seeded samples, the same on every machine."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Rewrite = Callable[[ir.Model], ir.Model]


def export_part(
    part: Part,
    graphs: Path,
    reference: Path,
    *,
    weights: Weights = "float32",
    to_bfloat16: Rewrite | None = None,
) -> tuple[Network, list[Measured]]:
    """Write ``NAME.onnx``, ``NAME.bin`` and samples; hold the graph against PyTorch.

    The weights of ``part.module`` are let go once they are written: at most one copy of them is
    in memory beside what checks the graph. ``weights``: see ``pixelrt.export.weights``; with the
    values that are stored, PyTorch computes in float32. ``to_bfloat16`` gives the form for
    OpenVINO of a graph whose weights are stored in bfloat16; both read the same file.

    Raises ``ExportError`` with the worst sample and its errors by decade.
    """
    stored = round_weights(part.module, weights, part.name)
    expected = [_run(part, sample) for sample in part.samples]
    graph = _write_graph(part, graphs, stored)
    part.module.to("meta")
    gc.collect()  # the exporter leaves cycles that hold the weights
    measured = _check(part, _graph_runner(part, graphs / Path(graph.file).name), expected)
    samples = []
    for number, (sample, outputs) in enumerate(zip(part.samples, expected, strict=True)):
        name = f"{part.name}-{number}"
        arrays = {INPUT + n: v.numpy() for n, v in zip(part.inputs, sample, strict=True)}
        arrays |= {OUTPUT + n: v for n, v in zip(part.outputs, outputs, strict=True)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        (reference / f"{name}.npz").write_bytes(buffer.getvalue())
        samples.append(NetworkSample(name, f"reference/{name}.npz"))
    variants = []
    if to_bfloat16 is not None and stored == torch.bfloat16:
        variants.append(_write_variant(graph, graphs, to_bfloat16))
    component = Component(part.name, "float32", [graph], variants)
    tolerance = Tolerance(part.max_abs)
    described = Network(
        component=component, tolerance=tolerance, low_psnr=part.low_psnr, samples=samples
    )
    if part.segments:
        for one in part.segments:
            store(one.model, stored)
        segments = write_segments(part.segments, graphs, part.name)
        described = replace(described, segments=segments)
        (source,) = part.inputs
        measured += _check(
            part,
            lambda feed: [run_in_tiles(described, feed[source], graphs)],
            expected,
            " in tiles",
        )
    return described, measured


def _write_graph(part: Part, graphs: Path, stored: torch.dtype) -> Graph:
    model = export_module(
        part.module,
        part.samples[0],
        _dynamic_shapes(part),
        (list(part.inputs), list(part.outputs)),
    )
    _name_axes(model, part)
    store(model, stored)
    file, data = f"{part.name}.onnx", f"{part.name}.bin"
    ir.save(model, graphs / file, external_data=data)
    for value in model.graph.initializers.values():
        value.const_value = None  # rules of the exporter keep the last graph
    files = [f"graphs/{data}"] if (graphs / data).is_file() else []
    return Graph("network", f"graphs/{file}", *_specs(model), files, OPSET)


def _write_variant(graph: Graph, graphs: Path, to_bfloat16: Rewrite) -> GraphVariant:
    plain = graphs / Path(graph.file).name
    file = plain.with_name(f"{OPENVINO_BFLOAT16}-{plain.name}")
    model = to_bfloat16(ir.load(plain))
    data = save_sharing(model, file, plain, f"{file.stem}.bin")
    opset = model.graph.opset_imports[""]
    names = [f"graphs/{one}" for one in data]
    made = replace(graph, file=f"graphs/{file.name}", data=names, opset=opset)
    return GraphVariant(OPENVINO_BFLOAT16, [made])


def _dynamic_shapes(part: Part) -> tuple[object, ...]:
    dims: dict[str, object] = {}

    def dim(axis: Axis) -> object:
        if axis.name not in dims:
            dims[axis.name] = Dim(axis.name, min=axis.low, max=axis.high // axis.step)
        base = dims[axis.name]
        return base if axis.step == 1 else axis.step * base  # type: ignore[operator]

    shapes = [{position: dim(axis) for position, axis in a.items()} for a in part.inputs.values()]
    parameters = inspect.signature(part.module.forward).parameters.values()
    single = sum(one.kind is not one.VAR_POSITIONAL for one in parameters)
    # torch.export wants those of *more as one tuple.
    return (*shapes[:single], tuple(shapes[single:])) if single < len(shapes) else (*shapes,)


def _name_axes(model: ir.Model, part: Part) -> None:
    """Give the axes of inputs and outputs their names."""
    values = [*model.graph.inputs, *model.graph.outputs]
    for value, axes in zip(values, [*part.inputs.values(), *part.outputs.values()], strict=True):
        assert value.shape is not None
        dims = [axes.get(position, size) for position, size in enumerate(value.shape)]
        if not all(isinstance(size, int | Axis) for size in dims):
            raise ExportError(
                f"{part.name}: an axis of {value.name} is dynamic that should be fixed",
                found=str(value.shape),
                expected=", ".join(map(str, axes.values())) + " alone",
            )
        value.shape = ir.Shape([size if isinstance(size, int) else str(size) for size in dims])


def _specs(model: ir.Model) -> tuple[list[TensorSpec], list[TensorSpec]]:
    def spec(value: ir.Value) -> TensorSpec:
        assert value.shape is not None
        assert value.dtype is not None
        dims = tuple(int(d) if isinstance(d, int) else str(d) for d in value.shape)
        return TensorSpec(value.name or "", str(np.dtype(value.dtype.numpy())), dims)

    return [spec(v) for v in model.graph.inputs], [spec(v) for v in model.graph.outputs]


def _run(part: Part, sample: tuple[Tensor, ...]) -> list[np.ndarray]:
    with torch.inference_mode():
        result = part.module(*sample)
    results = result if isinstance(result, tuple) else (result,)
    return [value.numpy() for value in results]


def _graph_runner(part: Part, path: Path) -> Run:
    session = open_graph(path)
    return lambda feed: session.run(list(part.outputs), feed)


def _check(part: Part, run: Run, expected: list[list[np.ndarray]], how: str = "") -> list[Measured]:
    measured = []
    for number, (sample, outputs) in enumerate(zip(part.samples, expected, strict=True)):
        feed = {name: v.numpy() for name, v in zip(part.inputs, sample, strict=True)}
        found = run(feed)
        worst: Comparison | None = None
        for name, want, got in zip(part.outputs, outputs, found, strict=True):
            peak = float(np.abs(want).max()) or 1.0
            result = compare(want / peak, got / peak)
            if result.max_abs > part.max_abs:
                raise ExportError(
                    f"the graph of {part.name}{how} does not reproduce PyTorch; no bundle was "
                    "written",
                    found=f"{result} of the largest value of {name}, sample {number}; errors by "
                    f"size:\n{histogram(want / peak, got / peak)}",
                    expected=f"max abs at most {part.max_abs:.0e}",
                    hint="report this with the pipeline's configuration: a fault of the export",
                )
            worst = result if worst is None or result.psnr < worst.psnr else worst
        assert worst is not None
        measured.append(Measured(BACKEND, f"{part.name}-{number}{how}", worst.max_abs, worst.psnr))
    return measured
