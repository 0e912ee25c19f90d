"""Larger tiles, and so less work, where a graph for one shape takes less memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple

import numpy as np

from pixelrt.geometry import Size, TilePlan
from pixelrt.manifest import GraphRole, Manifest
from pixelrt.runtime.backends.base import Array, Session, ShapedSession
from pixelrt.runtime.planning import RunOptions, plan_image, with_memory_share

Run = Callable[[Mapping[str, Array]], dict[str, Array]]
"""As ``Session.infer``."""

WORTH = 0.9
"""Of the work in the tiles that the graph for any shape could take: more does not pay for
compiling and for a corner that is run twice."""


def ways_to_run(
    size: Size, role: GraphRole, manifest: Manifest, session: Session, options: RunOptions
) -> tuple[tuple[TilePlan, Run], ...]:
    """A plan and what runs its tiles, best first; the next one is for where it fails.

    ``size``: of an image that is not padded yet. Raises as ``plan_image``.
    """

    def plan(share: float) -> TilePlan:
        return plan_image(size, with_memory_share(manifest, share), options)

    usual = plan(session.info.memory_share)
    last = (usual, session.infer)
    halo = manifest.receptive_field.halo
    if (
        isinstance(session, ShapedSession)
        and session.one_shape_share < session.info.memory_share
        and options.tile == "auto"
        and halo is not None
    ):
        larger = plan(session.one_shape_share)
        grid = max(manifest.image.multiple, manifest.receptive_field.alignment)
        corner = Size(*(min(side, 2 * halo + grid) for side in astuple(larger.tile)))
        if larger.work <= WORTH * usual.work and corner.pixels <= usual.tile.pixels:
            right = Size(
                *(
                    read if read == side else read - halo
                    for read, side in zip(astuple(corner), astuple(larger.tile), strict=True)
                )
            )
            run = _by_one_shape(session, role, corner, right.scaled(manifest.image.scale))
            return (larger, run), last
    return (last,)


def _by_one_shape(session: ShapedSession, role: GraphRole, corner: Size, right: Size) -> Run:
    """Runs tiles by a graph for their shape alone, once it was seen to give what the verified
    one does for the top left ``corner`` of the first: the top left ``right`` of its result has
    to be the same. Raises ``BackendError`` in that run where it is not."""

    def top_left(size: Size) -> tuple[slice, ...]:
        sides = (slice(size.height), slice(size.width))
        every = slice(None)
        return (every, every, *sides) if role == "core" else (every, *sides, every)

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        parts = {name: np.ascontiguousarray(a[top_left(corner)]) for name, a in feeds.items()}
        return session.infer_one_shape(feeds, parts, top_left(right))

    return run
