"""From what the user asked for and what the device has to a plan for an image."""

from __future__ import annotations

from collections.abc import Callable

from pixelrt.errors import UsageError
from pixelrt.geometry import Size, plan_tiles
from pixelrt.manifest import Manifest
from pixelrt.plans.profiles import Shape
from pixelrt.runtime.backends.base import DeviceMemory, TileSession
from pixelrt.runtime.device.fitting import (
    DevicePlan,
    Need,
    Task,
    fit_count,
    fit_tile,
    no_profile,
)
from pixelrt.runtime.planning import (
    RunOptions,
    asked_tile,
    memory_need,
    padded_size,
    resolve_halo,
)

DEVICE_SHARE = 0.9
"""Share of the free device memory that a run may take when no limit is given."""


def device_budget(session: DeviceMemory, options: RunOptions) -> int:
    """Bytes of device memory that a run may take."""
    return options.max_memory or int(session.free_memory() * DEVICE_SHARE)


def device_planner(
    size: Size, images: int, manifest: Manifest, options: RunOptions, session: TileSession
) -> Callable[[int], DevicePlan]:
    """What plans ``images`` pictures of ``size`` (not yet padded) within a budget in bytes.

    It raises ``OutOfMemoryError`` with the numbers where nothing fits, ``UsageError`` where
    the session takes no tile of that image.
    """
    if options.streams < 1:
        raise UsageError(f"{options.streams} streams", expected="a positive number")
    need = device_need(manifest, session, options.streams)

    def plan_for(budget: int) -> DevicePlan:
        task, tile = _task(size, images, manifest, options)
        if tile is None:
            tile = fit_tile(task, session.profiles, need, budget)
        tiles = plan_tiles(task.image, tile, task.halo)
        shape = Shape(len(tiles) * images, tiles.tile.height, tiles.tile.width)
        try:
            batch = fit_count(shape, session.profiles, need, budget)
        except UsageError as exc:
            raise no_profile(task, session.profiles, tiles.tile) from exc
        return DevicePlan(tiles, batch, options.streams)

    return plan_for


def device_need(manifest: Manifest, session: TileSession, streams: int) -> Need:
    """Bytes for a shape: the network's work, and the tiles in flight.

    With several streams the network may work in more memory where there is more.
    """

    def need(shape: Shape) -> int:
        work = session.work_bytes(shape)
        if work is None:
            work = memory_need(manifest, shape.batch * shape.height * shape.width)
        return work + session.buffer_bytes(shape, streams)

    return need


def _task(
    size: Size, images: int, manifest: Manifest, options: RunOptions
) -> tuple[Task, Size | None]:
    """What is to be tiled, and the tile where it is not free."""
    image = padded_size(size, manifest, options.pad)
    grid = max(manifest.image.multiple, manifest.receptive_field.alignment)
    if manifest.receptive_field.halo is None:
        if options.tile not in ("auto", "off"):
            raise UsageError(
                f"{manifest.name} normalises with statistics of the whole image: "
                "tiles would change the picture",
                hint="leave --tile out, or use --tile off",
            )
        return Task(image, 0, grid, images), image
    if options.tile == "off":
        return Task(image, 0, grid, images), image
    halo = resolve_halo(options.halo, manifest)
    task = Task(image, halo, grid, images)
    if options.tile == "auto":
        return task, None
    return task, asked_tile(int(options.tile), image, halo, grid)
