"""How close a measured output is to the float32 route: plain onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pixelrt.bundle import Bundle
from pixelrt.errors import PixelrtError
from pixelrt.fidelity import compare
from pixelrt.geometry import Region, Size
from pixelrt.manifest import Manifest
from pixelrt.runtime.backends.onnxruntime import OnnxRuntimeCpu
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.planning import RunOptions

Pixels = NDArray[np.uint8]
Route = Callable[[Pixels], Pixels]
"""(H, W, C) uint8 to (scale*H, scale*W, C') uint8."""

LIMIT_PIXELS = 512 * 512
ROUTE_NAME = "onnxruntime CPU, float32, the graph as exported"


@dataclass(frozen=True)
class Compared:
    """``region`` of the output was compared with ``expected``; ``note`` says how much.

    ``psnr`` of 8-bit levels with peak 255, ``None`` where nothing could be compared.
    """

    psnr: float | None
    max_levels: int | None
    region: Region | None
    expected: Pixels | None
    note: str

    @property
    def pixels(self) -> int:
        return self.region.size.pixels if self.region else 0


def open_reference(bundle: Bundle) -> ImageModel:
    """The float32 route of a bundle; verified against PyTorch's samples like any other."""
    route = OnnxRuntimeCpu()
    return ImageModel(bundle, backend=route.name, precision="float32", backends=(route,))


def reference_route(model: ImageModel, pad: Literal["grid", "library"] = "grid") -> Route:
    """Exact tiles where the network allows them, the whole image at once where not; ``pad``
    as in ``RunOptions``."""
    local = model.manifest.receptive_field.halo is not None
    options = RunOptions(tile="auto" if local else "off", pad=pad)
    return lambda pixels: model.run_array(pixels, options)


def compare_output(
    manifest: Manifest,
    image: Pixels,
    output: Pixels,
    route: Route,
    limit: int = LIMIT_PIXELS,
) -> Compared:
    """Hold ``output`` of ``image`` against ``route``: the whole of it up to ``limit`` input
    pixels, beyond that the middle, with the exact halo around it."""
    size = Size(*image.shape[:2])
    read, core = compared_region(manifest, size, limit)
    try:
        expected = route(np.ascontiguousarray(image[read.slices]))
    except PixelrtError as exc:
        return Compared(None, None, None, None, f"nothing: the reference failed: {exc}")
    scale = manifest.image.scale
    inner = core.relative_to(read).scaled(scale)
    region = core.scaled(scale)
    want, got = expected[inner.slices], output[region.slices]
    found = compare(want, got, peak=255.0)
    whole = core.size == size
    note = "the whole output" if whole else f"the middle {region.size} of the output"
    return Compared(found.psnr, round(found.max_abs), region, want, note)


def compared_region(manifest: Manifest, size: Size, limit: int) -> tuple[Region, Region]:
    """What the reference reads, and the part of it that equals the whole image's result."""
    whole = Region(0, 0, size.height, size.width)
    halo = manifest.receptive_field.halo
    if halo is None or size.pixels <= limit:
        return whole, whole
    grid = max(manifest.image.multiple, manifest.receptive_field.alignment)
    side = max(int(limit**0.5) // grid * grid, 2 * halo + 2 * grid)
    rows = _middle(size.height, side, halo, grid)
    columns = _middle(size.width, side, halo, grid)
    return tuple(Region(r[0], c[0], r[1], c[1]) for r, c in zip(rows, columns, strict=True))  # type: ignore[return-value]


def _middle(
    length: int, side: int, halo: int, grid: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What to read of an axis, and its core."""
    if side >= length:
        return (0, length), (0, length)
    start = (length - side) // 2 // grid * grid
    end = start + side
    return (start, end), (start + halo if start else 0, end - halo if end < length else length)
