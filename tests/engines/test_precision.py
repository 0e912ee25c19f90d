"""Mixed precision: islands, calibration and the search for a fidelity target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pixelrt.bundle import Bundle
from pixelrt.engines.islands import DEFAULT_ISLANDS, FUSED_ATTENTION_ISLANDS
from pixelrt.engines.precision import Converted, Policy, convert
from pixelrt.engines.search import smallest_keep
from pixelrt.errors import FidelityError, UsageError
from pixelrt.geometry import Size
from pixelrt.grid import grid_size, pad_image
from pixelrt.manifest import GraphRole
from tests.engines.passes.graphs import assert_sound, ops, parse, signature, weight
from tests.test_families import CASES

RNG = np.random.default_rng(7)
SAMPLES = [{"x": RNG.random((1, 3, 16, 16), np.float32)} for _ in range(2)]


def conv_net(middle: str) -> ir.Model:
    """Two convolutions (``a`` from ``x``, ``y`` from ``b``) around ``middle``."""
    model = parse(
        f"""g (float[N, 3, H, W] x) => (float[N, 3, H, W] y)
        <float[8, 3, 3, 3] w1 = {{{", ".join(["1"] * 216)}}},
         float[3, 8, 3, 3] w2 = {{{", ".join(["1"] * 216)}}}, float[1] k = {{1}},
         float[1] j = {{1}}> {{
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        {middle}
        y = Conv<pads = [1, 1, 1, 1]>(b, w2)
    }}"""
    )
    rng = np.random.default_rng(3)
    weight(model, "w1", rng.normal(0, 0.2, (8, 3, 3, 3)))
    weight(model, "w2", rng.normal(0, 0.1, (3, 8, 3, 3)))
    return model


def kept(result: Converted) -> dict[str, str]:
    return {k.op: k.reason for k in result.kept}


def test_a_plain_network_converts_whole() -> None:
    result = convert(conv_net("b = Relu(a)"), SAMPLES)
    assert_sound(result.model)
    assert (result.kept, result.fp16_share, result.casts) == ((), 1.0, 2)
    assert min(c.psnr for c in result.fidelity) > 60
    assert "100.0% of multiply-adds, 2 casts" in result.describe()


def test_the_input_model_is_not_changed() -> None:
    model = conv_net("b = Relu(a)")
    before = ir.to_proto(model).SerializeToString()
    convert(model, SAMPLES)
    assert ir.to_proto(model).SerializeToString() == before


def test_a_planted_overflow_is_found_and_fenced() -> None:
    model = conv_net("m = Mul(a, k)  big = Mul(m, k)  r = Relu(big)  p = Mul(r, j)  b = Mul(p, j)")
    weight(model, "k", [1000.0])
    weight(model, "j", [0.001])
    result = convert(model, SAMPLES)
    assert_sound(result.model)
    assert all(not c.non_finite for c in result.fidelity)
    assert min(c.psnr for c in result.fidelity) >= 60
    assert result.fp16_share == 1.0
    assert [k.op for k in result.kept] == ["Mul", "Relu", "Mul"]
    assert result.kept[0].reason.startswith("range: big reaches ")
    assert result.kept[0].reason.endswith("e+06, float16 ends at 6.55e+04")
    assert "big reaches" in result.describe()


def test_bfloat16_has_the_range_and_not_the_precision() -> None:
    model = conv_net("m = Mul(a, k)  big = Mul(m, k)  r = Relu(big)  p = Mul(r, j)  b = Mul(p, j)")
    weight(model, "k", [1000.0])
    weight(model, "j", [0.001])
    result = convert(model, SAMPLES, Policy("bfloat16", target_db=40))
    assert_sound(result.model, loads=False)
    assert result.kept == ()
    assert result.fp16_share == 1.0
    assert 40 <= min(c.psnr for c in result.fidelity) < 60
    assert result.model.graph.opset_imports[""] == 22, "where Conv takes bfloat16"


def test_a_planted_overflow_inside_a_convolution() -> None:
    model = conv_net("b = Mul(a, j)")
    old = model.graph.initializers["w1"].const_value.numpy()
    weight(model, "w1", old * 1e5)
    weight(model, "j", [1e-5])
    result = convert(model, SAMPLES)
    assert [k.op for k in result.kept] == ["Conv", "Mul"]
    assert result.kept[0].reason.startswith("range: ")
    assert 0.4 < result.fp16_share < 0.6
    assert min(c.psnr for c in result.fidelity) >= 60


def test_a_weight_below_the_range_is_fenced() -> None:
    model = conv_net("s = Mul(a, k)  b = Div(s, j)")
    weight(model, "k", [1e-9])
    weight(model, "j", [1e-9])
    result = convert(model, SAMPLES)
    assert [k.op for k in result.kept] == ["Mul", "Div"]
    assert "k in float16 has a relative error of 1.0e+00" in result.kept[0].reason


def test_the_target_forces_islands_that_ranges_do_not_show() -> None:
    """(a + 100) - 100: every value fits float16, yet the result has a step of 0.06."""
    model = conv_net("c = Add(a, k)  d = Sub(c, k)  b = Relu(d)")
    weight(model, "k", [100.0])
    loose = convert(model, SAMPLES, Policy(target_db=20))
    assert loose.kept == ()
    assert min(c.psnr for c in loose.fidelity) < 60
    result = convert(model, SAMPLES)
    assert [k.op for k in result.kept] == ["Add", "Sub"]
    assert all("fidelity: " in k.reason and "target 60 dB" in k.reason for k in result.kept)
    assert min(c.psnr for c in result.fidelity) >= 60
    assert result.fp16_share == 1.0
    assert_sound(result.model)


def test_an_unreachable_target_keeps_everything() -> None:
    result = convert(conv_net("b = Relu(a)"), SAMPLES, Policy(target_db=250))
    assert result.fp16_share == 0
    assert "Cast" not in ops(result.model)


def test_inputs_and_outputs_alone_may_miss_the_target() -> None:
    with pytest.raises(FidelityError, match="misses its target"):
        convert(conv_net("b = Relu(a)"), SAMPLES, Policy(target_db=120, io="low"))


def test_io_low() -> None:
    result = convert(conv_net("b = Relu(a)"), SAMPLES, Policy(io="low"))
    half = ir.DataType.FLOAT16
    assert signature(result.model) == [("x", half), ("y", half)]
    assert result.casts == 0


def test_the_scaling_of_the_input_stays_and_later_scaling_does_not() -> None:
    model = parse(
        """g (uint8[N, H, W, 3] x) => (float[N, 3, H, W] y)
        <float[1] p = {255}, float[1] k = {2}, float[1] j = {1}> {
        f = Cast<to = 1>(x)  t = Transpose<perm = [0, 3, 1, 2]>(f)  u = Div(t, p)
        s = Mul(u, k)  d = Sub(s, j)  r = Relu(d)  m = Mul(r, k)  y = Add(m, d)
    }"""
    )
    pixels = RNG.integers(0, 256, (1, 8, 8, 3), np.uint8)
    result = convert(model, [{"x": pixels}])
    assert [k.op for k in result.kept] == ["Div", "Mul", "Sub"]
    assert ops(result.model)[:6] == ["Cast", "Transpose", "Div", "Mul", "Sub", "Cast"]
    assert ops(result.model)[6:] == ["Relu", "Mul", "Add", "Cast"]


def test_statistics_written_out_stay_up_to_their_use() -> None:
    model = conv_net(
        """axes = Constant<value = int64[2] {2, 3}>()
        m = ReduceMean<keepdims = 1>(a, axes)  d = Sub(a, m)  q = Mul(d, d)
        v = ReduceMean<keepdims = 1>(q, axes)  e = Add(v, k)  s = Sqrt(e)  n = Div(d, s)
        b = Relu(n)"""
    )
    weight(model, "k", [1e-5])
    result = convert(model, SAMPLES)
    assert [k.op for k in result.kept] == [
        "ReduceMean",
        "Sub",
        "Mul",
        "ReduceMean",
        "Add",
        "Sqrt",
        "Div",
    ]
    assert result.fp16_share == 1.0


def test_angles_of_sines_stay_and_what_uses_them_does_not() -> None:
    """A timestep of 981 times a frequency, as diffusion models embed it."""
    model = parse(
        """g (float[N] t) => (float[N, 8] y)
        <float[1, 8] f = {1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3}, float[16, 8] w = {0.1},
         int64[1] one = {1}> {
        column = Unsqueeze(t, one)
        angle = Mul(column, f)
        s = Sin(angle)
        c = Cos(angle)
        both = Concat<axis = 1>(s, c)
        y = MatMul(both, w)
    }""".replace("{0.1}", "{" + ", ".join(["0.1"] * 128) + "}")
    )
    weight(model, "w", RNG.normal(0, 0.3, (16, 8)))
    samples = [{"t": np.array([981.0, 41.3], np.float32)}]
    result = convert(model, samples, Policy(target_db=40))
    assert sorted(k.op for k in result.kept) == ["Cos", "Mul", "Sin"]
    assert result.fp16_share == 1.0
    worst = min(c.psnr for c in result.fidelity)
    islands = tuple(one for one in DEFAULT_ISLANDS if one.name != "angle")
    without = convert(model, samples, Policy(target_db=0, islands=islands))
    assert min(c.psnr for c in without.fidelity) < worst - 20


def test_tensors_without_a_scale_are_judged_by_their_largest_magnitude() -> None:
    """The same network, its output at 1e3 or 1e-3: as an image it is right or wrong, as a tensor
    it is equally right."""
    found = {}
    for scale in (1e3, 1e-3):
        model = conv_net("b = Relu(a)")
        weight(model, "w2", RNG.normal(0, scale, (3, 8, 3, 3)))
        for relative in (True, False):
            policy = Policy(target_db=-100, relative=relative)
            fidelity = convert(model, SAMPLES, policy).fidelity
            found[scale, relative] = min(c.psnr for c in fidelity)
    assert abs(found[1e3, True] - found[1e-3, True]) < 15
    assert found[1e-3, False] - found[1e3, False] > 90


def test_scores_stay_with_their_softmax_unless_asked() -> None:
    model = conv_net(
        """t = Transpose<perm = [0, 1, 3, 2]>(a)  p = MatMul(a, t)  s = Mul(p, k)
        m = Softmax(s)  b = MatMul(m, a)"""
    )
    weight(model, "k", [4.0])
    assert [k.op for k in convert(model, SAMPLES).kept] == ["Mul", "Softmax"]
    fused = convert(model, SAMPLES, Policy(islands=FUSED_ATTENTION_ISLANDS, target_db=50))
    assert fused.kept == ()
    assert fused.fp16_share == 1.0


def test_twice_is_once() -> None:
    model = conv_net("s = Softmax(a)  b = Mul(s, k)")
    once = convert(model, SAMPLES).model
    twice = convert(once, SAMPLES).model
    assert ir.to_proto(twice).SerializeToString() == ir.to_proto(once).SerializeToString()


def test_twice_is_once_with_low_inputs_and_outputs() -> None:
    policy = Policy(io="low")
    once = convert(conv_net("b = Softmax(a)"), SAMPLES, policy)
    halves = [{"x": sample["x"].astype(np.float16)} for sample in SAMPLES]
    twice = convert(once.model, halves, policy)
    assert (
        ir.to_proto(twice.model).SerializeToString() == ir.to_proto(once.model).SerializeToString()
    )
    assert twice.kept == once.kept


def test_a_weight_may_be_an_output() -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y, float[4] w) <float[4] w = {1, 2, 3, 4}> {
        y = Mul(x, w)
    }"""
    result = convert(parse(text), [{"x": np.ones((1, 4), np.float32)}], Policy(islands=()))
    assert_sound(result.model)
    assert [v.name for v in result.model.graph.outputs] == ["y", "w"]


def test_no_samples() -> None:
    with pytest.raises(UsageError, match="at least one sample"):
        convert(conv_net("b = Relu(a)"), [])


def test_a_graph_that_is_broken_in_float32() -> None:
    model = conv_net("n = Sub(a, k)  l = Sqrt(n)  b = Relu(l)")
    weight(model, "k", [1e6])
    with pytest.raises(FidelityError, match="float32 graph gives NaN"):
        convert(model, SAMPLES)


def test_search_finds_the_smallest_set() -> None:
    """Errors add up; three nodes of forty are bad, two of them enough to keep."""
    nodes = [f"n{i}" for i in range(40)]
    noise = dict.fromkeys(nodes, 1e-9) | {"n7": 1e-3, "n8": 1e-6, "n30": 1e-4}
    calls = []

    def error(keep: frozenset[str]) -> float:
        calls.append(keep)
        return sum(value for name, value in noise.items() if name not in keep)

    found = smallest_keep(nodes, {}, error, 2e-6, 64)
    assert set(found) == {"n7", "n30"}
    assert found["n7"] > found["n30"] > 0
    assert len(calls) < 64


def test_search_stops_at_its_budget_and_still_meets_the_limit() -> None:
    nodes = [f"n{i}" for i in range(40)]
    bad = {"n3", "n17"}

    def error(keep: frozenset[str]) -> float:
        return 0.0 if bad <= keep else float("inf")

    found = smallest_keep(nodes, {}, error, 1e-6, 2)
    assert bad <= set(found)
    assert set(smallest_keep(nodes, {}, error, 1e-6, 64)) == bad


def photographs(bundle: Bundle, role: GraphRole) -> list[dict[str, Any]]:
    """The bundle's reference photographs as the graph takes them."""
    spec, graph = bundle.manifest.image, bundle.component.graph(role)
    samples = []
    for reference in bundle.manifest.references:
        if reference.kind == "photo":
            pixels, _ = bundle.reference(reference)
            size = grid_size(Size(*pixels.shape[1:3]), spec)
            pixels = np.ascontiguousarray(pad_image(pixels, size, spec.pad_mode))
            values = (pixels.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)
            fed = pixels if role == "image" else np.ascontiguousarray(values)
            samples.append({graph.inputs[0].name: fed})
    return samples


FAMILIES = (
    "swin2sr-pixelshuffle-x2",
    "swin2sr-direct-x2",
    "swin2sr-jpeg",
    "pix2pix-chapter",
    "pix2pix-unet-128-instance",
    "pix2pix-unet-128-image-statistics",
    "cyclegan-resnet-9",
    "cyclegan-resnet-6-batch",
    "srgan-x4",
)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["core", "image"])
@pytest.mark.parametrize("case", FAMILIES)
def test_families(case: str, role: GraphRole, make_bundle: Callable[..., Bundle]) -> None:
    """At least 60 dB on every photograph, 90 % of the multiply-adds in float16."""
    bundle = make_bundle(*CASES[case])
    model = ir.load(bundle.path(bundle.component.graph(role).file))
    result = convert(model, photographs(bundle, role))
    assert_sound(result.model)
    assert signature(result.model) == signature(model)
    assert min(c.psnr for c in result.fidelity) >= 60, result.describe()
    assert result.fp16_share >= 0.9, result.describe()


def test_the_shipped_bundle() -> None:
    """Both graphs of the demo network, whose input and output are images in one of them."""
    from importlib import resources
    from pathlib import Path

    from pixelrt.bundle import open_bundle

    bundle = open_bundle(Path(str(resources.files("pixelrt") / "data" / "demo.pixelrt")))
    for role, head, tail in (
        ("core", ["Mul", "Add"], []),
        ("image", ["Div", "Mul", "Add"], ["Clip", "Mul", "Round"]),
    ):
        model = ir.load(bundle.path(bundle.component.graph(role).file))
        result = convert(model, photographs(bundle, role))
        assert_sound(result.model)
        assert [k.op for k in result.kept] == head + tail
        reasons = {k.reason.split(":")[0] for k in result.kept}
        assert reasons == {"input scaling", "image levels"} if tail else {"input scaling"}
        assert result.casts == (4 if role == "image" else 2), "u8 to f32 to f16 to f32 to u8"
        assert result.fp16_share == 1.0
        assert signature(result.model) == signature(model)
        assert min(c.psnr for c in result.fidelity) >= 60
