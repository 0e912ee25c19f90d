"""Ranges of named axes: read, printed, chosen; and what a pipeline's settings make of them."""

from __future__ import annotations

import pytest

from pixelrt.errors import UsageError
from pixelrt.plans.axis_defaults import default_range
from pixelrt.plans.axis_profiles import (
    AxisProfile,
    axis_names,
    choose_axes,
    lengths_of,
    parse_axes,
    parse_axis,
)
from pixelrt.plans.profiles import AxisRange, tensor_shape
from pixelrt.spec import TensorSpec

LATENTS = TensorSpec("latents", "float32", ("B", 4, "h", "w"))
PIXELS = TensorSpec("pixels", "float32", ("B", 3, "8*h", "8*w"))
SCALE = TensorSpec("scale", "float32", (1,))
TEXT = "B=1,2,8 h=8,64,96 w=8,64,96"


def test_a_profile_reads_what_it_prints() -> None:
    profile = parse_axes(TEXT)
    assert str(profile) == TEXT
    assert profile.ranges[1] == ("h", AxisRange(8, 64, 96))
    assert str(parse_axes("T=77,77,77 B=2")) == "T=77 B=2"
    assert not profile.static
    assert str(profile.as_static()) == "B=2 h=64 w=64"
    assert profile.as_static().static


@pytest.mark.parametrize("text", ["h", "h=", "h=8,64", "8=h", "h=8,64,96,128", "h=0", "h=9,8,10"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_axis(text)


def test_too_long_and_twice() -> None:
    with pytest.raises(UsageError, match="at most 16384"):
        parse_axis("h=8,64,20000")
    with pytest.raises(UsageError, match="given twice"):
        parse_axes("h=8 h=9")


def test_multiples_follow_their_axis() -> None:
    least, best, most = parse_axes(TEXT).shapes
    assert tensor_shape(PIXELS, least) == (1, 3, 64, 64)
    assert tensor_shape(PIXELS, best) == (2, 3, 512, 512)
    assert tensor_shape(LATENTS, most) == (8, 4, 96, 96)
    assert tensor_shape(SCALE, most) == (1,)
    assert axis_names([PIXELS, SCALE, LATENTS]) == ("B", "h", "w")


@pytest.mark.parametrize("axis", ["h*8", "8*", "h+w", "*h"])
def test_axes_of_another_form(axis: str) -> None:
    with pytest.raises(UsageError, match="cannot be told"):
        tensor_shape(TensorSpec("x", "float32", (axis,)), parse_axes("h=8").shapes[0])


def test_lengths_of_inputs() -> None:
    shapes = {"latents": (2, 4, 8, 12), "pixels": (2, 3, 64, 96), "scale": (1,)}
    tensors = (LATENTS, PIXELS, SCALE)
    assert lengths_of(tensors, shapes) == {"B": 2, "h": 8, "w": 12}
    for wrong, said in (
        ({"latents": (2, 4, 8)}, "not latents"),
        ({"latents": (2, 3, 8, 12)}, "not latents"),
        ({"pixels": (2, 3, 64, 92)}, "not pixels"),
        ({"pixels": (2, 3, 64, 88)}, "the others say w = 12"),
        ({"scale": (2,)}, "not scale"),
    ):
        with pytest.raises(UsageError, match=said):
            lengths_of(tensors, {**shapes, **wrong})
    with pytest.raises(UsageError, match="found: nothing"):
        lengths_of(tensors, {"latents": (2, 4, 8, 12)})


def test_the_profile_with_the_closest_optimum_is_chosen() -> None:
    profiles = (parse_axes("B=1,2,8 h=8,64,96"), parse_axes("B=1,1,4 h=8,16,32"))
    assert choose_axes(profiles, {"B": 1, "h": 16}) == 1
    assert choose_axes(profiles, {"B": 2, "h": 60}) == 0
    assert choose_axes(profiles, {"B": 8, "h": 16}) == 0
    with pytest.raises(UsageError, match="B=9 h=16 is outside every profile"):
        choose_axes(profiles, {"B": 9, "h": 16})
    assert profiles[0].nearest({"B": 9, "h": 4}) == {"B": 8, "h": 8}


SD15 = {
    "sample_size": 64,
    "latent_scale": 8,
    "minimum": 72,
    "text": [{"tokenizer": {"model_max_length": 77}}],
}


@pytest.mark.parametrize(
    ("network", "axis", "settings", "expected"),
    [
        ("unet", "B", SD15, "1,2,8"),
        ("unet", "h", SD15, "9,64,96"),
        ("unet", "T", SD15, "77,77,231"),
        ("vae_decoder", "B", SD15, "1,1,2"),
        ("vae_decoder", "w", SD15, "9,64,96"),
        ("mapping", "N", {"resolution": 1024}, "1,1,8"),
        ("unet", "q", SD15, "None"),
        ("unet", "h", {}, "None"),
    ],
)
def test_defaults(network: str, axis: str, settings: dict[str, object], expected: str) -> None:
    assert str(default_range(network, axis, settings)) == expected


def test_sides_in_blocks_of_latents() -> None:
    """A UNet whose latents are ``8*h``, and text settings of one encoder."""
    assert str(default_range("unet", "h", SD15, 8)) == "2,8,12"
    text = {"text": {"tokenizer": {"model_max_length": 77}}}
    assert str(default_range("unet", "T", text)) == "77,77,231"


def test_profiles_are_compared_by_value() -> None:
    assert AxisProfile((("B", AxisRange(1, 2, 8)),)) == parse_axes("B=1,2,8")
