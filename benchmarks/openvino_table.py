"""The tables of docs/openvino.md, from what ``benchmarks.openvino`` wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.ceilings import ceiling_of
from benchmarks.markdown import markdown
from benchmarks.openvino_parts import ONE_SHAPE
from benchmarks.records import Ceiling, OpenVinoCase, OpenVinoReport, OpenVinoRow
from benchmarks.rounding import ROUNDINGS
from pixelrt.cli.bench_table import seconds_text
from pixelrt.runtime.backends.openvino_package import ENDS, SUMS

MIXED = tuple(f"bfloat16 with float32 {kept}" for kept in (ENDS, SUMS))
ARITHMETICS = ("float16", "bfloat16", *MIXED, "float32")
LEAST_SHARE = 0.01
"""Kernels that take less are summed up in one row."""


def openvino_tables(report: OpenVinoReport) -> list[str]:
    """Markdown; nothing for a part that was not measured."""
    lines: list[str] = []
    for title, part, head, cells in (
        (PSNR_TITLE, "psnr", PSNR_HEAD, _psnr),
        (SHAPE_TITLE, "shape", SHAPE_HEAD, _shape),
        (OPENING_TITLE, "opening", OPENING_HEAD, _opening),
        (MEMORY_TITLE, "memory", MEMORY_HEAD, _memory),
    ):
        rows = [row for case in report.cases for row in _cells(case, part, head, cells)]
        if rows:
            lines += ["", title, "", *markdown(head, rows)]
    tables = (operations_table(case, report.ceilings) for case in report.cases)
    return [*lines, *(line for table in tables for line in table)]


PSNR_TITLE = (
    "**PSNR** in dB against PyTorch in float32: the worst photograph / the worst noise. First as "
    "OpenVINO computes them, then in float32 on onnxruntime where only the factors of products "
    "are rounded to bfloat16: the weights, what they are multiplied with (inputs), both; *two "
    "terms*: a factor is the sum of two bfloat16 numbers"
)
PSNR_HEAD = ("network", *ARITHMETICS, *(rounding.name for rounding in ROUNDINGS))
SHAPE_TITLE = (
    "**One run**, by a graph for any shape and by one for this shape. *Saved*: the median "
    "of what turn about saved; *compiling*: what opening the second takes"
)
SHAPE_HEAD = ("case", "precision", "any shape", "one shape", "saved", "compiling")
OPENING_TITLE = "**Opening**, in the precision that the reference outputs allow"
OPENING_HEAD = ("network", "precision", "compiled", "read from the cache", "pixelrt")
MEMORY_TITLE = (
    "**Peak memory** in bytes per input pixel, the growth between two sizes, of a graph for any "
    "shape / of one compiled for this shape"
)
MEMORY_HEAD = ("network", "bundle's estimate", "onnxruntime", *ARITHMETICS)
OPERATIONS_HEAD = ("operation", "kernel", "count", "time", "share", "GFLOP/s (of the ceiling)")

Rows = Iterator[tuple[str, ...]]


def _cells(
    case: OpenVinoCase,
    part: str,
    head: tuple[str, ...],
    cells: Callable[[OpenVinoCase, list[OpenVinoRow]], Rows],
) -> Rows:
    rows = [row for row in case.rows if row.part == part]
    if failed := [row for row in rows if not row.name]:
        yield (case.subject.name, f"not measured: {failed[0].reason}", *[""] * (len(head) - 2))
    elif rows:
        yield from cells(case, rows)


def _psnr(case: OpenVinoCase, rows: list[OpenVinoRow]) -> Rows:
    found = {row.name: row for row in rows}
    names = (*ARITHMETICS, *(rounding.name for rounding in ROUNDINGS))
    yield (case.subject.name, *(_decibels(found.get(name)) for name in names))


def _decibels(row: OpenVinoRow | None) -> str:
    if row is None or row.reason:
        return "not followed" if row else "–"
    return " / ".join(f"{row.facts[kind]:.1f}" for kind in ("photo", "noise") if kind in row.facts)


def _shape(case: OpenVinoCase, rows: list[OpenVinoRow]) -> Rows:
    for row in rows:
        facts = row.facts
        times = [seconds_text(facts[name]) for name in ("any shape", "one shape")]
        yield (
            *(case.name, row.name, *times, f"{facts['saved']:.0%}"),
            seconds_text(facts["compiling"]),
        )


def _opening(case: OpenVinoCase, rows: list[OpenVinoRow]) -> Rows:
    for row in rows:
        times = [seconds_text(row.facts[name]) for name in ("compiled", "read")]
        way = "reads it" if row.facts["kept"] else "compiles it each time"
        yield case.subject.name, row.name, *times, way


def _memory(case: OpenVinoCase, rows: list[OpenVinoRow]) -> Rows:
    found = {row.name: f"{row.facts['bytes per pixel']:.0f}" for row in rows}
    cells = [found.get(name, "–") for name in ("estimate", "onnxruntime")]
    for name in ARITHMETICS:
        both = (found[one] for one in (name, f"{name}{ONE_SHAPE}") if one in found)
        cells.append(" / ".join(both) or "–")
    yield case.subject.name, *cells


def operations_table(case: OpenVinoCase, ceilings: list[Ceiling]) -> list[str]:
    rows = [row for row in case.rows if row.part == "operations"]
    if not rows:
        return []
    if rows[0].reason:
        return ["", f"**Operations of {case.name}**: not measured: {rows[0].reason}"]
    total, *kernels = rows
    top = ceiling_of(ceilings, total.note.partition(" ")[0])
    lines = [
        *("", f"**Operations of {case.name}** in {total.note}: "),
        *("", *markdown(OPERATIONS_HEAD, _kernel_rows(kernels, total.facts["seconds"], top))),
    ]
    lines[1] += (
        f"{seconds_text(total.facts['seconds'])} in all operations, "
        f"{seconds_text(total.facts['seconds of a run'])} for a run, "
        f"the ceiling {top / 1e9:.0f} GFLOP/s"
    )
    return lines


def _kernel_rows(kernels: list[OpenVinoRow], total: float, top: float) -> Rows:
    """Types by their sums; under each type its kernels."""
    types: dict[str, list[OpenVinoRow]] = {}
    for row in kernels:
        types.setdefault(row.name.partition(" ")[0], []).append(row)
    few: list[OpenVinoRow] = []
    for kind, rows in sorted(types.items(), key=lambda item: -_sum(item[1], "seconds")):
        if _sum(rows, "seconds") < LEAST_SHARE * total:
            few += rows
            continue
        if len(rows) > 1:
            yield _kernel_row(f"**{kind}**", "all", rows, total, top)
        for row in rows:
            if row.facts["count"]:
                yield _kernel_row(kind, row.name.partition(" ")[2], [row], total, top)
    if few:
        yield _kernel_row("others", "", few, total, top)


def _kernel_row(
    kind: str, kernel: str, rows: list[OpenVinoRow], total: float, top: float
) -> tuple[str, ...]:
    seconds, products = _sum(rows, "seconds"), _sum(rows, "multiply-adds")
    speed = ""
    if products and seconds:
        rate = 2 * products / seconds
        speed = f"{rate / 1e9:.0f}" + (f" ({rate / top:.0%})" if top else "")
    count = f"{_sum(rows, 'count'):.0f}"
    return kind, kernel, count, seconds_text(seconds), f"{seconds / total:.0%}", speed


def _sum(rows: list[OpenVinoRow], name: str) -> float:
    return sum(row.facts.get(name, 0.0) for row in rows)
