"""``python -m benchmarks.growth``: how cost grows with size, tile, halo and processors.

Each measurement has a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.cases import CASES, QUICK_CASES, bundle_of
from benchmarks.isolated import run_isolated
from benchmarks.records import Growth, GrowthReport, origin, write_record
from benchmarks.script import run_script, work_option
from pixelrt.bench.harness import Bench, subject_of
from pixelrt.bench.harness import Case as Shape
from pixelrt.bench.schema import Result
from pixelrt.bench.steady import Effort, WarmupLimits
from pixelrt.bundle import open_bundle
from pixelrt.cli.bench_table import aligned, bytes_text, plan_text, psnr_text, seconds_text
from pixelrt.cli.terminal import note
from pixelrt.errors import PixelrtError, UsageError
from pixelrt.geometry import Size, round_up
from pixelrt.runtime.backends.select import Choice
from pixelrt.runtime.load import bundle_path
from pixelrt.runtime.machine import usable_cpus
from pixelrt.runtime.planning import RunOptions

MEGAPIXELS = (0.25, 1.0, 4.0, 12.0, 50.0, 100.0)
TILES = (128, 192, 256, 384, 512, 768, 1024)
HALOS = ("exact", "80dB", "60dB", "40dB")
SWEEP_MEGAPIXELS = 4.0
"""The image of the sweeps over tiles, halos and processors."""
EFFORT = Effort(seconds=5.0, fewest=3, warmup=WarmupLimits(windows=2, max_seconds=60.0))
ONCE = Effort(1, warmup=WarmupLimits(max_runs=0))
"""For images of at least ``LARGE`` megapixels that take longer than ``LONG_SECONDS``: of many
tiles few are the first ones."""
LARGE, LONG_SECONDS = 10.0, 60.0
QUICK = Effort(2, warmup=WarmupLimits(0.0, windows=1, max_runs=1))


@dataclass(frozen=True)
class Point:
    """One measurement. ``threads``: processors that the process may use."""

    sweep: str
    value: str
    size: Size
    options: RunOptions
    threads: int


@click.command()
@click.option("--bundle", default="demo", show_default=True, help="Bundle, or a case's network.")
@click.option("--backend", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--megapixels", type=float, multiple=True, help=f"Default: {MEGAPIXELS}.")
@click.option("--sweep", "sweeps", multiple=True, help="size, tile, halo, threads; default: all.")
@work_option
@click.option("--quick", is_flag=True, help="Tiny sizes: to see that it works.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    bundle: str,
    backend: str,
    precision: str,
    megapixels: tuple[float, ...],
    sweeps: tuple[str, ...],
    work: Path,
    quick: bool,
    output: Path | None,
) -> None:
    """Measure one bundle over sizes, tiles, halos and processors."""
    path = find_bundle(bundle, work)
    choice, rows = Choice(backend, precision), []
    for point in points(sweeps, megapixels or MEGAPIXELS, quick=quick):
        note(f"{point.sweep} {point.value}: {point.size}")
        rows.append(measure_point(path, choice, point, QUICK if quick else EFFORT))
        click.echo(growth_line(rows[-1]))
        if output is not None:
            subject = subject_of(open_bundle(path, check_files=False))
            start = origin("benchmarks.growth")
            record = GrowthReport(origin=start, quick=quick, subject=subject, rows=rows)
            write_record(output, record)
    click.echo("\n" + growth_table(rows))


def find_bundle(name: str, work: Path) -> Path:
    """A bundle's folder; that of a case's network is exported at the first call."""
    networks = {case.network.name: case.network for case in (*CASES, *QUICK_CASES)}
    if name in networks:
        return run_isolated(bundle_of, networks[name], work).root
    return bundle_path(name)


def points(
    sweeps: tuple[str, ...], megapixels: tuple[float, ...], *, quick: bool = False
) -> Iterator[Point]:
    """What is measured. Raises ``UsageError`` for an unknown sweep."""
    known = ("size", "tile", "halo", "threads")
    if unknown := set(sweeps) - set(known):
        raise UsageError(f"no sweep is called {', '.join(unknown)}", expected=", ".join(known))
    wanted = sweeps or known
    cpus = usable_cpus()
    middle = size_of(0.02 if quick else SWEEP_MEGAPIXELS)
    if "size" in wanted:
        for count in (0.005, 0.02) if quick else megapixels:
            yield Point("size", f"{count:g} MP", size_of(count), RunOptions(), cpus)
    if "tile" in wanted:
        for side in (64, 96) if quick else TILES:
            yield Point("tile", str(side), middle, RunOptions(tile=side), cpus)
    if "halo" in wanted:
        for halo in HALOS[::2] if quick else HALOS:
            tile = 96 if quick else 256
            yield Point("halo", halo, middle, RunOptions(tile=tile, halo=halo), cpus)
    if "threads" in wanted:
        for count in thread_counts(cpus):
            yield Point("threads", str(count), middle, RunOptions(), count)


def thread_counts(cpus: int) -> list[int]:
    """1, 2, 4 ... and all there are."""
    return sorted({1 << bit for bit in range(cpus.bit_length()) if 1 << bit <= cpus} | {cpus})


def size_of(megapixels: float) -> Size:
    """4:3, sides multiples of 8."""
    width = (megapixels * 1e6 * 4 / 3) ** 0.5
    return Size(round_up(int(width * 3 / 4), 8), round_up(int(width), 8))


def measure_point(bundle: Path, choice: Choice, point: Point, effort: Effort) -> Growth:
    """In a process of its own; what fails becomes the row's reason."""
    try:
        result = run_isolated(measure_here, bundle, choice, point, effort)
    except PixelrtError as exc:
        reason = " ".join(f"{exc.message}; {exc.found}".split()).rstrip("; ")
        return Growth(point.sweep, point.value, point.threads, None, reason)
    return Growth(point.sweep, point.value, point.threads, result, "")


def measure_here(bundle: Path, choice: Choice, point: Point, effort: Effort) -> Result:
    if hasattr(os, "sched_setaffinity"):
        # Backends take one thread for each processor that they may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: point.threads])
    with Bench(open_bundle(bundle), choice, samples=False) as bench:
        return measure_case(bench, Shape(point.size, point.options), effort)


def measure_case(bench: Bench, case: Shape, effort: Effort) -> Result:
    if case.size.pixels >= LARGE * 1e6:
        once = bench.run(case, ONCE).result
        if once.latency.p50 > LONG_SECONDS:
            return once
    return bench.run(case, effort).result


def growth_line(row: Growth) -> str:
    return "  ".join(_row(row))


def growth_table(rows: list[Growth]) -> str:
    head = (
        *("sweep", "value", "processors", "p50", "per megapixel", "peak memory", "plan", "work"),
        *("PSNR", ""),
    )
    return aligned([head, *(_row(row) for row in rows)])


def _row(row: Growth) -> tuple[str, ...]:
    start = (row.sweep, row.value, str(row.threads))
    result = row.result
    if result is None:
        return (*start, "", "", "", f"not measured: {row.reason}", "", "", "")
    return (
        *start,
        seconds_text(result.latency.p50),
        seconds_text(result.seconds_per_megapixel),
        bytes_text(result.memory.host_peak),
        plan_text(result),
        f"{result.plan.work:.2f}",
        psnr_text(result),
        "" if result.stable else "UNSTABLE",
    )


if __name__ == "__main__":
    run_script(main)
