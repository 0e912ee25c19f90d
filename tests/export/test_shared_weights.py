"""Weights of a graph variant: stored once where the plain graph has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from pixelrt.export.shared_weights import save_sharing

RNG = np.random.default_rng(0)
JOINT = RNG.standard_normal((12, 40)).astype(np.float32)
OTHER = RNG.standard_normal((4, 40)).astype(np.float32)


def model(*weights: Any) -> ir.Model:
    """``x + weights[0] + weights[1] ...`` for ``x`` of one number."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    values, nodes, total = [], [], x
    for i, weight in enumerate(weights):
        value = ir.Value(name=f"w{i}", const_value=ir.tensor(weight, name=f"w{i}"))
        node = ir.node("Add", [total, value])
        total = node.outputs[0]
        values.append(value)
        nodes.append(node)
    total.name, total.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [total], nodes=nodes, initializers=values, opset_imports={"": 18})
    return ir.Model(graph, ir_version=10)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "core.onnx"
    ir.save(model(JOINT), path, external_data="weights.bin")
    return path


def places(path: Path) -> dict[str, dict[str, str]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer}


def test_whole_weights_and_thirds_are_shared(plain: Path) -> None:
    path = plain.with_name("variant.onnx")
    data = save_sharing(model(JOINT[4:8], OTHER, JOINT[8:], OTHER), path, plain, "own.bin")
    assert data == ["own.bin", "weights.bin"]
    found = places(path)
    assert [found[name]["location"] for name in ("w0", "w2")] == ["weights.bin"] * 2
    assert found["w1"] == found["w3"]
    assert (plain.parent / "own.bin").read_bytes() == OTHER.tobytes()
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.ones(1, np.float32)})
    np.testing.assert_allclose(got, 1 + JOINT[4:8] + OTHER + JOINT[8:] + OTHER, rtol=1e-6)


def test_no_file_without_weights_of_its_own(plain: Path) -> None:
    path = plain.with_name("variant.onnx")
    assert save_sharing(model(JOINT), path, plain, "own.bin") == ["weights.bin"]
    assert not (plain.parent / "own.bin").exists()


def test_small_weights_stay_inside(plain: Path) -> None:
    path = plain.with_name("variant.onnx")
    assert save_sharing(model(JOINT[:1]), path, plain, "own.bin") == []
    assert places(path) == {"w0": {}}


def test_a_plain_graph_without_weight_file(tmp_path: Path) -> None:
    plain = tmp_path / "core.onnx"
    ir.save(model(OTHER), plain)
    path = tmp_path / "variant.onnx"
    assert save_sharing(model(OTHER), path, plain, "own.bin") == ["own.bin"]
