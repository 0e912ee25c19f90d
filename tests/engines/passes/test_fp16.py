"""The cast-inserting pass: what converts, what must not, and how the casts look."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from pixelrt.engines.passes.emulate import emulate
from pixelrt.engines.passes.formals import fixed_nodes
from pixelrt.engines.passes.fp16 import normalised, to_low
from tests.engines.passes.graphs import (
    assert_sound,
    casts_of,
    node_of,
    ops,
    parse,
    run,
    signature,
    type_faults,
    weight,
)

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def low(text: str, *keep_ops: str, opset: int = 18, **options: str) -> ir.Model:
    model = normalised(parse(text, opset=opset))
    keep = {node.name for node in model.graph if node.op_type in keep_ops}
    result = to_low(model, keep, **options)
    assert_sound(result, loads=options.get("dtype") != "bfloat16")
    return result


def dtypes(model: ir.Model, op: str, at: int = 0) -> set[ir.DataType]:
    node = node_of(model, op, at)
    return {v.dtype for v in (*node.inputs, *node.outputs) if v is not None}


SHARED = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
    a = Relu(x)  b = Softmax(a)  c = Exp(a)  d = Mul(b, c)  e = Softplus(a)
    y = Add(d, e)  z = Neg(d)
}"""


def test_a_plain_graph_converts_and_keeps_its_signature() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x)  b = Sigmoid(a)  y = Mul(a, b) }"
    model = low(text)
    assert ops(model) == ["Cast", "Relu", "Sigmoid", "Mul", "Cast"]
    assert dtypes(model, "Mul") == {HALF}
    assert signature(model) == [("x", FLOAT), ("y", FLOAT)]
    x = np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_allclose(run(model, x=x)[0], run(parse(text), x=x)[0], atol=2e-3)


def test_io_low_changes_the_declared_types() -> None:
    model = low(
        "g (float[N, 4] x, int64[1] n) => (float[N, 4] y, int64[2] s) "
        "{ y = Relu(x)  s = Shape(x) }",
        io="low",
    )
    assert signature(model) == [
        ("x", HALF),
        ("n", ir.DataType.INT64),
        ("y", HALF),
        ("s", ir.DataType.INT64),
    ]
    assert "Cast" not in ops(model)


def test_one_cast_per_value_and_direction() -> None:
    model = low(SHARED, "Softmax", "Exp")
    relu = node_of(model, "Relu").outputs[0].name
    assert casts_of(model, "x") == 1
    assert casts_of(model, relu) == 1, "Softmax and Exp share the cast up"
    assert ops(model).count("Cast") == 6
    assert signature(model) == [("x", FLOAT), ("y", FLOAT), ("z", FLOAT)]


def test_names_taken_by_others_are_avoided() -> None:
    model = low(
        "g (float[N, 4] x) => (float[N, 4] x_fp16) <float[4] x_fp16_2 = {1, 2, 3, 4}> "
        "{ cast_x_fp16_3 = Relu(x)  x_fp16 = Add(cast_x_fp16_3, x_fp16_2) }"
    )
    assert signature(model) == [("x", FLOAT), ("x_fp16", FLOAT)]


def test_a_value_that_is_output_and_input_of_others() -> None:
    model = low(
        "g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) "
        "{ y = Relu(x)  a = Softmax(y)  z = Neg(a) }",
        "Softmax",
    )
    assert signature(model)[1:] == [("y", FLOAT), ("z", FLOAT)]
    assert node_of(model, "Softmax").inputs[0].name == "y", "the output's cast is shared"


def test_an_input_that_is_an_output_stays() -> None:
    text = "g (float[4] x) => (float[4] x, float[4] y) { y = Relu(x) }"
    assert signature(low(text)) == [("x", FLOAT), ("x", FLOAT), ("y", FLOAT)]


def test_an_output_that_is_a_cast_of_an_input_keeps_its_name() -> None:
    text = "g (float16[4] x) => (float[4] y, float[4] z) { y = Cast<to = 1>(x)  z = Relu(y) }"
    assert signature(low(text, io="low")) == [("x", HALF), ("y", HALF), ("z", HALF)]
    assert signature(low(text)) == [("x", HALF), ("y", FLOAT), ("z", FLOAT)]


WEIGHTS = """g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {
    a = Mul(x, w)  b = Add(a, w)  c = Softmax(b)  y = Mul(c, w)
}"""


def test_a_weight_is_converted_once() -> None:
    model = low(WEIGHTS)
    assert {name: v.dtype for name, v in model.graph.initializers.items()} == {"w": HALF}


def test_a_weight_keeps_a_float32_copy_only_for_a_float32_node() -> None:
    model = low(WEIGHTS, "Add")
    assert {name: v.dtype for name, v in model.graph.initializers.items()} == {
        "w": FLOAT,
        "w_fp16": HALF,
    }
    assert "w" in [v.name for v in node_of(model, "Add").inputs]


def test_the_input_model_is_not_changed() -> None:
    model = normalised(parse(WEIGHTS))
    before = ir.to_proto(model).SerializeToString()
    to_low(model, set())
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("keep", [(), ("Softmax",), ("Softmax", "Exp", "Relu"), ("Add", "Neg")])
@pytest.mark.parametrize("text", [SHARED, WEIGHTS])
def test_idempotent(text: str, keep: tuple[str, ...]) -> None:
    once = low(text, *keep)
    names = {node.name for node in once.graph if node.op_type in keep}
    twice = to_low(normalised(once), names)
    assert ir.to_proto(twice).SerializeToString() == ir.to_proto(once).SerializeToString()


def test_moves_between_float32_nodes_stay_with_them() -> None:
    text = """g (float[2, 4] x) => (float[4, 2] y) {
        a = Exp(x)  b = Transpose<perm = [1, 0]>(a)  c = Softmax(b)  y = Relu(c)
    }"""
    model = low(text, "Exp", "Softmax")
    assert dtypes(model, "Transpose") == {FLOAT}
    assert ops(model) == ["Exp", "Transpose", "Softmax", "Cast", "Relu", "Cast"]


def test_moves_before_low_nodes_are_low() -> None:
    text = "g (float[2, 4] x) => (float[4, 2] y) { a = Transpose<perm = [1, 0]>(x)  y = Relu(a) }"
    assert dtypes(low(text), "Transpose") == {HALF}


def test_uint8_images_are_cast_directly() -> None:
    model = low(
        "g (uint8[N, 4] x) => (uint8[N, 4] y) "
        "{ a = Cast<to = 1>(x)  b = Sqrt(a)  c = Round(b)  y = Cast<to = 2>(c) }",
        "Round",
    )
    assert ops(model) == ["Cast", "Sqrt", "Cast", "Round", "Cast"]
    assert node_of(model, "Cast").attributes["to"].as_int() == HALF


def test_uint8_images_read_by_float32_nodes_are_cast_to_float32() -> None:
    model = low(
        "g (uint8[2, 4] x) => (float[4, 2] y) "
        "{ a = Cast<to = 1>(x)  t = Transpose<perm = [1, 0]>(a)  b = Exp(t)  y = Relu(b) }",
        "Exp",
    )
    assert ops(model) == ["Cast", "Transpose", "Exp", "Cast", "Relu", "Cast"]
    assert dtypes(model, "Transpose") == {FLOAT}


def test_a_cast_from_large_integers_goes_through_float32() -> None:
    model = low("g (int64[4] x) => (float[4] y) { a = Cast<to = 1>(x)  y = Sqrt(a) }")
    assert [node.attributes["to"].as_int() for node in model.graph if node.op_type == "Cast"] == [
        FLOAT,
        HALF,
        FLOAT,
    ]


def test_a_cast_up_and_down_is_left_out() -> None:
    text = "g (float16[4] x) => (float[4] y) { a = Cast<to = 1>(x)  b = Relu(a)  y = Exp(b) }"
    model = low(text, "Exp")
    assert node_of(model, "Relu").inputs[0].name == "x"
    assert ops(model) == ["Relu", "Cast", "Exp"]


def test_resize_factors_stay_float32() -> None:
    model = low(
        """g (float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) <float[4] scales = {1, 1, 2, 2}> {
        a = Relu(x)  y = Resize<mode = "nearest">(a, , scales)
    }"""
    )
    assert [v.dtype for v in node_of(model, "Resize").inputs if v is not None] == [HALF, FLOAT]


def test_sizes_computed_in_floats_stay_float32() -> None:
    text = """g (float[N, 4] x) => (float[M] y) {
        s = Shape(x)  f = Cast<to = 1>(s)  h = Constant<value = float {2.0}>()
        t = Mul(f, h)  n = Cast<to = 7>(t)  p = ReduceProd<keepdims = 1>(n)
        a = Relu(x)  e = Expand(a, n)  k = Constant<value = int64[1] {-1}>()  y = Reshape(e, k)
    }"""
    model = normalised(parse(text))
    assert dtypes(to_low(model, set()), "Mul") == {FLOAT}
    assert "sizes" in fixed_nodes(model, HALF)[str(node_of(model, "Mul").name)]


def test_operators_without_a_low_form_stay() -> None:
    text = """g (float a, float b, float c) => (float[K] y) { r = Range(a, b, c)  y = Relu(r) }"""
    model = low(text)
    assert dtypes(model, "Range") == {FLOAT}
    assert dtypes(model, "Relu") == {HALF}


def test_a_fill_is_converted_where_the_type_holds_it() -> None:
    text = """g (int64[1] n) => (float[K] y) {
        f = ConstantOfShape<value = float[1] {%s}>(n)  y = Relu(f)
    }"""
    assert dtypes(low(text % "1.0"), "ConstantOfShape") == {ir.DataType.INT64, HALF}
    assert dtypes(low(text % "100000.0"), "ConstantOfShape") == {ir.DataType.INT64, FLOAT}


def test_layer_norm_statistics_keep_the_type_onnx_gives_them() -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y, float[N, 1] m) <float[4] w = {1, 1, 1, 1}> {
        y, m = LayerNormalization<stash_type = 1>(x, w)
    }"""
    assert signature(low(text))[1:] == [("y", FLOAT), ("m", FLOAT)]


def test_control_flow_stays_float32_and_reads_float32() -> None:
    text = """g (float[4] x, bool c) => (float[4] y) {
        a = Relu(x)
        b = If (c) <
            then_branch = t () => (float[4] p) { p = Neg(a) },
            else_branch = e () => (float[4] q) { q = Abs(a) }
        >
        y = Sqrt(b)
    }"""
    model = low(text)
    assert dtypes(model, "Sqrt") == {HALF}
    assert all(
        v.dtype == FLOAT for n in model.graph.all_nodes() if n.op_type == "Neg" for v in n.inputs
    )
    x = np.array([1, 4, -9, 16], np.float32)
    got = run(model, x=x, c=np.array(False))[0]
    np.testing.assert_array_equal(got, [1, 2, 0, 4])


def test_integer_graphs_are_untouched() -> None:
    text = "g (int64[4] x) => (int64[4] y) { a = Add(x, x)  y = Mul(a, x) }"
    assert ops(low(text)) == ["Add", "Mul"]


def test_constants_of_integers_and_factors_are_not_converted() -> None:
    text = """g (float[N, 8] x) => (float[M, 2] y) {
        s = Constant<value = int64[2] {-1, 2}>()  a = Reshape(x, s)  y = Relu(a)
    }"""
    assert {v.dtype for v in low(text).graph.initializers.values()} == {ir.DataType.INT64}


def test_bfloat16_is_the_same_pass() -> None:
    model = low(SHARED, "Softmax", dtype="bfloat16", opset=22)
    assert dtypes(model, "Relu") == {ir.DataType.BFLOAT16}
    assert signature(model) == [("x", FLOAT), ("y", FLOAT), ("z", FLOAT)]


def test_the_strong_type_check_sees_a_mixed_node() -> None:
    model = low(SHARED, "Softmax")
    node = node_of(model, "Add")
    node.inputs[0].type = ir.TensorType(FLOAT)
    assert type_faults(model)


@pytest.mark.parametrize(("dtype", "finite"), [("float16", False), ("bfloat16", True)])
def test_emulation_rounds_every_value(dtype: str, finite: bool) -> None:
    """onnxruntime alone does not: it gives 300 in float16, too."""
    text = """g (float[4] x) => (float[4] y) <float[1] k = {300}> {
        a = Mul(x, k)  b = Mul(a, k)  y = Div(b, k)
    }"""
    model = normalised(parse(text))
    x = np.full(4, 1.003, np.float32)
    got = run(emulate(to_low(model, set(), dtype=dtype)), x=x)[0]
    assert np.isfinite(got).all() == finite
    assert run(model, x=x)[0][0] == pytest.approx(300.9)
    if finite:
        np.testing.assert_array_equal(got, 300)


def test_emulation_of_a_float32_graph_is_that_graph() -> None:
    model = normalised(parse(SHARED))
    assert ops(emulate(model)) == ops(model)
    x = np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 4)
    for mine, theirs in zip(run(emulate(model), x=x), run(model, x=x), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_emulated_weights_are_the_rounded_ones() -> None:
    model = normalised(parse(WEIGHTS))
    weight(model, "w", [0.1, 0.2, 0.3, 1e-9])
    (value,) = emulate(to_low(model, set())).graph.initializers.values()
    np.testing.assert_array_equal(
        value.const_value.numpy(), np.array([0.1, 0.2, 0.3, 1e-9], np.float16).astype(np.float32)
    )
