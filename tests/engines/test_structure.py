"""What of a graph a plan is bound to, and what may differ."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
import torch

from pixelrt.engines.passes.clean import clean
from pixelrt.engines.passes.fold_constants import fold_constants
from pixelrt.engines.structure import (
    Structure,
    decode_structure,
    encode_structure,
    structure_of,
)
from pixelrt.errors import InputError
from pixelrt.export.weights import store

TEXT = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N,2,H,W] x) => (float[N,2,A,B] y)
<float[2,2,1,1] w = {1, 2, 3, 4}, float[2] b = {5, 6}, float[4] scales = {1, 1, 2, 2},
 int64[4] pads = {0, 0, 1, 1}, float two = {2}>
{
   grown = Resize<mode="nearest">(x, , scales)
   wide = Conv<strides=[1,1]>(grown, w, b)
   y = Pow(wide, two)
}"""


def of(text: str = TEXT, *changes: tuple[str, str]) -> Structure:
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return structure_of(ir.from_onnx_text(text))


def test_values_of_weights_may_differ() -> None:
    old, new = of(), of(TEXT, ("{1, 2, 3, 4}", "{1, 2, 3, 5}"))
    old.check(new, "both")
    assert old.changed(new) == ["w"]
    assert old.changed(of()) == []
    assert sorted(old.weights) == ["b", "w"]


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ("strides=[1,1]", "strides=[2,2]", "what gives wide:"),
        ("Pow(wide", "Div(wide", "what gives y:"),
        ("{0, 0, 1, 1}", "{0, 0, 1, 2}", "constant pads:"),
        ("{1, 1, 2, 2}", "{1, 1, 3, 3}", "constant scales:"),
        ("two = {2}", "two = {3}", "constant two:"),
        ("float[2] b = {5, 6}", "float16[2] b = {5, 6}", "weights b: FLOAT16"),
        ("float[2] b = {5, 6}", "float[1] b = {5}", "weights b: FLOAT[1]"),
        ("float[N,2,H,W] x", "float[1,2,H,W] x", "inputs:"),
        ('"" : 18', '"" : 19', "operator sets:"),
        ("(grown, w, b)", "(grown, w)", "what gives wide:"),
    ],
)
def test_nothing_else_may(before: str, after: str, part: str) -> None:
    with pytest.raises(InputError, match="A and B differ in more than their weights") as caught:
        of().check(of(TEXT, (before, after)), "A and B")
    assert caught.value.found.startswith(part)


def test_a_node_more_or_less_is_named() -> None:
    longer = of(TEXT, ("y = Pow(wide, two)", "z = Pow(wide, two)\n y = Neg(z)"))
    for old, new, found in ((of(), longer, "Pow"), (longer, of(), "Pow")):
        with pytest.raises(InputError) as caught:
            old.check(new, "both")
        assert found in caught.value.found + caught.value.expected
        assert "parts more" in caught.value.found


def test_tensors_and_graphs_in_attributes_count() -> None:
    text = TEXT.replace(
        "y = Pow(wide, two)",
        "s = Shape(wide) k = ConstantOfShape<value = float[1] {1}>(s) y = Add(wide, k)",
    )
    with pytest.raises(InputError, match="differ"):
        of(text).check(of(text, ("float[1] {1}", "float[1] {2}")), "both")
    of(text).check(of(text), "both")


def test_sizes_that_are_computed_stay() -> None:
    """A factor between a shape and a size is no weight, whatever its type."""
    text = TEXT.replace(
        'grown = Resize<mode="nearest">(x, , scales)',
        "s = Shape(x) f = Cast<to=1>(s) h = Mul(f, scales) i = Cast<to=7>(h) "
        'grown = Resize<mode="nearest">(x, , , i)',
    )
    with pytest.raises(InputError) as caught:
        of(text).check(of(text, ("{1, 1, 2, 2}", "{1, 1, 3, 3}")), "both")
    assert caught.value.found.startswith("constant scales:")


def test_what_tensorrt_folds_is_not_asked_for_by_name() -> None:
    text = TEXT.replace("y = Pow(wide, two)", "y = BatchNormalization(wide, b, b, b, b)").replace(
        "(grown, w, b)", "(grown, w)"
    )
    old, new = of(text), of(text, ("{5, 6}", "{7, 8}"))
    old.check(new, "both")
    assert new.folded == ["b"]
    assert old.changed(new) == []


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"parts": {}, "weights": [], "folded": []}'])
def test_rubbish(raw: Any) -> None:
    with pytest.raises(InputError, match=r"plan in P .* is not described"):
        decode_structure(raw, "P")
    assert decode_structure(encode_structure(of()), "P") == of()


def test_weights_in_half_precision_make_the_same_graph() -> None:
    """A checkpoint in float16 is stored so, and in float32 with a LoRA merged in."""
    values = ", ".join(str(number / 1024) for number in range(8 * 8 * 9))
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float[N,8,H,W] x) => (float[N,8,H,W] y) <float[8,8,3,3] w = {{{values}}}>
    {{ y = Conv<pads=[1,1,1,1]>(x, w) }}"""
    plain, half = ir.from_onnx_text(text), ir.from_onnx_text(text)
    store(half, torch.float16)
    assert half.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    made = [structure_of(clean(fold_constants(model))) for model in (plain, half)]
    assert made[0] == made[1]
    assert list(made[0].weights) == ["w"]
