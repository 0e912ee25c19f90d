"""The networks of a pipeline bundle, opened when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.runtime.backends.base import Array, Backend, BackendInfo, DeviceMemory, Session
from pixelrt.runtime.backends.select import (
    BACKENDS,
    FRUGAL_BACKENDS,
    Choice,
    Opened,
    find_backend,
    open_session,
)
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.in_segments import (
    IN_TILES,
    PRECISION,
    SegmentedBackend,
    SegmentedSession,
    fits,
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
        in_tiles = self._in_tiles(name, feeds)
        session = self.opened(name, in_tiles=in_tiles).session
        self.used[_key(name, in_tiles=in_tiles)] = session.info
        if not in_tiles:
            return session.infer(feeds)
        assert isinstance(session, SegmentedSession)
        told = self.progress and partial(self.progress, name)
        return session.run(feeds, session.tiling(self.options), told)

    def _in_tiles(self, name: str, feeds: Mapping[str, Array]) -> bool:
        """``auto`` cuts what does not fit into the memory of what runs a picture at once."""
        network, tile = self.bundle.network(name).network, self.options.tile
        if not network.segments or tile == "off":
            return False
        if tile != "auto":
            return True
        # Which of several backends it will be is known once it is open.
        session = self.session(name) if self._device_there() else None
        return not fits(network, feeds, self.options, session)

    def _device_there(self) -> bool:
        name = self.choice.backend
        tried = self._backends if name == "auto" else (find_backend(name, self._backends),)
        return any(isinstance(one, DeviceMemory) and not one.missing() for one in tried)

    def session(self, name: str) -> Session:
        return self.opened(name).session

    def opened(self, name: str, *, in_tiles: bool = False) -> Opened:
        """``in_tiles``: its segments, a ``SegmentedSession``, in float32 whatever was chosen."""
        key = _key(name, in_tiles=in_tiles)
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
        return self._open[key]

    def close(self) -> None:
        """Close all; the next run opens again."""
        while self._open:
            self._open.popitem()[1].session.close()


def _key(name: str, *, in_tiles: bool) -> str:
    return f"{name} {IN_TILES}" if in_tiles else name
