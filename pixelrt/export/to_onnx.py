"""The only caller of ``torch.onnx.export``."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim

from pixelrt.errors import ExportError
from pixelrt.export.recipe import Network
from pixelrt.export.shared_weights import save_sharing
from pixelrt.manifest import Graph
from pixelrt.spec import ImageSpec, TensorSpec

OPSET = 18
CORE = "core.onnx"
WEIGHTS = "weights.bin"
MAX_SIDE = 2**16
MAX_BATCH = 2**10
COMPILED = "__compiled_fn"
CORE_IN, CORE_OUT, IMAGE_IN, IMAGE_OUT = "pixels", "output", "image", "result"


def export_core(network: Network, folder: Path) -> Graph:
    """Write ``core.onnx`` and its weights into ``folder``: float32 NCHW, dynamic N, H, W.

    Raises ``ExportError`` where PyTorch cannot turn the network into a graph.
    """
    model = _model(network.graph, network.image)
    ir.save(model, folder / CORE, external_data=WEIGHTS)
    return _described(network.image, CORE, [WEIGHTS] if (folder / WEIGHTS).is_file() else [])


def export_variant(network: Network, backend: str, folder: Path) -> Graph:
    """Write the form for ``backend`` beside the ``core.onnx`` of ``export_core``.

    The contract of the graph is that of ``core.onnx``; weights that both have are stored once.
    """
    model = _model(network.variants[backend], network.image)
    name = f"{backend}-{CORE}"
    data = save_sharing(model, folder / name, folder / CORE, f"{backend}-{WEIGHTS}")
    return _described(network.image, name, data)


def export_module(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    dynamic_shapes: tuple[object, ...],
    names: tuple[list[str], list[str]],
) -> ir.Model:
    """A module as a graph; ``names`` of its inputs and outputs. ``dynamic_shapes`` as in
    ``torch.export``, for each input. Raises ``ExportError``."""
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes,
                input_names=names[0],
                output_names=names[1],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as exc:
        raise ExportError("PyTorch could not export the network", found=str(exc)[:2000]) from exc
    finally:
        _forget_compiled()
    assert program is not None
    model: ir.Model = program.model
    _forget_build_machine(model)
    return model


def _model(module: nn.Module, spec: ImageSpec) -> ir.Model:
    height, width = _example_size(spec)
    example = torch.rand(2, spec.channels_in, height, width)
    shapes = {0: Dim("N", min=1, max=MAX_BATCH), **_sides(spec)}
    model = export_module(module, (example,), (shapes,), ([CORE_IN], [CORE_OUT]))
    model.graph.outputs[0].shape = ir.Shape(["N", spec.channels_out, *_scaled(spec)])
    model.graph.inputs[0].shape = ir.Shape(["N", spec.channels_in, "H", "W"])
    return model


def _described(spec: ImageSpec, name: str, data: list[str]) -> Graph:
    return Graph(
        "core",
        f"graphs/{name}",
        [TensorSpec(CORE_IN, "float32", ("N", spec.channels_in, "H", "W"))],
        [TensorSpec(CORE_OUT, "float32", ("N", spec.channels_out, *_scaled(spec)))],
        [f"graphs/{file}" for file in data],
        OPSET,
    )


def _example_size(spec: ImageSpec) -> tuple[int, int]:
    """Different sides, neither of them one step: the exporter specialises on 1."""
    steps = max(2, -(-spec.minimum // spec.multiple))
    return spec.multiple * steps, spec.multiple * (steps + 1)


def _sides(spec: ImageSpec) -> dict[int, object]:
    step = spec.multiple
    low, high = spec.minimum // step, MAX_SIDE // step
    if step == 1:
        return {2: Dim("H", min=low, max=high), 3: Dim("W", min=low, max=high)}
    return {2: step * Dim("h", min=low, max=high), 3: step * Dim("w", min=low, max=high)}


def _scaled(spec: ImageSpec) -> tuple[str, str]:
    return ("H", "W") if spec.scale == 1 else (f"{spec.scale}*H", f"{spec.scale}*W")


def _forget_compiled() -> None:
    """Let go of the weights that Dynamo, which traces what ``torch.export`` cannot trace by
    itself, keeps: each compiled function stays a global of the module that made it
    (torch 2.13)."""
    maker = sys.modules.get("torch._dynamo.functional_export")
    if maker is None:
        return
    torch._dynamo.reset()
    for name in [name for name in vars(maker) if name.startswith(COMPILED)]:
        delattr(maker, name)


def _forget_build_machine(model: ir.Model) -> None:
    """Drop stack traces, which hold paths of the machine that exported."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name = "pixelrt"
    model.producer_version = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own notes off the user's terminal; errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
