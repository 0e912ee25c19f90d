"""Contenders whose times are known, for tests of the machinery."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from benchmarks.contenders import Contender, Job, Opened, Pixels
from pixelrt.errors import BackendError


def open_sleeper(job: Job, seconds: float, wrong: int) -> Opened:
    """Repeats each pixel, as ``tests.bundles.nearest`` does, and is off by ``wrong``."""
    image = job.load()

    def run() -> Pixels:
        time.sleep(seconds)
        return image.repeat(2, 0).repeat(2, 1) ^ wrong

    return Opened(run, lambda out: out, "float32", f"sleeps {seconds} s")


def open_broken(job: Job) -> Opened:
    raise BackendError("this one never works", found=f"{job.threads} threads")


def open_bug(job: Job) -> Opened:
    raise ZeroDivisionError("a bug of the peer's")


def open_crash(job: Job) -> Opened:
    os._exit(7)


def sleeper(seconds: float, wrong: int = 0, *, whole: bool = False) -> Contender:
    opening = partial(open_sleeper, seconds=seconds, wrong=wrong)
    return Contender(f"sleeps {seconds}", "none", opening, whole=whole)


def open_telling(job: Job, log: Path) -> Opened:
    """Writes the sizes that it ran into ``log``."""

    def run(image: Pixels) -> Pixels:
        with log.open("a") as file:
            file.write("{}x{} ".format(*image.shape))
        return image.repeat(2, 0).repeat(2, 1)

    whole, part = job.load(), job.load_part()
    return Opened(lambda: run(whole), lambda out: out, "float32", warm=lambda: run(part))


def telling(log: Path) -> Contender:
    return Contender("telling", "none", partial(open_telling, log=log), whole=True)


def says_and_sleeps() -> None:
    """Its process's number, then nothing for longer than a test waits."""
    os.write(1, f"{os.getpid()}\n".encode())
    time.sleep(600)


def open_process(job: Job) -> Opened:
    return Opened(says_and_sleeps, lambda out: out, "float32")


BROKEN = Contender("broken", "none", open_broken)
BUG = Contender("bug", "none", open_bug)
CRASH = Contender("crash", "none", open_crash)
PROCESS = Contender("process", "none", open_process)
