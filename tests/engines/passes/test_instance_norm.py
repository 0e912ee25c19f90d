"""InstanceNormalization written out equals the operator, whatever the picture's size."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from pixelrt.engines.passes.instance_norm import LARGE, write_out_instance_norms

GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
norm (float[N, 3, H, W] x) => (float[N, 3, H, W] y)
<float[3] scale = {SCALE}, float[3] bias = {BIAS}>
{
    n = InstanceNormalization <epsilon = 0.00001> (x, scale, bias)
    y = Relu (n)
}
"""
PLAIN = GRAPH.replace("SCALE", "1, 1, 1").replace("BIAS", "0, 0, 0")
AFFINE = GRAPH.replace("SCALE", "0.5, 2, -1").replace("BIAS", "0.1, -0.2, 0.3")


def rewritten(text: str, shape: tuple[int, ...]) -> ir.Model:
    model = ir.from_proto(onnx.parser.parse_model(text))
    for index, node in enumerate(model.graph):
        node.name = f"node_{index}"
    result = write_out_instance_norms(model, {"x": shape})
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    assert any(node.op_type == "InstanceNormalization" for node in model.graph)
    return result


def run(model: Any, x: Any) -> Any:
    data = model.SerializeToString()
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("text", [PLAIN, AFFINE], ids=["plain", "affine"])
@pytest.mark.parametrize("shape", [(2, 3, 9, 14), (1, 3, 200, 220)], ids=["small", "large"])
def test_equal_to_the_operator(text: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(0.3, 2, shape).astype(np.float32)
    model = rewritten(text, shape)
    assert all(node.op_type != "InstanceNormalization" for node in model.graph)
    want = run(onnx.parser.parse_model(text), x)
    np.testing.assert_allclose(run(ir.to_proto(model), x), want, atol=3e-6)


@pytest.mark.parametrize("text", [PLAIN, AFFINE], ids=["plain", "affine"])
def test_lines_as_group_norms_are_exported(text: str) -> None:
    """(N, groups, length), however long."""
    text = text.replace("3, H, W]", "3, L]")
    x = np.random.default_rng(0).normal(50, 2, (2, 3, 2 * LARGE)).astype(np.float32)
    model = rewritten(text, x.shape)
    assert all(node.op_type != "InstanceNormalization" for node in model.graph)
    want = run(onnx.parser.parse_model(text), x)
    np.testing.assert_allclose(run(ir.to_proto(model), x), want, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 3, 256, 256)], ids=["small", "large"])
def test_a_common_offset_costs_no_digits(shape: tuple[int, ...]) -> None:
    """Mean 1000 and deviation 1: squares of 1e6 would leave two digits of the variance."""
    x = np.random.default_rng(0).normal(1000, 1, shape).astype(np.float32)
    wide = x.astype(np.float64)
    centred = wide - wide.mean((2, 3), keepdims=True)
    want = np.maximum(centred / np.sqrt((centred**2).mean((2, 3), keepdims=True) + 1e-5), 0)
    np.testing.assert_allclose(run(ir.to_proto(rewritten(PLAIN, shape)), x), want, atol=2e-4)


def test_large_pictures_are_summed_by_rows() -> None:
    small = [node.op_type for node in rewritten(PLAIN, (1, 3, 8, 8)).graph]
    large = [node.op_type for node in rewritten(PLAIN, (1, 3, LARGE // 8, 8)).graph]
    assert small.count("ReduceMean") == 2
    assert large.count("ReduceMean") == 3
    assert "Concat" in large
    assert "Mul" not in small[small.index("Div") :]


def test_a_constant_picture_gives_no_nan() -> None:
    x = np.full((1, 3, 256, 256), 7, np.float32)
    assert np.abs(run(ir.to_proto(rewritten(PLAIN, x.shape)), x)).max() < 1e-3


def test_other_norms_and_domains_stay() -> None:
    text = PLAIN.replace("InstanceNormalization", "BatchNormalization").replace(
        "(x, scale, bias)", "(x, scale, bias, bias, scale)"
    )
    model = write_out_instance_norms(ir.from_proto(onnx.parser.parse_model(text)), {})
    assert [node.op_type for node in model.graph] == ["BatchNormalization", "Relu"]
