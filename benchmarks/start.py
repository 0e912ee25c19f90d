"""``python -m benchmarks.start``: from the start of a process to the picture on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
from PIL import Image

from benchmarks.pairs import PAUSE_SECONDS, ROUNDS, interleave
from benchmarks.records import StartReport, StartRow, origin, write_record
from benchmarks.script import run_script
from pixelrt.bench.scenes import scene
from pixelrt.bench.statistics import judge, summarise
from pixelrt.bundle import open_bundle
from pixelrt.cli.bench_table import aligned, seconds_text
from pixelrt.cli.options import PixelSize
from pixelrt.errors import BackendError
from pixelrt.geometry import Size
from pixelrt.runtime.load import bundle_path

BUNDLE = "demo"
ONNXRUNTIME = """
import sys
import numpy as np
import onnxruntime as ort
from PIL import Image

graph, source, target = sys.argv[1:]
image = np.asarray(Image.open(source).convert("RGB"))[None]
session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
(made,) = session.run(None, {session.get_inputs()[0].name: image})
Image.fromarray(made[0]).save(target)
"""


@dataclass(frozen=True)
class Start:
    """``arguments`` of Python. ``cache``: of pixelrt; ``None``: an empty one for every run."""

    name: str
    note: str
    arguments: tuple[str, ...]
    target: Path | None
    cache: Path | None


@click.command()
@click.option("--size", type=PixelSize(), default="512", show_default=True, help="Of the picture.")
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
@click.option("--quick", is_flag=True, help="A tiny picture: to see that it works.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(size: tuple[int, int], rounds: int, quick: bool, output: Path | None) -> None:
    """Measure `pixelrt run demo` on a picture and its peers, each a process of its own, in turn."""
    shape = Size(64, 64) if quick else Size(size[1], size[0])
    rows = measure(shape, 1 if quick else rounds)
    click.echo(start_table(rows))
    if output is not None:
        start = origin("benchmarks.start")
        record = StartReport(
            origin=start, quick=quick, width=shape.width, height=shape.height, rows=rows
        )
        write_record(output, record)


def measure(size: Size, rounds: int) -> list[StartRow]:
    """Raises ``BackendError`` with the words of a process that fails."""
    with tempfile.TemporaryDirectory(prefix="pixelrt-start-") as folder:
        place = Path(folder)
        source = place / "photo.png"
        Image.fromarray(scene(size)).save(source)
        starts = list(starts_of(source, place))
        turns: tuple[Callable[[], float], ...] = tuple(partial(run, one, place) for one in starts)
        times = interleave(turns, rounds)
    return [
        StartRow(one.name, one.note, summarise(seconds), judge(seconds, warmed_up=True).stable)
        for one, seconds in zip(starts, times, strict=True)
    ]


def starts_of(source: Path, place: Path) -> Iterator[Start]:
    bundle = open_bundle(bundle_path(BUNDLE))
    graph = bundle.path(bundle.component.graph("image").file)
    kept, target = place / "cache", place / "out.png"
    command = ("-m", "pixelrt", "run", BUNDLE, str(source), "-o", str(target), "--overwrite")
    yield Start("python", "starts and ends", ("-c", "pass"), None, kept)
    yield Start("PyTorch", "is imported, and no more", ("-c", "import torch"), None, kept)
    script = ("-c", ONNXRUNTIME, str(graph), str(source), str(target))
    yield Start(
        "onnxruntime", "a script of ten lines, Pillow reads and writes", script, target, kept
    )
    yield Start("pixelrt run", f"{BUNDLE}, as always but the first time", command, target, kept)
    yield Start("pixelrt run, first", "checked and compiled anew", command, target, None)


def run(start: Start, place: Path) -> float:
    """Seconds of one process."""
    if start.target:
        start.target.unlink(missing_ok=True)
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled modules are there once installed
    with cache_of(start, place) as cache:
        time.sleep(PAUSE_SECONDS)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *start.arguments],
            env=environment | {"PIXELRT_CACHE": str(cache)},
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - began
    if done.returncode or (start.target and not start.target.is_file()):
        raise BackendError(f"{start.name} ended with {done.returncode}", found=done.stderr[-500:])
    return seconds


@contextmanager
def cache_of(start: Start, place: Path) -> Iterator[Path]:
    if start.cache:
        yield start.cache
        return
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


def start_table(rows: list[StartRow]) -> str:
    lines: list[tuple[str, ...]] = [("process", "", "median", "fastest", "slowest", "")]
    for row in rows:
        one = row.seconds
        times = (seconds_text(value) for value in (one.p50, one.minimum, one.maximum))
        lines.append((row.name, row.note, *times, "" if row.stable else "UNSTABLE"))
    return aligned(lines)


if __name__ == "__main__":
    run_script(main)
