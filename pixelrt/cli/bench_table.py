"""A benchmark report as lines for a terminal."""

from __future__ import annotations

from pixelrt.bench.schema import STAGES, Report, Result
from pixelrt.fidelity import PSNR_CEILING

HEAD = (
    *("backend", "precision", "size", "plan", "p50", "p90", "p95", "p99", "images/s", "MP/s"),
    *("peak", "PSNR", ""),
)
STAGE_HEAD = ("of the mean", *(name.replace("_", " ") for name in STAGES))


def results_table(report: Report) -> str:
    """Latencies, where they go, and every reason to doubt them."""
    results = report.results
    lines = [
        f"{report.subject.name}: {report.machine.processor}, {report.machine.usable_cpus} "
        f"processors usable; {report.effort} of each case",
        "",
        aligned([HEAD, *(_row(result) for result in results)]),
        "",
        aligned([STAGE_HEAD, *(_stages(result) for result in results)]),
    ]
    lines += [f"UNSTABLE  {case_name(r)}: {reason}" for r in results for reason in r.reasons]
    lines += [f"WRONG  {case_name(r)}: {wrong_text(r)}" for r in results if not r.fidelity.passed]
    lines += [
        f"not measured  {one.backend} {one.precision}, {one.size}, tile {one.tile}: {one.reason}"
        for one in report.skipped
    ]
    return "\n".join(lines)


def case_name(result: Result) -> str:
    return (
        f"{result.backend} {result.precision}, {result.width}x{result.height}, {plan_text(result)}"
    )


def plan_text(result: Result) -> str:
    plan = result.plan
    if plan.tiles == 1:
        return "at once"
    return f"{plan.tiles} tiles of {plan.tile_width}x{plan.tile_height}, halo {plan.halo}"


def state_text(result: Result) -> str:
    """Empty where nothing is wrong."""
    if not result.fidelity.passed:
        return "WRONG"
    return "" if result.stable else "UNSTABLE"


def psnr_text(result: Result) -> str:
    value = result.fidelity.psnr
    if value is None:
        return "not compared"
    return "identical" if value >= PSNR_CEILING else f"{value:.1f} dB"


def wrong_text(result: Result) -> str:
    found = result.fidelity
    return (
        f"the output has {psnr_text(result)}, off by up to {found.max_levels} of 255, against "
        f"{found.reference}; {found.limit:.0f} dB were due"
    )


def seconds_text(seconds: float) -> str:
    """At least three digits with the unit that suits them."""
    if not seconds:
        return "0"
    if seconds >= 999.5:  # `g` would write 1e+03
        return f"{seconds:.0f} s"
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def bytes_text(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count else "unknown"


def aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(result: Result) -> tuple[str, ...]:
    latency = result.latency
    return (
        result.backend,
        result.precision,
        f"{result.width}x{result.height}",
        plan_text(result),
        *(seconds_text(t) for t in (latency.p50, latency.p90, latency.p95, latency.p99)),
        f"{result.images_per_second:.3g}",
        f"{result.megapixels_per_second:.3g}",
        bytes_text(result.memory.host_peak),
        psnr_text(result),
        state_text(result),
    )


def _stages(result: Result) -> tuple[str, ...]:
    means = [result.stages[name].mean for name in STAGES]
    whole = sum(means) or 1.0
    shares = (f"{seconds_text(mean)} ({mean / whole:.0%})" for mean in means)
    return (case_name(result), *shares)
