"""``pixelrt bench``: what a bundle costs on this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Literal

import click

import pixelrt
from pixelrt.bench.harness import Bench, Case, Outcome, subject_of
from pixelrt.bench.machine import describe_machine
from pixelrt.bench.reference import LIMIT_PIXELS
from pixelrt.bench.schema import FORMAT, Report, Result, Skipped, encode_report
from pixelrt.bench.steady import Effort, WarmupLimits
from pixelrt.bundle import Bundle, open_bundle
from pixelrt.cli.bench_page import write_page
from pixelrt.cli.bench_table import results_table
from pixelrt.cli.options import ByteCount, PixelSize, Tile
from pixelrt.cli.terminal import note
from pixelrt.errors import (
    BackendError,
    CheckError,
    FidelityError,
    InputError,
    OutputError,
    PixelrtError,
    UsageError,
)
from pixelrt.files import atomic_write
from pixelrt.geometry import Size
from pixelrt.runtime.backends.select import PRECISIONS, Choice
from pixelrt.runtime.load import bundle_path
from pixelrt.runtime.planning import RunOptions

SIZES = ((256, 256), (512, 512))
QUICK = Effort(seconds=0.0, fewest=3, warmup=WarmupLimits(0.0, max_seconds=5.0))


@dataclass(frozen=True)
class Asked:
    """What the options say. ``reference_pixels`` 0: outputs are held against nothing."""

    backends: tuple[str, ...]
    precisions: tuple[str, ...]
    cases: tuple[Case, ...]
    effort: Effort
    reference_pixels: int


@click.command("bench")
@click.argument("bundle")
@click.option("--backend", "backends", multiple=True, help="May be repeated; default: auto.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="May be repeated; default: auto.",
)
@click.option(
    "--size", "sizes", type=PixelSize(), multiple=True, help="May be repeated; 256 and 512."
)
@click.option("--tile", "tiles", type=Tile(), multiple=True, help="May be repeated; default: auto.")
@click.option("--halo", default="exact", show_default=True, help="As for `pixelrt run`.")
@click.option(
    "--streams",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Tiles that a GPU computes at once.",
)
@click.option("--max-memory", type=ByteCount(), help="Working memory of the network, e.g. 2GB.")
@click.option(
    "--image",
    "source",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Photograph to measure on; default: the one that ships with pixelrt.",
)
@click.option("--repeats", type=click.IntRange(1), help="Measured runs of each case.")
@click.option("--seconds", type=click.FloatRange(0.0), help="Measured time of each case; 5.")
@click.option("--quick", is_flag=True, help="Three runs: to see that it works, not to compare.")
@click.option(
    "--reference-pixels",
    type=click.IntRange(0),
    default=LIMIT_PIXELS,
    show_default=True,
    help="Input pixels held against the float32 route; 0 for none.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write a JSON report.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write a page.")
@click.option("--strict", is_flag=True, help="Fail where a case was not stable.")
@click.option("-q", "--quiet", is_flag=True, help="Only the table.")
def command(
    bundle: str,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    sizes: tuple[tuple[int, int], ...],
    tiles: tuple[Literal["auto", "off"] | int, ...],
    halo: str,
    streams: int,
    max_memory: int | None,
    source: Path | None,
    repeats: int | None,
    seconds: float | None,
    quick: bool,
    reference_pixels: int,
    json_path: Path | None,
    html_path: Path | None,
    strict: bool,
    quiet: bool,
) -> int:
    """Measure BUNDLE from file to file: decode, copy in, compute, copy out, encode.

    Every backend, precision, size and tile is warmed up until its times are steady and then
    measured; tiles that come to the same plan are measured once. The last output is held
    against the float32 route. Exit code 1 where an output
    misses the fidelity of its precision; with --strict also where a case was not stable or
    could not be measured.
    """
    for path in (json_path, html_path):
        check_place(path)
    opened = open_bundle(bundle_path(bundle))
    cases = tuple(
        Case(Size(height, width), RunOptions(tile, halo, max_memory, streams=streams), source)
        for (width, height), tile in product(sizes or SIZES, tiles or ("auto",))
    )
    asked = Asked(
        backends or ("auto",),
        precisions or ("auto",),
        cases,
        effort_of(repeats, seconds, quick),
        reference_pixels,
    )
    skipped: list[Skipped] = []
    outcomes = list(run_all(opened, asked, skipped, quiet=quiet))
    report = make_report(opened, asked, [one.result for one in outcomes], skipped)
    click.echo(results_table(report))
    if json_path is not None:
        with atomic_write(json_path) as file:
            file.write(encode_report(report))
    if html_path is not None:
        write_page(html_path, report, outcomes)
    return exit_code(report, strict=strict)


def check_place(path: Path | None) -> None:
    """Before minutes of measuring, not after. Raises ``OutputError``."""
    if path is not None and not path.absolute().parent.is_dir():
        raise OutputError(f"{path} cannot be written", found=f"no folder {path.parent}")


def effort_of(repeats: int | None, seconds: float | None, quick: bool) -> Effort:
    """Raises ``UsageError`` where the options contradict each other."""
    given = [name for name, value in (("--repeats", repeats), ("--seconds", seconds)) if value]
    if len(given) > 1 or (quick and given):
        names = " and ".join([*given, *(["--quick"] if quick else [])])
        raise UsageError(f"{names} exclude each other", expected="one of them")
    if quick:
        return QUICK
    return Effort(repeats) if seconds is None else Effort(seconds=seconds)


def run_all(
    bundle: Bundle, asked: Asked, skipped: list[Skipped], *, quiet: bool
) -> Iterator[Outcome]:
    """Every case on every backend and precision; what cannot be done goes to ``skipped``.

    Raises the first error where nothing at all could be measured.
    """
    first: PixelrtError | None = None
    measured = 0
    for name, precision in product(asked.backends, asked.precisions):
        choice = Choice(name, precision)
        try:
            with Bench(bundle, choice, reference_pixels=asked.reference_pixels) as bench:
                done: set[object] = set()
                for case in asked.cases:
                    try:
                        plan = bench.plan(case)
                        if (case.size, plan) in done:  # another tile that comes to the same
                            continue
                        done.add((case.size, plan))
                        outcome = _run(bench, case, asked.effort, quiet=quiet)
                    except (BackendError, InputError, UsageError) as exc:
                        first = first or exc
                        skipped.append(_skip(choice, case, exc))
                        continue
                    measured += 1
                    yield outcome
        except (BackendError, FidelityError, InputError) as exc:
            first = first or exc
            skipped.append(_skip(choice, None, exc))
    if first is not None and not measured:
        raise first


def _run(bench: Bench, case: Case, effort: Effort, *, quiet: bool) -> Outcome:
    if not quiet:
        info = bench.session.info
        note(f"measuring {info.name} {info.precision}, {case.size}, tile {case.options.tile}")
    return bench.run(case, effort)


def _skip(choice: Choice, case: Case | None, exc: PixelrtError) -> Skipped:
    reason = f"{exc.message} ({exc.found})" if exc.found else exc.message
    size, tile = (str(case.size), str(case.options.tile)) if case else ("all", "all")
    return Skipped(choice.backend, choice.precision, size, tile, reason)


def make_report(
    bundle: Bundle, asked: Asked, results: list[Result], skipped: list[Skipped]
) -> Report:
    source = asked.cases[0].source
    return Report(
        format=FORMAT,
        kind="bench",
        made=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=shlex.join(["pixelrt", *sys.argv[1:]]),
        pixelrt=pixelrt.__version__,
        effort=str(asked.effort),
        input=source.name if source else "the photograph that ships with pixelrt",
        subject=subject_of(bundle),
        machine=describe_machine(),
        results=results,
        skipped=skipped,
    )


def exit_code(report: Report, *, strict: bool) -> int:
    """1 for a wrong output; where ``strict``, also for a case not stable or not measured."""
    wrong = any(not result.fidelity.passed for result in report.results)
    doubtful = any(not result.stable for result in report.results) or bool(report.skipped)
    return CheckError.exit_code if wrong or (strict and doubtful) else 0
