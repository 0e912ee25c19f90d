"""Reports from the builder's own words, as they were saved from real builds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pixelrt.engines.report import (
    EngineReport,
    Product,
    check_precision,
    node_table,
    parse_layers,
)
from pixelrt.errors import BackendError, CheckError

DATA = Path(__file__).parent / "data"
TENSORRT_10 = (
    "Layers:\n"
    "Name: {ForeignNode[/m/Constant_12_output_0.../m/Unsqueeze_6]}, LayerType: Myelin, "
    "Inputs: [], Outputs: [ { Name: /m/Transpose_output_0, Location: Device, "
    "Dimensions: [2,126], Format/Datatype: Row major linear FP32 }, { Name: (Unnamed Layer* 689) "
    "[Shuffle]_output, Location: Device, Dimensions: [1,1], "
    "Format/Datatype: Channel major FP16 format where channel % 8 == 0 }], "
    "TacticValue: 0x0000000000000000\n\nBindings:\nimages\n"
)


def saved(name: str) -> EngineReport:
    return EngineReport(parse_layers((DATA / f"{name}.txt").read_text()))


def test_static_fp32() -> None:
    report = saved("unet-fp32-static")
    assert report.by_kind == {"kgen": 5, "correlation": 3, "deconv": 1}
    first, conv = report.layers[:2]
    assert first.nodes == ("node_sub_3", "node_mul")
    assert conv.nodes == ("node_Conv_30",)
    assert conv.precision == "float32"
    assert conv.inputs[0].dims == (1, 3, 256, 256)
    assert conv.outputs[0].bytes == 8 * 128 * 128 * 4
    written = [tensor.bytes for layer in report.layers for tensor in layer.outputs]
    assert report.bytes_written == sum(size for size in written if size is not None)
    assert report.nodes["node_Conv_30"] == [conv.name]
    assert "node_Conv_30" in node_table(report)


def test_dynamic_uint8() -> None:
    report = saved("swin2sr-image-fp32-dynamic")
    assert {"ShapeHostToDevice", "shape_call"} <= set(report.by_kind)
    assert report.bytes_written is None
    assert "not known for a dynamic plan" in report.text()
    images = [t for layer in report.layers for t in layer.inputs if t.name == "image"]
    assert [image.dtype for image in images] == ["uint8"]
    assert images[0].dims == (1, -1, -1, 3)
    entry = next(layer for layer in report.layers if "image_to_float" in layer.nodes)
    assert entry.precision == "float32"


def test_fused_attention_fp16() -> None:
    report = saved("fused-attention-fp16")
    assert report.fused_attentions == 1
    attention = next(layer for layer in report.layers if "mha" in layer.name)
    assert set(attention.nodes) == {"node_MatMuly", "node_Softmaxp", "node_MatMuls"}
    assert attention.precision == "float16"
    assert report.bytes_written == 5 * 16 * 6 * 64 * 16 * 2
    products = (
        Product("node_MatMuls", 100, "float16"),
        Product("node_MatMuly", 300, "float16"),
        Product("node_folded", 5, "float32"),
    )
    full = replace(report, products=products, shape="1x64x64")
    assert full.multiply_adds == {"float16": 400, "unplaced": 5}
    assert full.share("float16") == 1.0
    check_precision(full, "float16")
    facts = json.loads(json.dumps(full.as_json()))
    assert facts["layers"] == 5
    assert facts["multiply_adds"] == {"float16": 400, "unplaced": 5}
    assert facts["nodes"]["node_MatMuls"] == ["_gemm_mha_v2_myl0_3"]
    assert "1 fused" in full.text()
    assert "98.8 % float16" in full.text()


def test_a_float32_bias_in_a_float16_attention() -> None:
    """Swin2SR: the products are in float16, the position bias and the softmax in float32."""
    report = saved("swin2sr-attention-fp16")
    assert report.fused_attentions == 1
    attention = next(layer for layer in report.layers if "mha" in layer.name)
    assert [(t.dims, t.dtype) for t in attention.constants] == [((1, 6, 64, 64), "float32")]
    products = tuple(Product(node, 1, "float16") for node in ("node_matmul", "node_matmul_1"))
    check_precision(replace(report, products=products), "float16")


def test_the_form_of_tensorrt_10() -> None:
    (layer,) = parse_layers(TENSORRT_10)
    assert layer.kind == "Myelin"
    assert [tensor.dtype for tensor in layer.outputs] == ["float32", "float16"]
    assert layer.outputs[1].name == "(Unnamed Layer* 689) [Shuffle]_output"


def test_another_precision_than_asked_for() -> None:
    report = saved("fused-attention-fp16")
    wrong = replace(report, products=(Product("node_MatMuls", 9, "float32"),))
    with pytest.raises(CheckError, match="node_MatMuls in float16 instead of float32"):
        check_precision(wrong, "float32")
    single = saved("unet-fp32-static")
    single = replace(single, products=(Product("node_Conv_30", 9, "float32"),))
    check_precision(single, "float32")
    with pytest.raises(CheckError, match=r"0\.0 % of the multiply-adds") as caught:
        check_precision(single, "float16")
    assert "convert the graph before the build" in str(caught.value)
    with pytest.raises(CheckError, match="cannot be told"):
        check_precision(replace(single, products=(Product("gone", 9, "float32"),)), "float32")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "said nothing"),
        ("Engine generation completed in 0.2 seconds.", "said nothing"),
        ("Layers:\nLayer(Myelin): x, Tactic: 0x0", "new to us"),
        ("Layers:\nName: a, LayerType: b, Inputs: [ { Name: c, Kind: d }], Outputs: []", "new"),
    ],
)
def test_words_that_are_not_understood(text: str, said: str) -> None:
    """A report that left something out would prove nothing."""
    with pytest.raises(BackendError, match=said):
        parse_layers(text)
