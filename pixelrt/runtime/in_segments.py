"""A network of a pipeline run in segments, over tiles: what is too large for the memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.bundle import BundledNetwork
from pixelrt.errors import BackendError
from pixelrt.geometry import Size
from pixelrt.manifest import Component, GraphRole, Network, Segment
from pixelrt.pipeline_bundle import PipelineNetwork
from pixelrt.plans.profiles import Profile
from pixelrt.runtime.backends.base import (
    Array,
    Backend,
    BackendInfo,
    DeviceMemory,
    Offer,
    PlannedSession,
    Sample,
)
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.device.planning import device_budget
from pixelrt.runtime.planning import RunOptions, memory_budget
from pixelrt.segments import Feeds, Tiling, run_segments, whole_need
from pixelrt.spec import TensorSpec

IN_TILES = "in tiles"
PRECISION = "float32"
"""What segments are run in: statistics and values between them are float32 anyway."""
CUTS = Tiling(memory=2**30, side=40)
"""For samples: smaller than they are, so that they are cut on all sides."""


def fits(
    network: Network, feeds: Mapping[str, Array], options: RunOptions, session: object
) -> bool:
    """Whether ``network``, which has segments, may see a picture at once, by the estimate that they
    make of it untiled. ``session``: what would run it; ``None`` for one in the host's memory. A
    plan is not asked: its memory is its own, and it has no segments."""
    if isinstance(session, PlannedSession):
        return True
    (pixels,) = feeds.values()
    need = len(pixels) * whole_need(network, Size(*pixels.shape[2:]))
    if isinstance(session, DeviceMemory):
        return need <= device_budget(session, options)
    return need <= memory_budget(options)


class SegmentedBackend:
    """``backend`` for networks in segments."""

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self._backend = backend

    def missing(self) -> str:
        return self._backend.missing()

    def offers(self, bundle: BundledNetwork, role: GraphRole) -> tuple[Offer, ...]:
        assert isinstance(bundle, PipelineNetwork)
        assert bundle.network.segments
        first = _alone(bundle, bundle.network.segments[0])
        return tuple(
            offer
            if offer.refused
            else replace(
                offer,
                info=replace(offer.info, engine=IN_TILES),
                open=partial(SegmentedSession, bundle, self._backend, offer.info),
            )
            for offer in self._backend.offers(first, role)
            if offer.refused or offer.info.precision == PRECISION
        )


class SegmentedSession(Closing):
    """The whole network, as a session. Segments are opened for the time that each is run, so
    that the memory of one is there for the next."""

    profiles: tuple[Profile, ...] = ()
    samples: tuple[Sample, ...] = ()

    def __init__(self, network: PipelineNetwork, backend: Backend, info: BackendInfo) -> None:
        self.info = replace(info, engine=IN_TILES)
        graph = network.component.graphs[0]
        self.inputs: tuple[TensorSpec, ...] = tuple(graph.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(graph.outputs)
        self._network = network
        self._backend = backend
        self._closed = False

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """In tiles of ``CUTS``: so the samples prove the cuts too."""
        return self.run(feeds, CUTS)

    def run(
        self,
        feeds: Mapping[str, Array],
        tiling: Tiling,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Array]:
        """As ``infer``; ``progress``: see ``run_segments``. Raises ``InputError`` too where a side
        does not divide."""
        if self._closed:
            raise BackendError("this session is closed")
        pixels = feeds[self.inputs[0].name]
        found = run_segments(self._network.network, pixels, self._opened, tiling, progress)
        return {self.outputs[0].name: found}

    def tiling(self, options: RunOptions) -> Tiling:
        """How to cut a picture: a number is a tile's side in pixels of the picture. The host's
        memory is shared by a tile and the values that wait; on a device a tile has its own."""
        side = None if options.tile in ("auto", "off") else int(options.tile)
        half = memory_budget(options) // 2
        if isinstance(self._backend, DeviceMemory):
            return Tiling(device_budget(self._backend, options), side, waiting=half)
        return Tiling(half, side)

    def close(self) -> None:
        self._closed = True

    @contextmanager
    def _opened(self, segment: Segment) -> Iterator[Callable[[Feeds], NDArray[np.float32]]]:
        output = segment.graph.outputs[0].name
        with self._offer(segment).open() as session:
            yield lambda feeds: _float32(session.infer(feeds)[output])

    def _offer(self, segment: Segment) -> Offer:
        offers = self._backend.offers(_alone(self._network, segment), "network")
        for offer in offers:
            if not offer.refused and offer.info.precision == self.info.precision:
                return offer
        raise BackendError(
            f"{self._backend.name} does not run {segment.graph.file} in {self.info.precision}"
        )


def _alone(network: PipelineNetwork, segment: Segment) -> PipelineNetwork:
    """A segment as a network by itself; its samples are those of the whole."""
    graph = segment.graph
    component = Component(f"{network.component.name}: {graph.file}", PRECISION, [graph])
    return replace(network, component=component)


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    assert values.dtype == np.float32
    return values
