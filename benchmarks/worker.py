"""A contender in a process of its own: libraries do not disturb each other's threads, memory
peaks are its own, and one that crashes is a line in the table."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import Contender, Job
from benchmarks.isolated import end_with_parent
from pixelrt.bench.resources import host_peak
from pixelrt.bench.schema import Warmup
from pixelrt.bench.steady import WarmupLimits, warm_up
from pixelrt.errors import BackendError, PixelrtError
from pixelrt.runtime.closing import Closing

START_SECONDS = 1800.0
RUN_SECONDS = 7200.0
CLOSE_SECONDS = 20.0


@dataclass(frozen=True)
class Ready:
    """What a contender says once it is warm."""

    precision: str
    note: str
    kept: str
    warmup: Warmup


class Worker(Closing):
    """Starts the contender and warms it up. Raises ``BackendError`` with its words where it
    cannot be used. A context manager; the process ends with it."""

    def __init__(self, contender: Contender, job: Job, limits: WarmupLimits) -> None:
        self.name = contender.name
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, contender, job, limits))
        self._process.start()
        other.close()
        try:
            self.ready: Ready = self._answer(START_SECONDS)
        except BaseException:
            self.close()
            raise

    def run(self, count: int) -> list[float]:
        """Seconds of ``count`` runs, measured inside the process."""
        self._pipe.send(("run", count))
        seconds: list[float] = self._answer(RUN_SECONDS)
        return seconds

    def save(self, path: Path) -> int:
        """Write the last run's picture to ``path`` (.npy); the peak memory since the start.
        ``run`` comes first."""
        self._pipe.send(("save", path))
        peak: int = self._answer(RUN_SECONDS)
        return peak

    def close(self) -> None:
        """End the process, by force where it does not end by itself."""
        with suppress(OSError, ValueError):  # where it has ended already
            self._pipe.send(("close", None))
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def _answer(self, seconds: float) -> Any:
        try:
            if not self._pipe.poll(seconds):
                raise BackendError(f"{self.name} did not answer", found=f"nothing in {seconds:g} s")
            good, value = self._pipe.recv()
        except (EOFError, OSError) as exc:
            self._process.join(CLOSE_SECONDS)
            code = self._process.exitcode
            raise BackendError(f"{self.name} ended", found=f"exit code {code}") from exc
        if not good:
            raise BackendError(f"{self.name} cannot be measured", found=value)
        return value


def _serve(pipe: Connection, contender: Contender, job: Job, limits: WarmupLimits) -> None:
    """The other side."""
    end_with_parent()
    try:
        _work(pipe, contender, job, limits)
    except PixelrtError as exc:
        pipe.send((False, f"{exc.message} ({exc.found})" if exc.found else exc.message))
    except Exception as exc:  # noqa: BLE001 (whatever a peer raises is its row in the table)
        pipe.send((False, f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"))


def _work(pipe: Connection, contender: Contender, job: Job, limits: WarmupLimits) -> None:
    opened = contender.open(job)
    with host_peak() as peak:
        warmed = warm_up(opened.warm or opened.run, limits)
        pipe.send((True, Ready(opened.precision, opened.note, opened.kept, warmed)))
        result = None
        while True:
            word, value = pipe.recv()
            if word == "close":
                return
            if word == "save":
                break
            seconds = []
            for _ in range(value):
                began = time.perf_counter()
                result = opened.run()
                seconds.append(time.perf_counter() - began)
            pipe.send((True, seconds))
    np.save(value, opened.picture(result))
    pipe.send((True, peak.value))
    pipe.recv()
