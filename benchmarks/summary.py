"""The README's table: how many times as fast as each peer, by processor and network."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.compare import decibels
from benchmarks.contenders import OURS
from benchmarks.markdown import markdown
from benchmarks.records import Compared, CompareReport, Pair
from pixelrt.cli.bench_table import seconds_text

PEERS = {
    "PyTorch float32": "torch eager float32",
    "transformers": "transformers processor + model",
    "onnxruntime": "onnxruntime bare",
}
"""Columns, and what the peers are called."""
SAME = "OpenVINO, same precision"
HEAD = ("network", OURS, *PEERS, SAME, "of the ceiling", "PSNR")


def summary(reports: Iterable[CompareReport]) -> list[str]:
    """Markdown: a table for each processor. ``~`` stands before what was not stable."""
    machines: dict[str, list[Compared]] = {}
    for report in reports:
        machine = report.origin.machine
        title = f"{machine.processor}, {machine.usable_cpus} processors"
        machines.setdefault(title, []).extend(report.cases)
    lines: list[str] = []
    for title, cases in machines.items():
        rows = [row for case in cases if (row := _row(case))]
        lines += ["", f"**{title}**", "", *markdown(HEAD, rows)]
    return lines


def _row(case: Compared) -> tuple[str, ...]:
    """Nothing where pixelrt itself was not measured in the precision that it chooses."""
    pairs = {pair.peer.name: pair for pair in case.pairs}
    chosen = next((pair for pair in case.pairs if pair.ours.name == OURS), None)
    if chosen is None:
        return ()
    ours = chosen.ours
    same = None if ours.kept else pairs.get(f"openvino {ours.precision} bare")
    columns = (*(pairs.get(name) for name in PEERS.values()), same)
    share = "–" if ours.share is None else f"{ours.share:.0%}"
    return (
        case.name,
        f"{seconds_text(ours.seconds.p50)}, {ours.arithmetic}",
        *(_ratio(pair) for pair in columns),
        share,
        decibels(ours.psnr),
    )


def _ratio(pair: Pair | None) -> str:
    if pair is None:
        return "–"
    stable = pair.peer.stable and pair.ours.stable
    return f"{'' if stable else '~'}{pair.ratio:.2f}×"
