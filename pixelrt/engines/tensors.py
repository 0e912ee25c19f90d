"""Samples of a pipeline's network: what a graph is held against, and what its plans are."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pixelrt.engines.calibrate import Feed, Runner
from pixelrt.errors import FidelityError
from pixelrt.fidelity import compare_relative
from pixelrt.manifest import Graph
from pixelrt.pipeline_bundle import INPUT, OUTPUT, PipelineNetwork
from pixelrt.plans.axis_profiles import AxisProfile
from pixelrt.plans.facts import PlanSample
from pixelrt.plans.profiles import tensor_shape

Array = NDArray[np.generic]


def network_feeds(network: PipelineNetwork) -> list[Feed]:
    """Inputs of every sample of the bundle, by name."""
    return [{**inputs} for _, inputs, _ in network.samples()]


def check_network(network: PipelineNetwork, model: ir.Model, what: str, slack: float) -> None:
    """Hold a float32 graph against PyTorch's outputs, each of its own largest magnitude.

    ``slack``: how many times the tolerance of the export is allowed. Raises ``FidelityError``.
    """
    run = Runner(model, [tensor.name for tensor in _graph(network).outputs])
    limit = network.tolerance.max_abs * slack
    for sample, inputs, expected in network.samples():
        for name, got in run(inputs).items():
            result = compare_relative(expected[name], got)
            if not result.max_abs <= limit:
                raise FidelityError(
                    f"the graph of {network.name} {what} is wrong",
                    found=f"{result} of the largest {name}, sample {sample}",
                    expected=f"max abs at most {limit:.1e}",
                    hint="report this with the bundle's manifest: it is a fault of a graph pass",
                )


def network_samples(
    network: PipelineNetwork, model: ir.Model, profiles: Sequence[AxisProfile]
) -> tuple[list[PlanSample], dict[str, bytes]]:
    """The network's own inputs at the optimum of every profile, and the files of these samples.

    ``model``: its float32 graph, known to be right; onnxruntime answers with it.
    """
    graph = _graph(network)
    run = Runner(model, [tensor.name for tensor in graph.outputs])
    _, inputs, _ = max(network.samples(), key=lambda one: sum(v.size for v in one[1].values()))
    samples, files = [], {}
    for number, best in enumerate(dict.fromkeys(profile.shapes[1] for profile in profiles)):
        feed = {
            tensor.name: repeated(inputs[tensor.name], tensor_shape(tensor, best))
            for tensor in graph.inputs
        }
        file = f"sample-{number}.npz"
        files[file] = encode_tensors(feed, run(feed))
        samples.append(PlanSample(f"{network.component.name} at {best}", file))
    return samples, files


def repeated(array: Array, shape: tuple[int, ...]) -> Array:
    """``array`` of another shape: cut, or begun again where it ends."""
    for axis, length in enumerate(shape):
        array = np.take(array, np.arange(length) % array.shape[axis], axis=axis)
    return np.ascontiguousarray(array)


def encode_tensors(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bytes:
    """A sample as the bytes of an npz file; see ``manifest.NetworkSample``."""
    arrays = {INPUT + name: value for name, value in inputs.items()}
    arrays |= {OUTPUT + name: value for name, value in outputs.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _graph(network: PipelineNetwork) -> Graph:
    return network.component.graph("network")
