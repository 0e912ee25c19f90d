"""What values a graph really has: onnxruntime on the CPU runs it on real images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from pixelrt.engines.flops import Shapes
from pixelrt.errors import BackendError

Array = NDArray[np.generic]
Feed = Mapping[str, Array]
CHUNK_BYTES = 256 * 1024 * 1024
"""Intermediate values held at once while they are measured."""
INLINE_BYTES = 1024 * 1024 * 1024
"""Larger graphs go to onnxruntime through files: a protobuf ends at 2 GiB."""
NO_PACKING = "session.disable_prepacking"
PERCENTILE_OF = 50_000
"""Percentiles are those of evenly spaced values, about this many."""


@dataclass(frozen=True)
class Range:
    """What float16 or bfloat16 would make of a tensor.

    ``max_abs`` of the finite values; ``low``: the 1st percentile of the absolute values that
    are not zero (0 where all are); ``error``: norm of the rounding error over the tensor's
    norm, infinite where a finite value overflows.
    """

    max_abs: float
    low: float
    error: float

    def __or__(self, other: Range) -> Range:
        lows = [r.low for r in (self, other) if r.low]
        return Range(
            max(self.max_abs, other.max_abs),
            min(lows, default=0.0),
            max(self.error, other.error),
        )


def tensor_range(array: Array, low: ir.DataType) -> Range:
    """Range of one tensor, for the type ``low``."""
    values = np.asarray(array, np.float32).ravel()
    values = values[np.isfinite(values) & (values != 0)]
    if not values.size:
        return Range(0.0, 0.0, 0.0)
    size = np.abs(values)
    with np.errstate(over="ignore"):
        rounded = values.astype(low.numpy()).astype(np.float32)
    if np.isfinite(rounded).all():
        peak = float(size.max())
        scaled = np.linalg.norm(values / peak)
        error = float(np.linalg.norm((rounded - values) / peak) / scaled)
    else:
        error = float("inf")
    some = size[:: max(1, size.size // PERCENTILE_OF)]
    return Range(float(size.max()), float(np.percentile(some, 1)), error)


def measure(
    model: ir.Model, samples: Sequence[Feed], low: ir.DataType, shapes: Shapes
) -> dict[str, Range]:
    """Range over all samples of every float32 value and weight of the main graph.

    ``shapes`` bound the memory: at most ``CHUNK_BYTES`` of values, or one value, are asked
    of onnxruntime at once.
    """
    found = {
        str(value.name): tensor_range(value.const_value.numpy(), low)
        for value in model.graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None
    }
    for names in _chunks(_float_names(model), shapes):
        runner = Runner(model, names)
        for sample in samples:
            for name, array in runner(sample).items():
                here = tensor_range(array, low)
                found[name] = found[name] | here if name in found else here
    return found


def measure_shapes(model: ir.Model, sample: Feed) -> dict[str, tuple[int, ...]]:
    """Shape of every value of the main graph in a run on ``sample``; no value is kept."""
    model = model.clone()
    graph = model.graph
    names = {}
    for value in [v for node in list(graph) for v in node.outputs if v.name]:
        node = ir.node("Shape", [value])
        node.outputs[0].name = names[value.name] = f"{value.name}__shape"
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        producer = value.producer()
        assert producer is not None
        graph.insert_after(producer, node)
        graph.outputs.append(node.outputs[0])
    result = Runner(model, list(names.values()))(sample)
    shapes = {str(name): tuple(result[shape].tolist()) for name, shape in names.items()}
    return shapes | {name: array.shape for name, array in sample.items()}


class Runner:
    """Runs a graph for the values named in ``outputs``, which need not be its own outputs."""

    def __init__(self, model: ir.Model, outputs: Sequence[str]) -> None:
        model = model.clone()
        graph = model.graph
        by_name = {v.name: v for node in graph for v in node.outputs}
        by_name |= {v.name: v for v in (*graph.inputs, *graph.initializers.values())}
        graph.outputs[:] = [by_name[name] for name in outputs]
        self.outputs = list(outputs)
        self.session = _session(model)
        self.types = {i.name: i.type for i in self.session.get_inputs()}

    def __call__(self, sample: Feed) -> dict[str, Array]:
        feed = {name: _as_declared(sample[name], kind) for name, kind in self.types.items()}
        try:
            results = self.session.run(self.outputs, feed)
        except Exception as exc:  # onnxruntime's exceptions share no base class below Exception
            raise BackendError("onnxruntime could not run the graph", found=str(exc)) from exc
        return dict(zip(self.outputs, results, strict=True))


def _as_declared(array: Array, kind: str) -> Array:
    """A float16 or bfloat16 sample for a graph that takes float32."""
    narrow = array.dtype.itemsize == 2 and array.dtype.kind not in "iu"
    return array.astype(np.float32) if narrow and kind == "tensor(float)" else array


def _session(model: ir.Model) -> ort.InferenceSession:
    """``model`` may be changed."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Shapes are read as soon as they are there, and the values behind them are let go.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    providers = ["CPUExecutionProvider"]
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    try:
        if size <= INLINE_BYTES:
            ir.external_data.load_to_model(model)
            graph = ir.to_proto(model).SerializeToString()
            return ort.InferenceSession(graph, options, providers=providers)
        options.add_session_config_entry(NO_PACKING, "1")  # a second copy of the weights
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "graph.onnx")
            ir.save(model, path, external_data="weights.bin")
            return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as exc:  # as above
        raise BackendError("onnxruntime could not load the graph", found=str(exc)) from exc


def _float_names(model: ir.Model) -> list[str]:
    values = [v for node in model.graph for v in node.outputs]
    return [str(v.name) for v in values if v.name and v.dtype == ir.DataType.FLOAT]


def _chunks(names: Sequence[str], shapes: Shapes) -> Iterator[list[str]]:
    chunk: list[str] = []
    held = 0
    for name in names:
        size = 4 * prod(shapes[name])
        if chunk and held + size > CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append(name)
        held += size
    if chunk:
        yield chunk
