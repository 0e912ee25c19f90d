"""``python -m benchmarks.table``: the tables of the README and of pages of docs/, made from
``benchmarks/results/``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import msgspec

from benchmarks.compare import decibels
from benchmarks.markdown import markdown
from benchmarks.openvino_table import openvino_tables, operations_table
from benchmarks.records import (
    AnyReport,
    Ceiling,
    Compared,
    CompareReport,
    DiffusionReport,
    GpuReport,
    GrowthReport,
    OpenVinoReport,
    Origin,
    Pair,
    StartReport,
    read_record,
)
from benchmarks.script import run_script
from benchmarks.summary import summary
from pixelrt.cli.bench_table import bytes_text, plan_text, psnr_text, seconds_text
from pixelrt.errors import CheckError, InputError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
OPENVINO = ROOT / "docs" / "openvino.md"
DIFFUSION = ROOT / "docs" / "diffusion.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
BEGIN = "<!-- benchmarks: made by `python -m benchmarks.table`, do not edit -->"
END = "<!-- end of benchmarks -->"
SWEEPS = {"size": "{}", "tile": "in tiles of {}", "halo": "halo {}", "threads": "{} processors"}
"""Of ``benchmarks.growth``, and what their rows are called."""


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 where it would change.")
def main(check: bool) -> int:
    """Write the tables between the two markers of each page."""
    results, changed = read_results(RESULTS), False
    for page in (README, BENCHMARKS, OPENVINO, DIFFUSION):
        old = page.read_text(encoding="utf-8")
        new = with_tables(old, render_page(page, results))
        changed |= old != new
        if not check:
            page.write_text(new, encoding="utf-8")
    return CheckError.exit_code if check and changed else 0


def render_page(page: Path, results: Iterable[tuple[str, AnyReport]]) -> str:
    """The tables of a page: the README has a summary, OpenVINO's parts and diffusion have pages of
    their own, and all else stands with how it is measured."""
    if page == README:
        reports = [one for _, one in results if isinstance(one, CompareReport)]
        return "\n".join([*summary(reports), "", ""]) if reports else ""
    pages = {OpenVinoReport: OPENVINO, DiffusionReport: DIFFUSION}
    mine = [one for one in results if pages.get(type(one[1]), BENCHMARKS) == page]
    return render(mine, os.path.relpath(RESULTS, page.parent))


def read_results(folder: Path) -> list[tuple[str, AnyReport]]:
    """Every result under ``folder`` with its name, by name. Raises ``InputError``."""
    return newest((path.name, read_record(path)) for path in sorted(folder.glob("*.json")))


def newest(results: Iterable[tuple[str, AnyReport]]) -> list[tuple[str, AnyReport]]:
    """Of a comparison that was made again on the same processor, the last one."""
    found, last = list(results), {}
    for report in sorted((one for _, one in found), key=lambda one: one.origin.made):
        if isinstance(report, CompareReport):
            last.update({_key(report, case): report for case in report.cases})
    for index, (name, report) in enumerate(found):
        if isinstance(report, CompareReport):
            cases = [case for case in report.cases if last[_key(report, case)] is report]
            found[index] = (name, msgspec.structs.replace(report, cases=cases))
    return [(name, one) for name, one in found if not isinstance(one, CompareReport) or one.cases]


def _key(report: CompareReport, case: Compared) -> tuple[str, int, str]:
    machine = report.origin.machine
    return machine.processor, machine.usable_cpus, case.name


def with_tables(text: str, tables: str) -> str:
    """``text`` with ``tables`` between its markers. Raises ``InputError`` without markers."""
    found = re.search(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", text, re.DOTALL)
    if not found:
        raise InputError("the page has no place for the tables", expected=f"{BEGIN} and {END}")
    return f"{text[: found.start()]}{BEGIN}\n{tables}{END}{text[found.end() :]}"


def tables_of(text: str) -> str | None:
    """What stands between the markers; ``None`` where there are none."""
    found = re.search(f"{re.escape(BEGIN)}\n(.*?){re.escape(END)}", text, re.DOTALL)
    return found[1] if found else None


def render(results: Iterable[tuple[str, AnyReport]], folder: str = "benchmarks/results") -> str:
    """Markdown: a section for each file, nothing without any. ``folder``: where the page finds
    them. Trials (``--quick``) are refused."""
    parts = []
    for name, report in results:
        if report.quick:
            raise InputError(f"{name} was made with --quick", hint="measure it again without")
        parts.append(
            "\n".join([*_body(report), "", _source(f"{folder}/{name}", report.origin), ""])
        )
    return "\n" + "\n".join(parts) + "\n" if parts else ""


def _body(report: AnyReport) -> list[str]:
    if isinstance(report, CompareReport):
        return _cases(report.cases, report.ceilings)
    if isinstance(report, DiffusionReport):
        return _diffusion(report)
    if isinstance(report, GrowthReport):
        return _growth(report)
    if isinstance(report, OpenVinoReport):
        return openvino_tables(report)
    if isinstance(report, StartReport):
        return _start(report)
    return _gpu(report)


def _source(file: str, origin: Origin) -> str:
    machine = origin.machine
    gpus = f", {', '.join(machine.gpus)}" if machine.gpus else ""
    versions = ", ".join(
        f"{package} {machine.versions[package]}"
        for package in ("torch", "onnxruntime", "openvino", "onnxruntime-ep-openvino", "tensorrt")
        if package in machine.versions
    )
    return (
        f"`{origin.command}`, {origin.made[:10]}, {machine.processor}, {machine.usable_cpus} "
        f"processors{gpus}; {versions} ([results]({file}))"
    )


def _brief(reason: str) -> str:
    """What a table has room for: the numbers of a wrong result, or the first words.

    The file of results has the whole reason.
    """
    wrong = re.search(r"found: (max abs [^;]*?) expected: (.*?)(?: to do:|;|$)", reason)
    if wrong:
        return f"it does not hold against the reference: {wrong[1]}; expected {wrong[2]}"
    return reason.partition(";")[0]


def _compared(case: Compared) -> list[str]:
    head = (
        *("against", "its median", "pixelrt", "**ratio** (quartiles)"),
        *("share of the ceiling: its, ours", "PSNR: its, ours", "peak memory: its, ours"),
    )
    rows = [_pair(pair) for pair in case.pairs]
    rows += [(one.peer, f"not measured: {_brief(one.reason)}", *[""] * 5) for one in case.absent]
    title = f"**{case.name}**, {2 * case.multiply_adds / 1e9:.0f} GFLOP"
    return ["", title, "", *markdown(head, rows)]


def _pair(pair: Pair) -> tuple[str, ...]:
    def both(text: Callable[[object], str], name: str) -> str:
        return ", ".join(text(getattr(side, name)) for side in (pair.peer, pair.ours))

    shaky = "" if pair.peer.stable and pair.ours.stable else " (unstable)"
    return (
        pair.peer.name,
        seconds_text(pair.peer.seconds.p50),
        f"{seconds_text(pair.ours.seconds.p50)}, {pair.ours.arithmetic}",
        f"**{pair.ratio:.2f}×** ({pair.low:.2f} to {pair.high:.2f}){shaky}",
        both(_share, "share"),
        both(_decibels, "psnr"),
        both(_bytes, "peak_memory"),
    )


def _share(value: object) -> str:
    return f"{value:.0%}" if isinstance(value, float) else "–"


def _decibels(value: object) -> str:
    return decibels(value if isinstance(value, float) else None)


def _bytes(value: object) -> str:
    return bytes_text(value if isinstance(value, int) else 0)


def _cases(cases: list[Compared], ceilings: list[Ceiling]) -> list[str]:
    return [line for case in cases for line in _compared(case)] + _ceilings(ceilings)


def _diffusion(report: DiffusionReport) -> list[str]:
    head = ("scheduler", "a step outside the networks", "share of the UNet's step")
    rows = [
        (row.name, seconds_text(row.facts["seconds"]), f"{row.facts['share']:.2%}")
        for row in report.overhead
    ]
    lines = [*_cases(report.cases, report.ceilings), "", *markdown(head, rows)]
    tables = (operations_table(case, report.ceilings) for case in report.operations)
    return [*lines, *(line for table in tables for line in table)]


def _ceilings(ceilings: list[Ceiling]) -> list[str]:
    """The best of each precision, in words."""
    best: dict[str, float] = {}
    for one in ceilings:
        best[one.precision] = max(best.get(one.precision, 0.0), one.per_second)
    words = [
        f"{value / 1e9:.0f} {'GB/s copied' if name == 'bytes' else f'GFLOP/s in {name}'}"
        for name, value in best.items()
        if value
    ]
    return ["", f"Ceilings measured in the same run: {', '.join(words)}."]


def _growth(report: GrowthReport) -> list[str]:
    head = ("what", "latency", "per megapixel", "peak memory", "tiles", "work", "PSNR")
    rows: list[tuple[str, ...]] = []
    for row in report.rows:
        name = SWEEPS[row.sweep].format(row.value)
        if row.result is None:
            rows.append((name, f"not measured: {row.reason}", *[""] * 5))
            continue
        result = row.result
        shaky = "" if result.stable else " (unstable)"
        rows.append(
            (
                name,
                seconds_text(result.latency.p50) + shaky,
                seconds_text(result.seconds_per_megapixel),
                bytes_text(result.memory.host_peak),
                plan_text(result),
                f"{result.plan.work:.2f}",
                psnr_text(result),
            )
        )
    return ["", f"**How {report.subject.name} grows**, file to file", "", *markdown(head, rows)]


def _start(report: StartReport) -> list[str]:
    head = ("process", "", "median", "fastest", "slowest")
    rows: list[tuple[str, ...]] = []
    for row in report.rows:
        times = [
            seconds_text(v) for v in (row.seconds.p50, row.seconds.minimum, row.seconds.maximum)
        ]
        times[0] += "" if row.stable else " (unstable)"
        rows.append((row.name, row.note, *times))
    title = (
        f"**A picture of {report.width}x{report.height}**, from the start of a process to its end"
    )
    return ["", title, "", *markdown(head, rows)]


def _gpu(report: GpuReport) -> list[str]:
    head = ("part", "what", "median", "numbers", "note")
    rows: list[tuple[str, ...]] = [
        (
            row.part,
            row.name,
            seconds_text(row.seconds.p50) if row.seconds else f"not measured: {row.reason}",
            ", ".join(f"{name} {value:.4g}" for name, value in row.facts.items()),
            row.note,
        )
        for row in report.rows
    ]
    return ["", f"**On {report.device}**", "", *markdown(head, rows)]


if __name__ == "__main__":
    run_script(main)
