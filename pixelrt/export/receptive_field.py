"""How far an output pixel sees, measured on the network itself.

One axis at a time, on a thin strip: the networks here treat both axes alike, and a large
square in fp64 would not fit in memory for deep attention networks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from pixelrt.errors import ExportError
from pixelrt.export.recipe import Network
from pixelrt.export.samples import PHOTOS, photo, to_channels
from pixelrt.fidelity import compare
from pixelrt.geometry import Size, round_up
from pixelrt.spec import ImageSpec, ReceptiveField

TARGETS_DB = (40, 60, 80)
STRIP = 16
"""Least thickness of a strip in pixels."""
BAND = 16
"""Errors are measured within this many pixels of a cut, where they are largest."""
EQUAL = 1e-9
"""Two fp64 results are the same when no value differs by more than this."""
EXACT = 1e-5
"""Largest fp32 error that a tile with the exact halo may show on a photograph."""
MAX_STRIP_PIXELS = 3_000_000

Function = Callable[[torch.Tensor], torch.Tensor]


def measure(network: Network) -> ReceptiveField:
    """Alignment, exact halo and halo curve of a network.

    Networks with whole-image statistics get ``halo=None``. Raises ``ExportError`` where
    the network sees further than a strip of ``MAX_STRIP_PIXELS``, or where tiles with the
    measured halo do not reproduce the whole image on a photograph.
    """
    spec = network.image
    if spec.statistics == "image":
        return ReceptiveField(alignment=spec.multiple, halo=None)
    reach, length = exact_halo(network.graph, spec)
    alignment = find_alignment(network.graph, spec, length)
    halo = round_up(reach, alignment) if reach else 0
    return ReceptiveField(alignment, halo, halo_curve(network.graph, spec, halo))


def exact_halo(module: nn.Module, spec: ImageSpec) -> tuple[int, int]:
    """Support of the gradient of one grid cell of output: (halo, strip length used).

    The halo is the larger of what the cell sees beyond its left and its right edge, over
    every phase inside the cell.
    """
    linear = open_activations(copy.deepcopy(module).double())
    cell = spec.multiple
    length = round_up(8 * max(cell, STRIP), cell)
    while length * _thickness(spec) <= MAX_STRIP_PIXELS:
        left, right = support(linear, spec, length)
        margin = max(cell, STRIP)
        start = _middle(length, cell)
        if start - left >= margin and length - (start + cell + right) >= margin:
            return max(left, right), length
        length *= 2
    raise ExportError(
        "the network sees further than can be measured",
        found=f"a receptive field beyond {length // 2} pixels",
        hint="if it uses statistics of the whole image, its recipe must say so",
    )


def support(module: Function, spec: ImageSpec, length: int) -> tuple[int, int]:
    """Input columns with a gradient, beyond the left and right edge of the middle cell."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, spec.channels_in, _thickness(spec), length)
    strip = torch.rand(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    start = _middle(length, spec.multiple)
    low, high = start * spec.scale, (start + spec.multiple) * spec.scale
    cell = module(strip)[..., low:high]
    weights = torch.rand(cell.shape, generator=generator, dtype=torch.float64) + 0.5
    (gradient,) = torch.autograd.grad((cell * weights).sum(), strip)
    columns = gradient.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
    first, last = int(columns.min()), int(columns.max())
    return max(0, start - first), max(0, last - (start + spec.multiple - 1))


def open_activations(module: nn.Module) -> nn.Module:
    """Make every rectifier pass a gradient everywhere.

    What a network can see does not depend on which units this input happens to switch off.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU | nn.LeakyReLU | nn.PReLU):
            setattr(module, name, nn.LeakyReLU(0.5))
        else:
            open_activations(child)
    return module


def find_alignment(module: nn.Module, spec: ImageSpec, length: int) -> int:
    """The smallest shift under which the network's interior shifts along, exactly."""
    double = copy.deepcopy(module).double()
    generator = torch.Generator().manual_seed(1)
    cell = spec.multiple
    wide = length + cell
    shape = (1, spec.channels_in, _thickness(spec), wide)
    strip = torch.rand(shape, generator=generator, dtype=torch.float64)
    start = _middle(length, cell)
    with torch.inference_mode():
        still = double(strip[..., :length])
        for shift in divisors(cell):
            moved = double(strip[..., shift : shift + length])
            low, high = (start + cell) * spec.scale, (start + 2 * cell) * spec.scale
            gap = shift * spec.scale
            error = still[..., low:high] - moved[..., low - gap : high - gap]
            if float(error.abs().max()) <= EQUAL:
                return shift
    raise ExportError(
        "the network's result changes with the position of the picture",
        found=f"no shift up to {cell} pixels leaves it the same",
        hint="such a network cannot be tiled; its recipe must say statistics='image'",
    )


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@dataclass(frozen=True)
class CutStrip:
    """Photographs in a strip with a cut in the middle, and the uncut result."""

    module: nn.Module
    spec: ImageSpec
    strip: torch.Tensor
    whole: torch.Tensor
    cut: int
    band: int

    def worst(self, halo: int) -> tuple[float, float]:
        """(lowest PSNR in dB, largest absolute error) next to the cut, either side."""
        results = [self._compare(halo, left_side) for left_side in (True, False)]
        return min(r[0] for r in results), max(r[1] for r in results)

    def _compare(self, halo: int, left_side: bool) -> tuple[float, float]:
        scale, cut = self.spec.scale, self.cut
        if left_side:  # the tile ends behind the cut and owns what is before it
            owned, read = (cut - self.band, cut), (0, cut + halo)
        else:
            owned, read = (cut, cut + self.band), (cut - halo, self.strip.shape[3])
        with torch.inference_mode():
            tile = self.module(self.strip[..., read[0] : read[1]])
        want = self.whole[..., owned[0] * scale : owned[1] * scale]
        got = tile[..., (owned[0] - read[0]) * scale : (owned[1] - read[0]) * scale]
        result = compare(want.numpy(), got.numpy())
        return result.psnr, result.max_abs


def cut_strip(module: nn.Module, spec: ImageSpec, halo: int) -> CutStrip:
    """Both photographs as a batch, long enough for ``halo`` on either side of the cut."""
    grid = spec.multiple
    band = round_up(BAND, grid)
    side = round_up(halo + 2 * band, grid)
    size = Size(round_up(max(4 * grid, 32), grid) if grid < 64 else grid, 2 * side)
    pictures = [to_channels(photo(i, size), spec.channels_in) for i in range(len(PHOTOS))]
    batch = np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    strip = torch.from_numpy(np.ascontiguousarray(batch))
    with torch.inference_mode():
        whole = module(strip)
    return CutStrip(module, spec, strip, whole, side, band)


def halo_curve(module: nn.Module, spec: ImageSpec, halo: int) -> dict[str, int]:
    """The smallest halo for each target on real photographs, by bisection.

    Raises ``ExportError`` if even the exact halo shows more than rounding.
    """
    strip = cut_strip(module, spec, halo)
    worst = lru_cache(maxsize=None)(strip.worst)
    _, error = worst(halo)
    if error > EXACT:
        raise ExportError(
            "tiles with the measured halo differ from the whole image",
            found=f"an error of {error:.1e} next to a cut with halo {halo}",
            expected=f"at most {EXACT:.0e}",
        )
    steps = range(0, halo + 1, spec.multiple)
    return dict(_curve(lambda index: worst(steps[index])[0], steps))


def _curve(quality: Callable[[int], float], steps: range) -> Iterator[tuple[str, int]]:
    for target in TARGETS_DB:
        low, high = 0, len(steps) - 1
        while low < high:
            middle = (low + high) // 2
            if quality(middle) >= target:
                high = middle
            else:
                low = middle + 1
        yield f"{target}dB", steps[low]


def _thickness(spec: ImageSpec) -> int:
    """At least two grid cells, so that whatever crosses cells is seen."""
    if spec.multiple >= 64:
        return spec.minimum
    return max(round_up(STRIP, spec.multiple), 2 * spec.multiple, spec.minimum)


def _middle(length: int, cell: int) -> int:
    return length // 2 // cell * cell
