"""Every family and variant the whole way: weights → bundle → photographs of any size.

Networks are small in width and depth and complete in kind; what is particular to the full size
(names, shapes, detection) is tested family by family under ``tests/export``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from pixelrt.bundle import Bundle
from pixelrt.export.recipe import Network
from pixelrt.export.registry import RECIPES, get
from pixelrt.fidelity import compare
from pixelrt.geometry import Size
from pixelrt.grid import grid_size, library_size, pad_image
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.pipelines.planes import luma
from pixelrt.runtime.planning import RunOptions
from tests.conftest import SMALL_SRGAN, resized

SIZES = ((50, 37), (256, 256), (532, 432))
SIZES_X8 = (*SIZES[:2], (266, 216))
"""Four times the pixels of x4 come out, minutes of arithmetic at the largest size."""
MANY_PIXELS = 2_000_000
"""Above this, the uint8 graph is not run as well: it would double minutes of arithmetic."""


def swin(upsampler: str, upscale: int, **more: Any) -> tuple[str, dict[str, Any]]:
    small = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2]}
    return "swin2sr", {**small, "upsampler": upsampler, "upscale": upscale, **more}


def unet(**more: Any) -> tuple[str, dict[str, Any]]:
    return "pix2pix", {"variant": "unet", "width": 8, **more}


def resnet(**more: Any) -> tuple[str, dict[str, Any]]:
    return "cyclegan", {"variant": "resnet", "width": 8, **more}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "swin2sr-pixelshuffle-x2": swin("pixelshuffle", 2),
    "swin2sr-pixelshuffle-x3": swin("pixelshuffle", 3),
    "swin2sr-pixelshuffle-x4": swin("pixelshuffle", 4),
    "swin2sr-pixelshuffle-x8": swin("pixelshuffle", 8),
    "swin2sr-direct-x2": swin("pixelshuffledirect", 2),
    "swin2sr-direct-x3": swin("pixelshuffledirect", 3),
    "swin2sr-direct-x4": swin("pixelshuffledirect", 4),
    "swin2sr-nearest-x4": swin("nearest+conv", 4, resi_connection="3conv"),
    "swin2sr-aux-x4": swin("pixelshuffle_aux", 4),
    "swin2sr-aux-x4-authors": swin("pixelshuffle_aux", 4, maths="authors"),
    "swin2sr-denoise": swin("", 1),
    "swin2sr-jpeg": swin("", 1, window_size=7, img_range=255.0, maths="authors", image_size=126),
    "swin2sr-jpeg-grey": swin(
        "", 1, window_size=7, img_range=255.0, maths="authors", image_size=126, num_channels=1
    ),
    "pix2pix-chapter": ("pix2pix", {"variant": "chapter", "width": 8}),
    "pix2pix-unet-256": unet(downs=8),
    "pix2pix-unet-128-instance": unet(downs=7, norm="instance"),
    "pix2pix-unet-128-image-statistics": unet(downs=7, norm_statistics="image"),
    "cyclegan-chapter": ("cyclegan", {"variant": "chapter", "width": 8, "blocks": 3}),
    "cyclegan-resnet-9": resnet(blocks=9),
    "cyclegan-resnet-6-batch": resnet(blocks=6, norm="batch", dropout=True),
    "srgan-x2": ("srgan", SMALL_SRGAN),
    "srgan-x4": ("srgan", {**SMALL_SRGAN, "scale": 4, "large_kernel": 9}),
    "srgan-x8": ("srgan", {**SMALL_SRGAN, "scale": 8}),
}


def test_every_family_has_a_case() -> None:
    assert {family for family, _ in CASES.values()} == {recipe.name for recipe in RECIPES}


def expected(network: Network, pixels: Any) -> Any:
    """PyTorch in fp32 on the padded photograph, cropped: (1, C, H', W') float32."""
    spec = network.image
    size = Size(*pixels.shape[:2])
    padded = pad_image(pixels[None], grid_size(size, spec), spec.pad_mode)
    values = torch.from_numpy(padded.astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        result = network.reference(values.contiguous()).numpy()
    high = size.scaled(spec.scale)
    return result[:, :, : high.height, : high.width]


def planes(pixels: Any, channels: int) -> Any:
    return pixels if channels == 3 else luma(pixels)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_whole_way(case: str, make_bundle: Callable[..., Bundle], photo: Any) -> None:
    """Exactly scale x size at three sizes, and at least 90 dB against PyTorch."""
    family, config = CASES[case]
    network = get(family).random(config, 0)
    bundle = make_bundle(family, config)
    spec = bundle.manifest.image
    with ImageModel(bundle, precision="float32") as model:
        for width, height in SIZES_X8 if spec.scale == 8 else SIZES:
            pixels = planes(resized(photo, width, height), spec.channels_in)
            want = expected(network, pixels)
            assert want.shape[2:] == (height * spec.scale, width * spec.scale)
            values = (pixels.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None]
            got = model.run_core(np.ascontiguousarray(values))
            result = compare(want, got)
            assert result.psnr >= 90, f"{case} {width}x{height}: {result}"
            if height * width * spec.scale**2 < MANY_PIXELS:
                levels = np.rint(np.clip(want[0], 0, 1).transpose(1, 2, 0) * 255)
                assert np.abs(levels - model(pixels)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_precision_that_auto_takes(
    case: str, make_bundle: Callable[..., Bundle], photo: Any
) -> None:
    """It held 60 dB on the bundle's photographs; another one is near that, and has no spots."""
    family, config = CASES[case]
    bundle = make_bundle(family, config)
    pixels = planes(resized(photo, 128, 128), bundle.manifest.image.channels_in)
    want = expected(get(family).random(config, 0), pixels)
    values = (pixels.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None].copy()
    with ImageModel(bundle) as model:
        result = compare(want, model.run_core(values))
        assert result.psnr >= 56, f"{case} {model.session('core').info}: {result}"
        assert result.max_abs <= 0.1


TILED = {
    "srgan-x2": ("srgan", SMALL_SRGAN, 50),
    "srgan-x4": ("srgan", {**SMALL_SRGAN, "scale": 4, "large_kernel": 9}, 60),
    "swin2sr-1x2": (*swin("pixelshuffledirect", 2, depths=[2], num_heads=[2]), 64),
    "swin2sr-2x2": (*swin("pixelshuffle", 2), 96),
    "swin2sr-2x4": (*swin("pixelshuffle", 2, depths=[4, 4]), 136),
    "swin2sr-jpeg": (*CASES["swin2sr-jpeg"], 84),
    "cyclegan-batch": ("cyclegan", resnet(blocks=2, norm="batch")[1], 96),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TILED)
def test_tiled_equals_untiled(case: str, make_bundle: Callable[..., Bundle], photo: Any) -> None:
    """At least 3x3 tiles: 1e-5 in the float graph, one level in one pixel of 10,000."""
    family, config, tile = TILED[case]
    check_tiles(make_bundle(family, config), tile, photo)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["swin2sr-2x2", "swin2sr-jpeg"])
def test_variants_tile_like_the_plain_graphs(
    case: str, make_bundle: Callable[..., Bundle], photo: Any
) -> None:
    family, config, tile = TILED[case]
    bundle = make_bundle(family, config)
    (variant,) = bundle.component.variants
    alone = msgspec.structs.replace(bundle.component, graphs=variant.graphs, variants=[])
    manifest = msgspec.structs.replace(bundle.manifest, components=[alone])
    check_tiles(Bundle(bundle.root, manifest, bundle.sha256), tile, photo)


def check_tiles(bundle: Bundle, tile: int, photo: Any) -> None:
    pixels = resized(photo, 301, 270)
    values = (pixels.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None].copy()
    with ImageModel(bundle, precision="float32") as model:
        plan = model.plan(270, 301, tile=tile)
        assert len(plan.rows) >= 3, str(plan)
        assert len(plan.columns) >= 3, str(plan)
        whole = model.run_core(values, RunOptions(tile="off"))
        tiled = model.run_core(values, RunOptions(tile=tile))
        assert np.abs(whole - tiled).max() <= 1e-5, str(plan)
        difference = np.abs(model(pixels, tile="off").astype(int) - model(pixels, tile=tile))
    assert difference.max() <= 1
    assert np.count_nonzero(difference.any(axis=2)) <= difference[..., 0].size / 10_000


@pytest.mark.slow
def test_a_smaller_halo_shows(make_bundle: Callable[..., Bundle], photo: Any) -> None:
    """The exact halo is needed: with less, the float result differs by more than rounding."""
    bundle = make_bundle(*swin("pixelshuffle", 2))
    field = bundle.manifest.receptive_field
    assert field.halo is not None
    values = (photo[:200, :200].astype(np.float32) / 255).transpose(2, 0, 1)[None].copy()
    with ImageModel(bundle, precision="float32") as model:
        whole = model.run_core(values, RunOptions(tile="off"))
        rough = model.run_core(values, RunOptions(tile=64, halo=8))
        measured = compare(whole, rough)
        assert measured.max_abs > 1e-4
        sixty = model.run_core(values, RunOptions(tile=96, halo="60dB"))
        assert compare(whole, sixty).psnr >= 60


@pytest.mark.slow
def test_library_padding_is_that_of_the_processor(
    make_bundle: Callable[..., Bundle], photo: Any
) -> None:
    """Bit for bit what transformers' processor feeds, and its result once cropped."""
    from transformers.models.swin2sr.image_processing_pil_swin2sr import Swin2SRImageProcessorPil

    family, config = CASES["swin2sr-direct-x2"]
    network, bundle = get(family).random(config, 0), make_bundle(family, config)
    processor = Swin2SRImageProcessorPil()
    for width, height in ((50, 37), (64, 48)):
        pixels = resized(photo, width, height)
        fed = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
        padded = pad_image(
            pixels[None], library_size(Size(height, width), bundle.manifest.image), "symmetric"
        )
        ours = (padded.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(fed, ours)
        with torch.inference_mode():
            want = network.reference(torch.from_numpy(fed)).numpy()
        values = (pixels.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None].copy()
        with ImageModel(bundle, precision="float32") as model:
            got = model.run_core(values, RunOptions(pad="library"))
            levels = model(pixels, pad="library")
        want = want[:, :, : 2 * height, : 2 * width]
        assert compare(want, got).max_abs <= 5e-5
        rounded = np.rint(np.clip(want[0], 0, 1).transpose(1, 2, 0) * 255)
        assert np.abs(rounded - levels).max() <= 1
