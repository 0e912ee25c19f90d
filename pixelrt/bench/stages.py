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
from typing import Any, Self

from pixelrt.bench.schema import STAGES
from pixelrt.bench.steady import Clock
from pixelrt.bundle import Bundle
from pixelrt.manifest import GraphRole
from pixelrt.runtime.backends.base import Array, Backend, Offer, Session


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

    def offers(self, bundle: Bundle, role: GraphRole) -> tuple[Offer, ...]:
        return tuple(self._timed(offer) for offer in self._backend.offers(bundle, role))

    def _timed(self, offer: Offer) -> Offer:
        return Offer(offer.info, lambda: TimedSession(offer.open(), self._clock))


class TimedSession:
    """A session that tells a ``StageClock`` when it runs; otherwise the one inside."""

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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
