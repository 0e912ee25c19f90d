"""What images in device memory must come to, on the fake and on a real device alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from math import prod
from typing import Any

import numpy as np

from pixelrt.geometry import Size, TilePlan, plan_tiles
from pixelrt.grid import grid_size, pad_image
from pixelrt.runtime.device.array_flow import DeviceFlow
from pixelrt.runtime.device.cuda import LEGACY_STREAM, Cuda, Rows
from pixelrt.runtime.device.image import pad_into, stacked
from pixelrt.runtime.device.interop import DeviceArray
from pixelrt.runtime.device.memory import HostPool
from pixelrt.runtime.device.resources import DeviceBuffer, Stream, settled
from pixelrt.runtime.device.stages import Compute, FlowShape
from pixelrt.runtime.tiling import run_plan
from pixelrt.spec import ImageSpec, PadMode
from tests.bundles import image_spec, nearest

Array = np.ndarray[Any, Any]
MODES: tuple[PadMode, ...] = ("symmetric", "reflect", "edge")


def doubling(cuda: Cuda) -> Compute:
    """A network that repeats each pixel twice on both axes, by copies alone."""

    def compute(
        stream: Stream, source: DeviceBuffer, result: DeviceBuffer, shape: tuple[int, ...]
    ) -> None:
        count, height, width, pixel = shape
        for row, down, right in product(range(count * height), range(2), range(2)):
            target = result.address + ((2 * row + down) * 2 * width + right) * pixel
            origin = source.address + row * width * pixel
            rows = Rows(target, 2 * pixel, pixel, width), Rows(origin, pixel, pixel, width)
            cuda.copy_2d(*rows, "d2d", stream.handle)

    return compute


def pictures(*shape: int) -> Array:
    return np.random.default_rng(prod(shape)).integers(0, 256, shape, np.uint8)


@contextmanager
def on_device(cuda: Cuda, values: Array, stream: Stream) -> Iterator[DeviceArray]:
    """``values``, copied by ``stream``, which has yet to do so."""
    with (
        HostPool(cuda) as pool,
        pool.take(values.size) as there,
        DeviceBuffer(cuda, values.size) as buffer,
        settled(stream),
    ):
        there.array[:] = values.reshape(-1)
        stream.copy_in(buffer, there.address, values.size)
        yield DeviceArray(buffer.address, values.shape, values.dtype, stream.handle)


def read_back(cuda: Cuda, array: DeviceArray) -> Array:
    """What ``array`` holds after the work of its stream."""
    with (
        HostPool(cuda) as pool,
        pool.take(array.size) as block,
        Stream(cuda, array.stream or LEGACY_STREAM) as stream,
        settled(stream),
    ):
        cuda.copy(block.address, array.address, array.size, "d2h", stream.handle)
        stream.synchronize()
        return block.array.reshape(array.shape).copy()


def expected(images: Array, plan: TilePlan, spec: ImageSpec) -> Array:
    """What the host's way gives."""
    count, height, width, channels = images.shape
    out = np.empty((count, 2 * height, 2 * width, channels), np.uint8)
    run_plan(nearest(2), pad_image(images, plan.image, spec.pad_mode), plan, out, scale=2)
    return out


def flow_shape(plan: TilePlan, channels: int, batch: int = 1, *, fixed: bool = False) -> FlowShape:
    height, width = plan.tile.height, plan.tile.width
    tile_out = (2 * height, 2 * width, channels)
    return FlowShape((height, width, channels), tile_out, batch, 1, fixed)


def images_are_padded(cuda: Cuda) -> None:
    sizes = ((7, 5), (8, 8), (1, 5), (2, 3), (3, 9))
    for mode, (height, width), channels in product(MODES, sizes, (1, 3)):
        image = pictures(1, height, width, channels)
        goal = Size(height + (0 if height == 8 else 20), 16)
        with (
            Stream(cuda) as stream,
            on_device(cuda, image, stream) as array,
            DeviceBuffer(cuda, goal.pixels * channels) as buffer,
            settled(stream),
        ):
            target = stacked(buffer.address, 1, goal, channels)[0]
            source = stacked(array.address, 1, Size(height, width), channels)[0]
            pad_into(cuda, stream, target, source, mode)
            shape = (1, goal.height, goal.width, channels)
            padded = DeviceArray(buffer.address, shape, image.dtype, stream.handle)
            np.testing.assert_array_equal(
                read_back(cuda, padded), pad_image(image, goal, mode), err_msg=mode
            )


def images_run(cuda: Cuda) -> None:
    """Every padding mode, size, tile, batch and number of images gives what the host gives."""
    choices = (
        *((1, 13, 10, tile, batch) for tile in (8, 12, 64) for batch in (1, 3)),
        *((3, 9, 4, 8, 2), (2, 16, 12, 8, 4), (5, 3, 2, 8, 3), (1, 1, 6, 8, 1)),
    )
    for number, (count, height, width, tile, batch) in enumerate(choices):
        spec = image_spec(multiple=4, minimum=4, pad_mode=MODES[number % 3])
        image = pictures(count, height, width, 3)
        grid = grid_size(Size(height, width), spec)
        plan = plan_tiles(grid, Size(tile, tile), 0 if tile >= 64 else 2)
        shape = flow_shape(plan, 3, batch, fixed=number % 2 == 1)
        with (
            Stream(cuda) as ours,
            DeviceFlow(cuda, ours, doubling(cuda), shape, spec) as flow,
            Stream(cuda) as theirs,
            on_device(cuda, image, theirs) as array,
        ):
            got = read_back(cuda, flow.run(array, plan))
        np.testing.assert_array_equal(got, expected(image, plan, spec), err_msg=str(plan))


def images_keep_to_the_callers_order(cuda: Cuda) -> None:
    """Written and overwritten on the caller's stream, the result taken on another one."""
    spec = image_spec(multiple=4, minimum=4)
    image = pictures(1, 11, 9, 3)
    plan = plan_tiles(Size(12, 12), Size(8, 8), 2)
    with (
        Stream(cuda) as ours,
        Stream(cuda) as theirs,
        Stream(cuda) as other,
        DeviceFlow(cuda, ours, doubling(cuda), flow_shape(plan, 3), spec) as flow,
        on_device(cuda, image, theirs) as array,
        DeviceBuffer(cuda, 4 * image.size) as memory,
        settled(theirs, other),
    ):
        other.fill(memory, 9)
        out = DeviceArray(memory.address, (1, 22, 18, 3), image.dtype, other.handle)
        results = [flow.run(array, plan, out), flow.run(array, plan)]
        cuda.fill(array.address, 5, array.size, theirs.handle)
        assert results[0].address == memory.address
        for result in results:
            assert result.stream == theirs.handle
            np.testing.assert_array_equal(read_back(cuda, result), expected(image, plan, spec))
        other.fill(memory, 1)


def results_outlive_the_flow(cuda: Cuda) -> None:
    """Larger images need more memory in between; results stay until nobody wants them."""
    spec = image_spec(multiple=4, minimum=4)
    plans = [plan_tiles(Size(side, side), Size(8, 8), 2) for side in (12, 16)]
    with Stream(cuda) as theirs:
        with (
            Stream(cuda) as ours,
            DeviceFlow(cuda, ours, doubling(cuda), flow_shape(plans[0], 3), spec) as flow,
        ):
            images = [pictures(1, side, side - 1, 3) for side in (11, 16)]
            results = []
            for image, plan in zip(images, plans, strict=True):
                with on_device(cuda, image, theirs) as array:
                    results.append(flow.run(array, plan))
        for image, plan, result in zip(images, plans, results, strict=True):
            np.testing.assert_array_equal(read_back(cuda, result), expected(image, plan, spec))


DEVICE_CASES: tuple[Callable[[Cuda], None], ...] = (
    images_are_padded,
    images_run,
    images_keep_to_the_callers_order,
    results_outlive_the_flow,
)
