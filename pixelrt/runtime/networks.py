"""The networks of a pipeline bundle, opened when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.runtime.backends.base import Array, Backend, BackendInfo, Session
from pixelrt.runtime.backends.select import BACKENDS, FRUGAL_BACKENDS, Choice, Opened, open_session
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.in_segments import (
    IN_TILES,
    PRECISION,
    SegmentedBackend,
    SegmentedSession,
    tiling_of,
)
from pixelrt.runtime.planning import RunOptions


class Networks(Closing):
    """Opens, runs and closes the networks of ``bundle``.

    ``low_memory``: one network is open at a time, and ``backends`` are ``FRUGAL_BACKENDS`` where
    none are given. ``verify``: each is held against its samples before its first use on this
    machine. ``options``: of those that are run in tiles where a picture does not fit, ``tile`` and
    ``max_memory``. ``used``: what ran each of them. ``progress``, where it is set, is told of those
    that are run in tiles: the name, tiles done, tiles in all.
    """

    def __init__(
        self,
        bundle: PipelineBundle,
        choice: Choice | None = None,
        *,
        low_memory: bool = False,
        verify: bool = True,
        backends: tuple[Backend, ...] = (),
        options: RunOptions | None = None,
    ) -> None:
        self.bundle = bundle
        self.choice = choice or Choice()
        self.low_memory = low_memory
        self._verify = verify
        self._backends = backends or (FRUGAL_BACKENDS if low_memory else BACKENDS)
        self.options = options or RunOptions()
        self.used: dict[str, BackendInfo] = {}
        self.progress: Callable[[str, int, int], None] | None = None
        self._open: dict[str, Opened] = {}

    def run(self, name: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises as ``open_session`` and ``Session.infer`` do."""
        tiling = tiling_of(self.bundle.network(name).network, feeds, self.options)
        if tiling is None:
            return self.session(name).infer(feeds)
        session = self.opened(name, in_tiles=True).session
        assert isinstance(session, SegmentedSession)
        return session.run(feeds, tiling, self.progress and partial(self.progress, name))

    def session(self, name: str) -> Session:
        return self.opened(name).session

    def opened(self, name: str, *, in_tiles: bool = False) -> Opened:
        """``in_tiles``: its segments, a ``SegmentedSession``, in float32 whatever was chosen."""
        key = f"{name} {IN_TILES}" if in_tiles else name
        if key not in self._open:
            if self.low_memory:
                self.close()
            choice, backends = self.choice, self._backends
            if in_tiles:
                choice = replace(choice, precision=PRECISION)
                backends = tuple(SegmentedBackend(backend) for backend in backends)
            self._open[key] = open_session(
                self.bundle.network(name), "network", choice, backends, verify=self._verify
            )
            self.used[key] = self._open[key].session.info
        return self._open[key]

    def close(self) -> None:
        """Close all; the next run opens again."""
        while self._open:
            self._open.popitem()[1].session.close()
