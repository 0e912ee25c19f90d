"""Where the time of an image goes: decode, copy in, compute, copy out, encode.

Every instant belongs to exactly one stage, so the stages add up to the whole. While any
graph runs, it is *compute*; between a graph and the next report of progress it is *copy
out* (cores of tiles to their place), from there to the next graph *copy in* (padding,
cutting tiles). Work that another thread does beside a running graph is hidden by it and
does not count: the stages say what is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pixelrt.bench.schema import STAGES
from pixelrt.bench.steady import Clock
from pixelrt.bundle import BundledNetwork
from pixelrt.manifest import GraphRole
from pixelrt.runtime.backends.base import Array, Backend, Offer, Session
from pixelrt.runtime.closing import Closing


class StageClock:
    """Books time to stages. Outside ``start`` and ``finish`` it books nothing."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.now = clock
        self._lock = threading.Lock()
        self._stage = ""
        self._since = 0.0
        self._running = 0
        self._booked: dict[str, float] = {}

    def start(self, stage: str) -> None:
        """Begin an image in ``stage``."""
        with self._lock:
            self._booked = dict.fromkeys(STAGES, 0.0)
            self._running = 0
            self._stage, self._since = stage, self.now()

    def enter(self, stage: str) -> None:
        """From here on it is ``stage``, unless a graph is running."""
        with self._lock:
            if not self._running:
                self._switch(stage)

    def finish(self) -> dict[str, float]:
        """Seconds of each stage since ``start``."""
        with self._lock:
            self._switch("")
            return dict(self._booked)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A graph is running; several may at once."""
        with self._lock:
            self._running += 1
            self._switch("compute")
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._switch("copy_out")

    def tiles_done(self, done: int, total: int) -> None:
        """A ``Progress``: what comes next is preparing the next tile, or finishing."""
        self.enter("copy_in" if done < total else "copy_out")

    def _switch(self, stage: str) -> None:
        if not self._stage:  # between images, such as while a session is verified
            return
        now = self.now()
        self._booked[self._stage] += now - self._since
        self._stage, self._since = stage, now


class TimedBackend:
    """A backend whose sessions tell a ``StageClock`` when they run."""

    def __init__(self, backend: Backend, clock: StageClock) -> None:
        self.name = backend.name
        self._backend = backend
        self._clock = clock

    def missing(self) -> str:
        return self._backend.missing()

    def offers(self, bundle: BundledNetwork, role: GraphRole) -> tuple[Offer, ...]:
        return tuple(self._timed(offer) for offer in self._backend.offers(bundle, role))

    def _timed(self, offer: Offer) -> Offer:
        return replace(offer, open=lambda: timed(offer.open(), self._clock))


def timed(session: Session, clock: StageClock) -> TimedSession:
    """``session`` with its runs told to ``clock``; one that moves tiles itself keeps doing so."""
    kind = TimedTileSession if hasattr(session, "run_tiles") else TimedSession
    return kind(session, clock)


class TimedSession(Closing):
    """A session that tells a ``StageClock`` when it runs."""

    def __init__(self, session: Session, clock: StageClock) -> None:
        self._session = session
        self._clock = clock
        self.info = session.info
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.profiles = session.profiles
        self.samples = session.samples

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._clock.computing():
            return self._session.infer(feeds)

    def close(self) -> None:
        self._session.close()


class TimedTileSession(TimedSession):
    """A session that takes whole images and copies beside computing: all of it is *compute*.

    Its further methods are spelt out because a protocol is recognised by what the class has.
    """

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._inside.notes)

    def run_tiles(self, *images_plan_out: Any, **options: Any) -> None:
        with self._clock.computing():
            self._inside.run_tiles(*images_plan_out, **options)

    def work_bytes(self, shape: Any) -> Any:
        return self._inside.work_bytes(shape)

    def buffer_bytes(self, shape: Any, streams: int) -> int:
        return int(self._inside.buffer_bytes(shape, streams))

    def free_memory(self) -> int:
        return int(self._inside.free_memory())

    def trim(self) -> None:
        self._inside.trim()

    @property
    def _inside(self) -> Any:
        return self._session
