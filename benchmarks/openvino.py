"""``python -m benchmarks.openvino``: what docs/openvino.md says of OpenVINO, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click

from benchmarks.cases import CASES, CLASSICAL, QUICK_CASES, Case, Network, choose_cases
from benchmarks.ceilings import measure_ceilings
from benchmarks.growth import find_bundle
from benchmarks.isolated import run_isolated
from benchmarks.openvino_operations import operation_rows
from benchmarks.openvino_parts import ROUNDS, memory_rows, opening_rows, psnr_rows, shape_rows
from benchmarks.openvino_table import openvino_tables
from benchmarks.records import OpenVinoCase, OpenVinoReport, OpenVinoRow, origin, write_record
from benchmarks.script import run_script
from pixelrt.bench.harness import subject_of
from pixelrt.bundle import Bundle, open_bundle
from pixelrt.cache import cache_folder
from pixelrt.cli.terminal import note
from pixelrt.errors import PixelrtError
from pixelrt.geometry import Size

DEMO = Case(Network("demo", "srgan"), Size(256, 256))
"""Ships with pixelrt, and the only one with trained weights."""
KNOWN = (DEMO, *(case for case in CASES if case.size.pixels <= 256 * 256))
USUAL = tuple(case for case in KNOWN if case.network is not CLASSICAL)
"""Without any ``--case``: exporting Swin2SR classical takes minutes."""

PARTS: dict[str, Callable[[Bundle, Size, int], Iterator[OpenVinoRow]]] = {
    "psnr": psnr_rows,
    "opening": opening_rows,
    "shape": shape_rows,
    "memory": memory_rows,
    "operations": operation_rows,
}


@click.command()
@click.option("--case", "words", multiple=True, help="Part of a case's name.")
@click.option("--what", multiple=True, type=click.Choice(list(PARTS)), help="Default: all.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for exported bundles.")
@click.option("--quick", is_flag=True, help="A tiny network: to see that it works.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    words: tuple[str, ...],
    what: tuple[str, ...],
    work: Path | None,
    quick: bool,
    output: Path | None,
) -> None:
    """Measure precisions, opening, fixed shapes, memory and operations of OpenVINO."""
    cases = choose_cases(words, QUICK_CASES if quick else KNOWN if words else USUAL)
    parts = [part for part in PARTS if not what or part in what]
    ceilings = []
    if "operations" in parts:
        note("measuring ceilings")
        ceilings = measure_ceilings(quick=quick)
    done: list[OpenVinoCase] = []
    for case in cases:
        path = find_bundle(case.network.name, work or cache_folder() / "benchmarks")
        rows: list[OpenVinoRow] = []
        for part in parts:
            note(f"{case.name}: {part}")
            rows += measure_part(part, path, case.size, 2 if quick else ROUNDS)
        size, subject = case.size, subject_of(open_bundle(path))
        done.append(OpenVinoCase(case.name, subject, size.width, size.height, rows))
        report = OpenVinoReport(
            origin=origin("benchmarks.openvino"), quick=quick, ceilings=ceilings, cases=done
        )
        if output is not None:  # after each case: what was measured is not lost
            write_record(output, report)
    click.echo("\n".join(openvino_tables(report)))


def measure_part(part: str, path: Path, size: Size, rounds: int) -> list[OpenVinoRow]:
    """In a process of its own; what fails becomes a row with the reason."""
    try:
        return run_isolated(rows_of, part, path, size, rounds)
    except PixelrtError as exc:
        reason = " ".join(f"{exc.message}; {exc.found}".split()).rstrip("; ")
        return [OpenVinoRow(part, "", {}, reason=reason)]


def rows_of(part: str, path: Path, size: Size, rounds: int) -> list[OpenVinoRow]:
    return list(PARTS[part](open_bundle(path), size, rounds))


if __name__ == "__main__":
    run_script(main)
