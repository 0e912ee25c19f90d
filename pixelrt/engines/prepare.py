"""From a bundle's float32 graph to the one that a plan is built from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pixelrt.bundle import Bundle, BundledNetwork
from pixelrt.engines.calibrate import Feed, Runner, measure_shapes
from pixelrt.engines.passes.clean import clean
from pixelrt.engines.passes.fold_constants import fold_constants
from pixelrt.engines.passes.instance_norm import write_out_instance_norms
from pixelrt.engines.precision import Converted, Policy, convert
from pixelrt.engines.tensors import check_network, network_feeds
from pixelrt.errors import FidelityError
from pixelrt.fidelity import compare
from pixelrt.geometry import Size
from pixelrt.grid import grid_size, pad_image
from pixelrt.manifest import Graph, Reference
from pixelrt.pipeline_bundle import PipelineNetwork
from pixelrt.plans.profiles import NamedLengths, Shape

SLACK = 4.0
"""A rewritten graph sums in another order than the one that was exported: its error may be
this many times the tolerance of the export."""


def prepare_graph(
    bundle: BundledNetwork, graph: Graph, shape: NamedLengths, policy: Policy | None, file: Path
) -> Converted | None:
    """Write the graph for TensorRT to ``file``, its weights beside it.

    Constants are folded, norms written out for pictures of ``shape``; what results has to
    give the bundle's reference outputs. With a ``policy`` it is then converted on the
    bundle's samples, and what was converted is returned.

    Raises ``FidelityError`` where the rewritten graph is wrong or misses the policy's target.
    """
    feeds = feeds_of(bundle, graph)
    model = clean(fold_constants(load_graph(bundle, graph)))
    example = feeds[0] if isinstance(bundle, PipelineNetwork) else _blank(graph, shape)
    model = write_out_instance_norms(model, measure_shapes(model, example))
    check_graph(bundle, graph, model, "rewritten for TensorRT")
    converted = convert(model, feeds, policy) if policy else None
    ir.save(converted.model if converted else model, file, external_data=f"{file.name}.data")
    return converted


def load_graph(bundle: BundledNetwork, graph: Graph) -> ir.Model:
    """A graph of the bundle; its weights are read from its files where they are needed."""
    return ir.load(bundle.path(graph.file))


def feeds_of(bundle: BundledNetwork, graph: Graph) -> list[Feed]:
    """The bundle's samples as the graph takes them."""
    if isinstance(bundle, PipelineNetwork):
        return network_feeds(bundle)
    assert isinstance(bundle, Bundle)
    return [feed_of(bundle, graph, sample) for sample in bundle.manifest.references]


def _blank(graph: Graph, shape: NamedLengths) -> Feed:
    assert isinstance(shape, Shape)
    channels = next(side for side in graph.inputs[0].shape if isinstance(side, int))
    if graph.role == "image":
        return _input(graph, np.zeros((1, shape.height, shape.width, channels), np.uint8))
    return _input(graph, np.zeros((1, channels, shape.height, shape.width), np.float32))


def _input(graph: Graph, array: NDArray[np.generic]) -> Feed:
    return {graph.inputs[0].name: np.ascontiguousarray(array)}


def feed_of(bundle: Bundle, graph: Graph, sample: Reference) -> Feed:
    """A reference sample, padded to the grid, as the graph takes it."""
    spec = bundle.manifest.image
    pixels, _ = bundle.reference(sample)
    size = grid_size(Size(sample.height, sample.width), spec)
    padded = pad_image(pixels, size, spec.pad_mode)
    if graph.role == "image":
        return _input(graph, padded)
    return _input(graph, (padded.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2))


def check_graph(bundle: BundledNetwork, graph: Graph, model: ir.Model, what: str) -> None:
    """Hold a float32 graph against PyTorch's outputs. Raises ``FidelityError``."""
    if isinstance(bundle, PipelineNetwork):
        check_network(bundle, model, what, SLACK)
        return
    assert isinstance(bundle, Bundle)
    name = graph.outputs[0].name
    run = Runner(model, [name])
    for sample in bundle.manifest.references:
        feed = feed_of(bundle, graph, sample)
        _, expected = bundle.reference(sample)
        height, width = expected.shape[2:]
        if graph.role == "image":
            got = run(feed)[name][:, :height, :width].transpose(0, 3, 1, 2)
            expected, limit = np.rint(np.clip(expected, 0, 1) * 255), 1.0
        else:
            got = run(feed)[name][:, :, :height, :width]
            limit = bundle.manifest.tolerance.max_abs * SLACK
        result = compare(expected, got)
        if not result.max_abs <= limit:
            raise FidelityError(
                f"the {graph.role} graph of {bundle.manifest.name} {what} is wrong",
                found=f"{result} on sample {sample.name}",
                expected=f"max abs at most {limit:.1e}",
                hint="report this with the bundle's manifest: it is a fault of a graph pass",
            )
