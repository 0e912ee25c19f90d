"""Whole images that are in device memory already through a network, without the host.

Everything is queued on one stream, in order: pad, cut a batch of tiles, compute, keep the
cores, cut the next. Copies within a device take a small share of the time of any network, so
that more streams and slots would cost memory and gain nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice, product
from math import prod

import numpy as np

from pixelrt.errors import BackendError, ImageError
from pixelrt.geometry import Region, Size, Tile, TilePlan
from pixelrt.runtime.closing import Closing, release_quietly
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.image import (
    DeviceImage,
    copy_region,
    pad_into,
    split_images,
    stacked,
)
from pixelrt.runtime.device.interop import DeviceArray, between
from pixelrt.runtime.device.resources import DeviceBuffer, Stream, settled
from pixelrt.runtime.device.stages import Compute, FlowShape
from pixelrt.runtime.tiling import core_regions
from pixelrt.spec import ImageSpec


class OwnedMemory(Closing):
    """Device memory for results: freed by ``close``, or when nobody holds it any more.

    Others may have queued work on it that nobody tells of, so that freeing waits for the
    device. Nothing is freed at the end of the process, which ends the device's memory too.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._buffer = DeviceBuffer(cuda, size)
        self._release = weakref.finalize(self, _free_idle, cuda, self._buffer)
        self._release.atexit = False

    @property
    def address(self) -> int:
        return self._buffer.address

    def close(self) -> None:
        """A second call does nothing."""
        self._release()


def _free_idle(cuda: Cuda, buffer: DeviceBuffer) -> None:
    with buffer:
        try:
            with on_device(cuda):
                cuda.synchronize()
        except BackendError as exc:
            # Where the device cannot be made current, it may be so already.
            release_quietly(cuda.synchronize, exc)
            raise


@contextmanager
def on_device(cuda: Cuda) -> Iterator[None]:
    """The device is current meanwhile. Collection may happen in any thread, at any time."""
    before = cuda.current_device()
    cuda.activate()
    try:
        yield
    except BaseException as exc:
        release_quietly(lambda: cuda.activate(before), exc)
        raise
    cuda.activate(before)


class DeviceFlow(Closing):
    """A network's stream and memory for tiles of one shape, for images in device memory.

    ``stream`` and what ``compute`` needs outlive the flow. ``shape``: (H, W, C) uint8 tiles;
    its ``slots`` do not matter here. Used by one thread at a time.
    """

    def __init__(
        self, cuda: Cuda, stream: Stream, compute: Compute, shape: FlowShape, spec: ImageSpec
    ) -> None:
        self.shape = shape
        self._cuda = cuda
        self._stream = stream
        self._compute = compute
        self._spec = spec
        self._padded: DeviceBuffer | None = None
        with ExitStack() as stack:
            self._source = stack.enter_context(DeviceBuffer(cuda, shape.bytes_in))
            self._result = stack.enter_context(DeviceBuffer(cuda, shape.bytes_out))
            stack.callback(self._drop_padded)
            stack.enter_context(settled(stream))
            if shape.fixed_batch:
                stream.fill(self._source)
            self._resources = stack.pop_all()
        self._tiles_in = _tiles(self._source, shape.batch, shape.tile_in)
        self._tiles_out = _tiles(self._result, shape.batch, shape.tile_out)

    def run(
        self, image: DeviceArray, plan: TilePlan, out: DeviceArray | None = None
    ) -> DeviceArray:
        """Queue the network over ``image`` and return.

        ``image``: (N, H, W, C) uint8, not padded. ``plan``: of the padded size, tiles of the
        flow's shape. ``out``: (N, scale*H, scale*W, C') uint8, apart from ``image``; without
        it memory of ours is taken, and freed once the result is gone. The result may be
        used after the present work of its ``stream``, which is that of ``image``; where that
        is ``None`` the host has waited. Later work of ``image.stream`` may change ``image``.

        Raises ``ImageError`` for an ``out`` that does not fit, ``OutOfMemoryError``; nothing
        is queued any more then, and ``out`` may hold anything.
        """
        assert (plan.tile.height, plan.tile.width) == self.shape.tile_in[:2], "other tiles"
        high = Size(*image.shape[1:3]).scaled(self._spec.scale)
        dims = (image.shape[0], high.height, high.width, self._spec.channels_out)
        with on_device(self._cuda), ExitStack() as stack:
            if out is None:
                memory = stack.enter_context(OwnedMemory(self._cuda, prod(dims)))
                out = DeviceArray(memory.address, dims, np.dtype(np.uint8), owner=memory)
            else:
                check_out(out, dims, image)
            with self._ordered(image, out):
                self._queue(split_images(image), split_images(out), plan)
            stack.pop_all()
        return replace(out, stream=image.stream, cuda=self._cuda)

    @property
    def device_bytes(self) -> int:
        """Device memory that is held, apart from results."""
        return self._source.size + self._result.size + (self._padded.size if self._padded else 0)

    def close(self) -> None:
        """Wait for the stream and release everything; results stay."""
        self._resources.close()

    @contextmanager
    def _ordered(self, image: DeviceArray, out: DeviceArray) -> Iterator[None]:
        with ExitStack() as stack:
            if out.stream not in (None, image.stream):
                stack.enter_context(between(self._cuda, out.stream, self._stream))
            stack.enter_context(between(self._cuda, image.stream, self._stream))
            yield

    def _queue(self, images: list[DeviceImage], results: list[DeviceImage], plan: TilePlan) -> None:
        shape, scale = self.shape, self._spec.scale
        sources = images if len(plan) == 1 else self._pad(images, plan.image)
        jobs = iter(product(range(len(images)), plan))
        while group := list(islice(jobs, shape.batch)):
            for place, (index, tile) in zip(self._tiles_in, group, strict=False):
                self._cut(place, sources[index], tile)
            computed = shape.batch if shape.fixed_batch else len(group)
            self._compute(self._stream, self._source, self._result, (computed, *shape.tile_in))
            for place, (index, tile) in zip(self._tiles_out, group, strict=False):
                target, source = core_regions(tile, results[index].size, scale)
                self._copy((results[index], target), (place, source))

    def _cut(self, place: DeviceImage, image: DeviceImage, tile: Tile) -> None:
        """Copy what a tile reads. An image that is one tile is padded on the way."""
        if image.size.height < tile.read.bottom or image.size.width < tile.read.right:
            pad_into(self._cuda, self._stream, place, image, self._spec.pad_mode)
        else:
            self._copy((place, place.whole), (image, tile.read))

    def _copy(self, target: tuple[DeviceImage, Region], source: tuple[DeviceImage, Region]) -> None:
        copy_region(self._cuda, self._stream, target, source)

    def _pad(self, images: list[DeviceImage], size: Size) -> list[DeviceImage]:
        """The images at ``size``: themselves, or copies in memory of ours."""
        if images[0].size == size:
            return images
        memory = self._reserve(len(images) * size.pixels * images[0].pixel)
        padded = stacked(memory.address, len(images), size, images[0].pixel)
        for target, image in zip(padded, images, strict=True):
            pad_into(self._cuda, self._stream, target, image, self._spec.pad_mode)
        return padded

    def _reserve(self, size: int) -> DeviceBuffer:
        if self._padded is None or self._padded.size < size:
            self._stream.synchronize()
            self._drop_padded()
            self._padded = DeviceBuffer(self._cuda, size)
        return self._padded

    def _drop_padded(self) -> None:
        if self._padded is not None:
            buffer, self._padded = self._padded, None
            buffer.close()


def _tiles(buffer: DeviceBuffer, count: int, dims: tuple[int, ...]) -> list[DeviceImage]:
    height, width, channels = dims
    return stacked(buffer.address, count, Size(height, width), channels)


def check_out(out: DeviceArray, shape: tuple[int, ...], image: DeviceArray) -> None:
    """Raise ``ImageError`` where ``out`` cannot take a result of ``shape`` for ``image``."""
    problem = ""
    if out.shape != shape or out.dtype != np.uint8:
        problem = f"{out.dtype} {out.shape}"
    elif out.readonly:
        problem = "an array that may not be written"
    elif out.address < image.address + image.size and image.address < out.address + out.size:
        problem = "memory that the image lies in"
    if problem:
        raise ImageError(
            "this array cannot take the result",
            found=problem,
            expected=f"uint8 {shape}, writable, apart from the image",
        )
