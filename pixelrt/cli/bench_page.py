"""``pixelrt bench --html``: numbers, plots and pictures on one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pixelrt.bench.harness import Outcome
from pixelrt.bench.schema import STAGES, Clocks, Report, Result
from pixelrt.cli.bench_pictures import case_pictures
from pixelrt.cli.bench_plots import Point, Series, number_text, plot
from pixelrt.cli.bench_table import (
    bytes_text,
    case_name,
    psnr_text,
    seconds_text,
    state_text,
    wrong_text,
)
from pixelrt.cli.report_check import badge
from pixelrt.cli.report_markup import Html, element, facts, markup, table
from pixelrt.cli.report_page import Frame, page
from pixelrt.cli.report_words import heading, verdict_box
from pixelrt.files import atomic_write

MEGA = 1_000_000
Group = Callable[[Result], str]
Value = Callable[[Result], float]


def write_page(path: Path, report: Report, outcomes: list[Outcome]) -> None:
    """Write ``report`` with the pictures of ``outcomes`` as one self-contained HTML page.

    It loads nothing and runs no script. Raises ``OutputError`` where ``path`` cannot be
    written.
    """
    with atomic_write(path) as file:
        file.write(render(report, outcomes).encode())


def render(report: Report, outcomes: list[Outcome]) -> str:
    """The page as text."""
    title = f"{report.subject.name} - pixelrt bench"
    command = "pixelrt bench --html"
    machine = report.machine
    what = f"Benchmark on {machine.processor}, {machine.usable_cpus} processors usable"
    head = heading(report.subject.name, what, datetime.fromisoformat(report.made))
    frame = Frame(title, head, report.pixelrt, command, styles=("bench.css",))
    return page(
        frame,
        "bench.html",
        verdict=_verdict(report),
        results=_results(report),
        skipped=_skipped(report),
        plots=markup(*plots(report.results)),
        stages=_stages(report.results),
        pictures=markup(*(case_pictures(one) for one in outcomes)),
        facts=_facts(report),
    )


def _verdict(report: Report) -> Html:
    """What to think of the numbers, before the numbers."""
    problems = [f"{case_name(r)}: {reason}" for r in report.results for reason in r.reasons]
    problems += [
        f"{case_name(r)}: {wrong_text(r)}" for r in report.results if not r.fidelity.passed
    ]
    good = not problems
    count = len(report.results)
    cases = "The one case was" if count == 1 else f"All {count} cases were"
    says = f"{cases} stable" if good else "Not all of these numbers can be relied on"
    items = [element("li", text) for text in problems]
    return verdict_box(
        says,
        items,
        element(
            "p",
            f"Each case was warmed up until windows of runs lay within 10 % of each other, then "
            f"measured ({report.effort}), from reading the file to writing the result. Input: "
            f"{report.input}.",
        ),
        _random(report),
        good=good,
    )


def _random(report: Report) -> Html:
    if not report.subject.weights.startswith("random"):
        return Html("")
    return element("p", "The weights are random: times are right, the pictures mean nothing.")


def _results(report: Report) -> Html:
    head = (
        *("case", "p50", "p90", "p95", "p99", "images/s", "MP/s", "s/MP", "peak memory"),
        *("PSNR", ""),
    )
    caption = "Latency from file to file; MP are megapixels of the input"
    return table(caption, head, [_result_row(one) for one in report.results], "results")


def _result_row(result: Result) -> tuple[str, ...]:
    times = result.latency
    return (
        element("span", case_name(result), class_="case"),
        *(seconds_text(t) for t in (times.p50, times.p90, times.p95, times.p99)),
        number_text(result.images_per_second),
        number_text(result.megapixels_per_second),
        number_text(result.seconds_per_megapixel),
        _memory_text(result),
        psnr_text(result),
        badge(not state_text(result), state_text(result) or "stable"),
    )


def _memory_text(result: Result) -> str:
    text = bytes_text(result.memory.host_peak)
    device = result.memory.device_peak
    return f"{text}, device {bytes_text(device)}" if device else text


def _skipped(report: Report) -> Html:
    if not report.skipped:
        return Html("")
    head = ("backend", "precision", "size", "tile", "why")
    rows: list[tuple[str, ...]] = [
        (one.backend, one.precision, one.size, one.tile, one.reason) for one in report.skipped
    ]
    return table("Asked for and not measured", head, rows, "skipped")


# --- plots ----------------------------------------------------------------------------


def plots(results: list[Result]) -> list[Html]:
    """The four plots; each has the results that it can tell something about."""
    if not results:
        return [element("p", "Nothing was measured.")]
    return [
        plot(
            "Latency over size",
            _grouped(
                results, _backend_and_plan, _megapixels, lambda r: r.latency.p50, whisker=True
            ),
            "megapixels",
            "p50, whisker to p95",
            y_label=seconds_text,
        ),
        plot(
            "Throughput over tile size",
            _grouped(results, _backend_and_size, _tile_side, lambda r: r.megapixels_per_second),
            "tile side, input pixels",
            "megapixels/s",
        ),
        plot(
            "Cost per megapixel",
            _grouped(results, _backend_and_plan, _megapixels, lambda r: r.seconds_per_megapixel),
            "megapixels",
            "time per megapixel",
            y_label=seconds_text,
        ),
        plot(
            "Peak memory over size",
            _grouped(results, _backend_and_plan, _megapixels, lambda r: r.memory.host_peak / 2**20),
            "megapixels",
            "host memory, MiB",
        ),
    ]


def _grouped(
    results: list[Result], group: Group, x: Value, y: Value, *, whisker: bool = False
) -> list[Series]:
    names = list(dict.fromkeys(group(one) for one in results))
    return [
        Series(
            name,
            tuple(
                Point(x(one), y(one), one.latency.p95 if whisker else None)
                for one in results
                if group(one) == name
            ),
        )
        for name in names
    ]


def _backend_and_plan(result: Result) -> str:
    return f"{result.backend} {result.precision}, {result.plan.asked}"


def _backend_and_size(result: Result) -> str:
    return f"{result.backend} {result.precision}, {result.width}×{result.height}"


def _megapixels(result: Result) -> float:
    return result.width * result.height / MEGA


def _tile_side(result: Result) -> float:
    return float((result.plan.tile_width * result.plan.tile_height) ** 0.5)


# --- stages, machine ------------------------------------------------------------------


def _stages(results: list[Result]) -> Html:
    names = [stage.replace("_", " ") for stage in STAGES]
    rows = [
        (
            element("span", case_name(one), class_="case"),
            _split(one),
            *(seconds_text(one.stages[stage].mean) for stage in STAGES),
        )
        for one in results
    ]
    key = [
        element("li", element("span", class_=f"swatch stage stage-{stage}"), f" {name}")
        for stage, name in zip(STAGES, names, strict=True)
    ]
    whole = table("Mean of each stage", ("case", "share", *names), rows, "stages")
    return markup(element("ul", *key, class_="legend"), whole)


def _split(result: Result) -> Html:
    means = {stage: result.stages[stage].mean for stage in STAGES}
    whole = sum(means.values()) or 1.0
    parts = [
        element("span", class_=f"stage-{stage}", style=f"width:{100 * mean / whole:.2f}%")
        for stage, mean in means.items()
    ]
    return element("div", *parts, class_="split")


def _facts(report: Report) -> Html:
    machine, subject = report.machine, report.subject
    rows = [
        ("family", f"{subject.family}, variant {subject.variant}"),
        ("weights", subject.weights),
        ("bundle sha256", element("span", subject.sha256, class_="mono")),
        ("backends", ", ".join(dict.fromkeys(_backend(one) for one in report.results))),
        ("processor", f"{machine.processor}, {machine.usable_cpus} of {machine.cpus} usable"),
        ("its features", ", ".join(machine.features) or "none of those that matter here"),
        ("clock", _clock_text(report.results)),
        ("governor", machine.governor or "the system does not tell"),
        (
            "load at the end",
            "unknown" if machine.load_average is None else f"{machine.load_average:.2f}",
        ),
        ("memory", f"{machine.memory / 2**30:.1f} GiB"),
        ("GPUs", ", ".join(machine.gpus) or "none"),
        ("system", machine.system),
        ("versions", ", ".join(f"{name} {text}" for name, text in machine.versions.items())),
        ("command", element("span", report.command, class_="mono")),
    ]
    return facts("Bundle and machine", rows)


def _backend(result: Result) -> str:
    engine = f", engine {result.engine}" if result.engine else ""
    name = f"{result.backend} {result.backend_version}"
    return f"{name} in {result.precision} on {result.device}{engine}"


def _clock_text(results: list[Result]) -> str:
    seen: list[Clocks] = [
        c for one in results for c in (one.clocks_before, one.clocks_after) if c is not None
    ]
    if not seen:
        return "the system does not tell"
    low, high = min(c.lowest for c in seen), max(c.highest for c in seen)
    return f"{low:.0f} to {high:.0f} MHz ({seen[0].source})"
