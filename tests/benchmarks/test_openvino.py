"""What is measured of OpenVINO, and the rounding that is held against it."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from benchmarks import openvino
from benchmarks.cases import TINY
from benchmarks.openvino_operations import grouped, operation_rows, products_of
from benchmarks.openvino_parts import shape_rows
from benchmarks.records import OpenVinoReport, read_record
from benchmarks.rounding import ROUNDINGS, Rounding, sum_of_terms, with_rounding
from benchmarks.script import run_command
from pixelrt.bundle import Bundle, open_bundle
from pixelrt.engines.calibrate import Runner
from pixelrt.errors import BackendError
from pixelrt.geometry import Size
from pixelrt.runtime.load import bundle_path

HAS_PACKAGE = importlib.util.find_spec("openvino") is not None


def bf16(array: Any) -> Any:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# --- rounding -------------------------------------------------------------------------


def test_terms_come_nearer_and_nearer() -> None:
    array = random(1000)
    np.testing.assert_array_equal(sum_of_terms(array, 1), bf16(array))
    errors = [np.abs(sum_of_terms(array, terms) - array).max() for terms in (0, 1, 2, 3)]
    assert errors[0] > 100 * errors[1] > 1e4 * errors[2] > 1e5 * errors[3]


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda one: one.name)
def test_factors_of_products_are_rounded_and_nothing_else(rounding: Rounding) -> None:
    """A layer with a bias whose input is used twice, then a product of two computed values."""
    weight, bias, x = random(6, 5), random(5, seed=1), random(4, 6, seed=2)
    w, b = (", ".join(map(str, array.ravel())) for array in (weight, bias))
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[4, 6] x) => (float[4, 5] y, float[5, 5] z)
        <float[6, 5] w = {{{w}}}, float[5] b = {{{b}}}> {{
            y = Gemm (x, w, b)
            t = Transpose (y)
            u = MatMul (x, w)
            z = MatMul (t, u)
        }}""")
    rounded = with_rounding(model, rounding)
    found = Runner(rounded, ["y", "z"])({"x": x})

    def low(array: Any, terms: int = rounding.inputs) -> Any:
        return sum_of_terms(array, terms) if terms else array

    factor = low(weight, rounding.weights)
    y = low(x) @ factor + bias
    np.testing.assert_allclose(found["y"], y, rtol=0, atol=1e-5)
    z = low(found["y"].T) @ low(low(x) @ factor)
    np.testing.assert_allclose(found["z"], z, rtol=0, atol=0.05)
    assert sum(node.op_type == "Cast" for node in rounded.graph) == 6 * rounding.inputs
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), weight)  # type: ignore[union-attr]


# --- operations -----------------------------------------------------------------------


def kernel(kind: str, name: str, layers: str, time: str = "5") -> dict[str, str]:
    return {
        "layerType": kind, "primitiveType": name, "originalLayersNames": layers,
        "execTimeMcs": time,
    }  # fmt: skip


def test_kernels_are_summed_with_their_products() -> None:
    kernels = [
        kernel("Convolution", "fast", "conv,relu"),
        kernel("Convolution", "fast", "conv2/WithoutBiases"),
        kernel("Add", "jit", "add"),
        kernel("Const", "none", "w", "not_executed"),
    ]
    rows = list(grouped(kernels, [1.0, 2.0, 4.0, 0.0], {"conv": 3, "conv2": 6}, "float32"))
    assert [row.name for row in rows] == ["Add jit", "Convolution fast"]
    assert rows[1].facts == {
        "count": 2, "seconds": 3, "multiply-adds": 9, "operations per second": 6,
    }  # fmt: skip
    with pytest.raises(BackendError, match="in no kernel") as caught:
        list(grouped(kernels, [1.0] * 4, {"conv": 3, "lost": 6}, "float32"))
    assert "lost" in str(caught.value)
    kernels.append(kernel("Subgraph", "jit", "softmax"))
    rows = list(grouped(kernels, [1.0] * 5, {"conv": 3, "conv2": 6, "lost": 6}, "float32"))
    assert {row.name: row.facts["multiply-adds"] for row in rows}["Subgraph jit"] == 6
    kernels.append(kernel("Subgraph", "other", "exp"))
    rows = list(grouped(kernels, [1.0] * 6, {"conv": 3, "conv2": 6, "lost": 6}, "float32"))
    sums = {row.name: row.facts["multiply-adds"] for row in rows}
    assert [sums[f"Subgraph {name}"] for name in ("jit", "other", "together")] == [0, 0, 6]


def test_a_product_with_its_bias_bears_the_name_of_the_addition() -> None:
    kernels = [kernel("FullyConnected", "fast", "biased"), kernel("MatMul", "fast", "plain")]
    kernels += [kernel("Add", "jit", "residual"), kernel("Subgraph", "jit", "softmax")]
    sums = {"product": "biased", "plain": "residual"}
    counts = {"product": 6, "plain": 3, "scores": 5}
    rows = list(grouped(kernels, [1.0] * 4, counts, "float32", sums))
    found = {row.name.partition(" ")[0]: row.facts["multiply-adds"] for row in rows}
    assert found == {"FullyConnected": 6, "MatMul": 3, "Add": 0, "Subgraph": 5}


def test_additions_that_alone_use_a_product_are_found(tmp_path: Path) -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[2, 2] x, float[2, 2] w) => (float[2, 2] z) {
            [one] a = MatMul (x, w)
            [add] b = Add (a, x)
            [two] c = MatMul (b, w)
            [sum] d = Add (c, b)
            [all] z = Mul (c, d)
        }""")
    ir.save(model, tmp_path / "net.onnx")
    feeds = {"x": random(2, 2), "w": random(2, 2)}
    assert products_of(tmp_path / "net.onnx", feeds) == ({"one": 8, "two": 8}, {"one": "add"})


def test_without_the_package_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="openvino is not installed") as caught:
        list(operation_rows(open_bundle(bundle_path("demo")), Size(8, 8), 1))
    assert "pip install 'pixelrt[benchmarks]'" in str(caught.value)


@pytest.mark.skipif(
    not HAS_PACKAGE, reason="no package openvino: pip install 'pixelrt[benchmarks]'"
)
def test_operations_of_a_real_network(srgan_bundle: Bundle) -> None:
    total, *rows = operation_rows(srgan_bundle, Size(32, 32), 2)
    assert total.facts["seconds"] == pytest.approx(sum(row.facts["seconds"] for row in rows))
    assert sum(row.facts["multiply-adds"] for row in rows) > 0
    assert any(row.name.startswith("Convolution ") for row in rows)


# --- the script -----------------------------------------------------------------------


def test_one_shape_is_compiled_for_the_grid(srgan_bundle: Bundle) -> None:
    rows = list(shape_rows(srgan_bundle, Size(19, 23), 1))
    assert "float32" in [row.name for row in rows]
    for row in rows:
        assert row.facts["saved"] == pytest.approx(
            1 - row.facts["one shape"] / row.facts["any shape"]
        )


@pytest.mark.slow
def test_smoke(
    srgan_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(srgan_bundle.root, tmp_path / f"{TINY.name}.pixelrt")
    monkeypatch.setattr(openvino, "measure_ceilings", lambda quick: [])
    out = tmp_path / "o.json"
    assert run_command(openvino.main, ["--quick", "--work", str(tmp_path), "-o", str(out)]) == 0
    report = read_record(out)
    assert isinstance(report, OpenVinoReport)
    (case,) = report.cases
    rows = {(row.part, row.name): row for row in case.rows}
    assert {part for part, _ in rows} == set(openvino.PARTS)
    assert rows["psnr", "float32"].facts["photo"] > 100
    for rounding in ROUNDINGS:
        exact = min(rounding.weights, rounding.inputs) == 2
        least, most = (85, 300) if exact else (40, 80)
        assert least < rows["psnr", rounding.name].facts["photo"] < most
    for name in ("onnxruntime", "float32", "float32, one shape"):
        assert rows["memory", name].facts["bytes per pixel"] > 0
    assert {name for part, name in rows if part == "opening"} & {"float32", "bfloat16", "float16"}
    if not HAS_PACKAGE:
        assert "openvino is not installed" in rows["operations", ""].reason
    assert "**PSNR**" in capsys.readouterr().out
