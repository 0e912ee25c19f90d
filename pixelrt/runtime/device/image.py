"""Images in device memory, by copies of rows alone: padding, cutting tiles, keeping cores.

A copy of a region is one strided copy (``cudaMemcpy2DAsync``). Padding takes one copy of a
row or column per mirrored one and a few that repeat what is there by then (``grid.pad_runs``).
"""

from __future__ import annotations

from dataclasses import dataclass

from pixelrt.geometry import Region, Size
from pixelrt.grid import pad_runs, possible_mode
from pixelrt.runtime.device.cuda import Cuda, Rows
from pixelrt.runtime.device.interop import DeviceArray
from pixelrt.runtime.device.resources import Stream
from pixelrt.spec import PadMode


@dataclass(frozen=True)
class DeviceImage:
    """(H, W, C) in device memory: ``pixel`` bytes each, rows ``pitch`` bytes apart."""

    address: int
    size: Size
    pixel: int
    pitch: int

    @property
    def whole(self) -> Region:
        return Region(0, 0, self.size.height, self.size.width)

    def rows(self, region: Region) -> Rows:
        assert region.bottom <= self.size.height, "the region ends below the image"
        assert region.right <= self.size.width, "the region ends beside the image"
        return Rows(
            self.address + region.top * self.pitch + region.left * self.pixel,
            self.pitch,
            region.size.width * self.pixel,
            region.size.height,
        )


def stacked(address: int, count: int, size: Size, pixel: int) -> list[DeviceImage]:
    """``count`` images of ``size``, one behind the other, without gaps."""
    step = size.pixels * pixel
    return [DeviceImage(address + n * step, size, pixel, size.width * pixel) for n in range(count)]


def split_images(array: DeviceArray) -> list[DeviceImage]:
    """Each image of (N, H, W, C)."""
    count, height, width, channels = array.shape
    return stacked(array.address, count, Size(height, width), channels * array.dtype.itemsize)


def copy_region(
    cuda: Cuda,
    stream: Stream,
    target: tuple[DeviceImage, Region],
    source: tuple[DeviceImage, Region],
) -> None:
    """Queue a copy between regions of one size; empty ones are left alone."""
    if target[1].size.pixels:
        rows = target[0].rows(target[1]), source[0].rows(source[1])
        cuda.copy_2d(*rows, "d2d", stream.handle)


def pad_into(
    cuda: Cuda, stream: Stream, target: DeviceImage, source: DeviceImage, mode: PadMode
) -> None:
    """Queue filling ``target`` with ``source``, extended on the right and at the bottom.

    The values are those of ``grid.pad_image``. ``target`` is at least as large.
    """
    old, new = source.size, target.size
    copy_region(cuda, stream, (target, source.whole), (source, source.whole))
    mode = possible_mode(old, mode)
    for run in pad_runs(old.height, new.height, mode):
        here, there = (
            Region(top, 0, top + run.count, old.width) for top in (run.target, run.source)
        )
        copy_region(cuda, stream, (target, here), (target, there))
    # The columns of all rows, those just made too: the corners come with them.
    for run in pad_runs(old.width, new.width, mode):
        here, there = (
            Region(0, left, new.height, left + run.count) for left in (run.target, run.source)
        )
        copy_region(cuda, stream, (target, here), (target, there))
