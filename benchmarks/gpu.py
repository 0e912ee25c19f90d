"""``python -m benchmarks.gpu``: what a GPU makes of it, in one run, with nothing left out.

Every part that cannot run here is a row that says why. Without a GPU: exit code 4.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from benchmarks import timeline
from benchmarks.cases import CASES, QUICK_CASES, Case, choose_cases
from benchmarks.contenders import Contender
from benchmarks.gpu_contenders import gpu_contenders
from benchmarks.gpu_parts import (
    FLAVOURS,
    build_rows,
    copy_rows,
    fidelity_rows,
    timeline_row,
    words_of,
)
from benchmarks.isolated import run_isolated
from benchmarks.pairs import (
    QUICK,
    ROUNDS,
    Effort,
    export,
    interleave,
    make_jobs,
    output_fidelity,
    runs_of,
    turn_of,
)
from benchmarks.records import GpuReport, GpuRow, origin, write_record
from benchmarks.script import run_script, work_option
from benchmarks.worker import Worker
from pixelrt.bench.statistics import percentile, summarise
from pixelrt.bundle import Bundle
from pixelrt.cli.bench_table import aligned, seconds_text
from pixelrt.cli.terminal import note
from pixelrt.errors import PixelrtError
from pixelrt.geometry import Size
from pixelrt.plans.target import Flavour
from pixelrt.runtime.backends.select import offers_of
from pixelrt.runtime.backends.tensorrt import TensorRTBackend
from pixelrt.runtime.device.cuda import RealCuda

COPY_BYTES = 64 * 2**20
LARGE = Size(2048, 2048)


@click.command()
@click.option("--case", "words", multiple=True, help="Part of a case's name; default: all.")
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
@work_option
@click.option("--quick", is_flag=True, help="A tiny network: to see that it works.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file; .svg beside it.")
def main(words: tuple[str, ...], rounds: int, work: Path, quick: bool, output: Path | None) -> None:
    """Copies, fidelity of every plan, timeline, CUDA graphs, and peers in turn."""
    cuda = RealCuda()  # fails with exit code 4 where there is none
    device = cuda.device_name()
    cases = choose_cases(words, QUICK_CASES if quick else CASES)
    effort = QUICK if quick else Effort(rounds)
    rows = list(copy_rows(cuda, COPY_BYTES // (64 if quick else 1)))
    shown = ""
    for case in cases:
        note(f"{case.name}: exporting, building")
        bundle = run_isolated(export, case, work)
        rows += build_rows(case, bundle)
        for flavour in FLAVOURS:
            rows += fidelity_rows(case, bundle, flavour)
        large = replace(case, size=Size(96, 128) if quick else LARGE)
        for flavour in FLAVOURS:
            row, spans = timeline_row(large, bundle, flavour)
            rows.append(row)
            if spans:
                shown = timeline.as_text(spans)
                _write_svg(output, case, spans)
        rows += peer_rows(case, bundle, effort)
        record = GpuReport(
            origin=origin("benchmarks.gpu"), quick=quick, device=device, rows=rows, timeline=shown
        )
        if output is not None:
            write_record(output, record)
    click.echo(gpu_table(rows))
    click.echo(f"\n{shown}")


def _write_svg(output: Path | None, case: Case, spans: list[timeline.Span]) -> None:
    if output is not None:
        path = output.with_name(f"{output.stem}-{case.network.name}.svg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(timeline.as_svg(spans, case.name), encoding="utf-8")


# --- end to end -----------------------------------------------------------------------


def peer_rows(case: Case, bundle: Bundle, effort: Effort) -> list[GpuRow]:
    """Everybody in turn, round after round; the ratio is taken in every round."""
    flavour = _usable_flavour(bundle)
    with tempfile.TemporaryDirectory(prefix="pixelrt-gpu-") as place:
        return turn_rows(case, bundle, gpu_contenders(flavour), effort, Path(place))


def turn_rows(
    case: Case, bundle: Bundle, contenders: tuple[Contender, ...], effort: Effort, place: Path
) -> list[GpuRow]:
    """A row for each contender. The first one that works is what the others are held against."""
    jobs, part = make_jobs(case, bundle, place), f"end to end, {case.name}"
    rows: list[GpuRow] = []
    with ExitStack() as stack:
        workers: list[tuple[Contender, Worker]] = []
        for one in contenders:
            try:
                worker = stack.enter_context(Worker(one, jobs.job(one)[0], effort.limits))
                workers.append((one, worker))
            except PixelrtError as exc:
                rows.append(GpuRow(part, one.name, None, {}, one.settings, words_of(exc)))
        turns = tuple(partial(turn_of, w, runs_of(w, effort), effort.pause) for _, w in workers)
        times = interleave(turns, effort.rounds)
        for index, (one, worker) in enumerate(workers):
            ratios = [x / y for x, y in zip(times[index], times[0], strict=True)]
            facts = {f"times {workers[0][0].name}": percentile(ratios, 50)}
            output = place / "output.npy"
            worker.save(output)
            psnr, _ = run_isolated(output_fidelity, bundle.root, jobs.whole.image, output)
            facts |= {"dB": psnr} if psnr is not None else {}
            said = f"{one.settings}; {worker.ready.note}"
            rows.append(GpuRow(part, one.name, summarise(times[index]), facts, said, ""))
    return rows


def _usable_flavour(bundle: Bundle) -> Flavour:
    """The first with a plan that may be tried; the first of all where none has one."""
    for flavour in FLAVOURS:
        try:
            if any(not one.refused for one in offers_of(TensorRTBackend(flavour), bundle, "image")):
                return flavour
        except PixelrtError:
            continue  # its reason is a row of the fidelity part
    return FLAVOURS[0]


# --- the table -----------------------------------------------------------------------


def gpu_table(rows: list[GpuRow]) -> str:
    head = ("part", "what", "median", "numbers", "note")
    lines = [
        (
            row.part,
            row.name,
            seconds_text(row.seconds.p50) if row.seconds else "",
            ", ".join(f"{name} {value:.4g}" for name, value in row.facts.items()),
            f"not measured: {row.reason}" if row.reason else row.note,
        )
        for row in rows
    ]
    return aligned([head, *lines])


if __name__ == "__main__":
    run_script(main)
