"""Graph pass: give a float NCHW graph uint8 NHWC images as input and output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from pixelrt.export.to_onnx import IMAGE_IN, IMAGE_OUT, OPSET
from pixelrt.manifest import Graph
from pixelrt.spec import ImageSpec, TensorSpec


def write_image_graph(core: Graph, spec: ImageSpec, folder: Path) -> Graph:
    """Write ``image.onnx`` beside ``core.onnx``, sharing its weight files.

    In: cast, transpose, divide by 255 (as the image libraries do; a product with 1/255
    rounds otherwise). Out: clamp to [0, 1], times 255, round half to even,
    transpose, cast. TensorRT takes uint8 only into and out of a cast, so the casts stand
    outermost.
    """
    name = Path(core.file).name
    model = ir.load(folder / name)
    add_image_io(model, spec)
    image = name.replace("core", "image")
    ir.save(model, folder / image)
    high = [str(d) for d in core.outputs[0].shape[2:]]
    return Graph(
        "image",
        f"graphs/{image}",
        [TensorSpec(IMAGE_IN, "uint8", ("N", "H", "W", spec.channels_in))],
        [TensorSpec(IMAGE_OUT, "uint8", ("N", *high, spec.channels_out))],
        core.data,
        OPSET,
    )


def add_image_io(model: ir.Model, spec: ImageSpec) -> None:
    """Rewrite ``model`` in place; it has one float NCHW input and output."""
    graph = model.graph
    _read_image(graph, spec)
    _write_image(graph, spec)


def _read_image(graph: ir.Graph, spec: ImageSpec) -> None:
    pixels = graph.inputs[0]
    image = ir.Value(
        name=IMAGE_IN,
        type=ir.TensorType(ir.DataType.UINT8),
        shape=ir.Shape(["N", "H", "W", spec.channels_in]),
    )
    cast = ir.node("Cast", [image], {"to": ir.DataType.FLOAT}, name="image_to_float")
    chw = ir.node("Transpose", [cast.outputs[0]], {"perm": [0, 3, 1, 2]}, name="image_to_chw")
    peak = _constant(graph, "image_in_peak", 255.0)
    unit = ir.node("Div", [chw.outputs[0], peak], name="image_to_unit")
    _name_outputs(cast, chw, unit)
    for node, index in list(pixels.uses()):
        node.replace_input_with(index, unit.outputs[0])
    graph.inputs[0] = image
    first = graph[0]
    graph.insert_before(first, [cast, chw, unit])


def _write_image(graph: ir.Graph, spec: ImageSpec) -> None:
    output = graph.outputs[0]
    high = [d if isinstance(d, int) else str(d.value) for d in list(output.shape or [])[2:]]
    low, top = _constant(graph, "image_low", 0.0), _constant(graph, "image_high", 1.0)
    clamp = ir.node("Clip", [output, low, top], name="output_clamp")
    peak = _constant(graph, "image_out_peak", 255.0)
    scaled = ir.node("Mul", [clamp.outputs[0], peak], name="output_to_levels")
    rounded = ir.node("Round", [scaled.outputs[0]], name="output_round")
    hwc = ir.node("Transpose", [rounded.outputs[0]], {"perm": [0, 2, 3, 1]}, name="output_to_hwc")
    cast = ir.node("Cast", [hwc.outputs[0]], {"to": ir.DataType.UINT8}, name="output_to_uint8")
    _name_outputs(clamp, scaled, rounded, hwc)
    result = cast.outputs[0]
    result.name = IMAGE_OUT
    result.type = ir.TensorType(ir.DataType.UINT8)
    result.shape = ir.Shape(["N", *high, spec.channels_out])
    graph.extend([clamp, scaled, rounded, hwc, cast])
    graph.outputs[0] = result


def _constant(graph: ir.Graph, name: str, value: float) -> ir.Value:
    array = np.array(value, np.float32)
    tensor = ir.tensor(array, name=name)
    constant = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([]),
        const_value=tensor,
    )
    graph.register_initializer(constant)
    return constant


def _name_outputs(*nodes: ir.Node) -> None:
    for node in nodes:
        node.outputs[0].name = f"{node.name}_out"
