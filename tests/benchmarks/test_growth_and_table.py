"""How cost grows, the files of results, and the tables of the pages made from them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from benchmarks import growth, start, table
from benchmarks.records import (
    FORMAT,
    Absent,
    Ceiling,
    Compared,
    CompareReport,
    DiffusionReport,
    GpuReport,
    GpuRow,
    Growth,
    GrowthReport,
    OpenVinoCase,
    OpenVinoReport,
    OpenVinoRow,
    Origin,
    Pair,
    Side,
    StartReport,
    StartRow,
    decode_record,
    read_record,
    write_record,
)
from benchmarks.script import run_command
from benchmarks.summary import summary
from benchmarks.table import (
    BEGIN,
    BENCHMARKS,
    DIFFUSION,
    END,
    OPENVINO,
    README,
    RESULTS,
    render,
    render_page,
    tables_of,
    with_tables,
)
from pixelrt.bench.schema import Warmup
from pixelrt.bench.statistics import summarise
from pixelrt.bench.steady import Effort
from pixelrt.errors import BackendError, InputError, UsageError
from pixelrt.geometry import Size
from pixelrt.runtime.planning import RunOptions
from tests.bench.test_schema import make_report, make_result

SUBJECT = make_report().subject


def made_by(command: str) -> Origin:
    return Origin(FORMAT, "2026-02-03T00:00:00+00:00", command, "0.1.0", make_report().machine)


def side(name: str, *, seconds: float = 1.0, stable: bool = True) -> Side:
    return Side(
        name=name, settings="best", precision="float16", note="", parts=1,
        seconds=summarise([seconds] * 3), warmup=Warmup(3, 3.0, 1.0, True, 0.0),
        peak_memory=2**30, psnr=61.25, compared="the whole output", share=0.415,
        stable=stable, reasons=[] if stable else ["busy"],
    )  # fmt: skip


def compare_report(**changes: Any) -> CompareReport:
    pair = Pair(side("torch | eager", seconds=6.0), side("pixelrt"), 11, 6.0, 5.5, 6.5)
    shaky = Pair(side("onnx", seconds=2.0, stable=False), side("pixelrt"), 11, 2.0, 1.9, 2.1)
    absent = Absent("torch.compile", "pixelrt", "no compiler")
    case = Compared("srgan-x4 128x128", SUBJECT, 128, 128, 25_000_000_000, [pair, shaky], [absent])
    facts: dict[str, Any] = {
        "origin": made_by("python -m benchmarks.compare"), "quick": False,
        "ceilings": [Ceiling("a", "float16", 2e12, ""), Ceiling("c", "bytes", 3e10, "")],
        "cases": [case],
    }  # fmt: skip
    return CompareReport(**{**facts, **changes})


def growth_report() -> GrowthReport:
    rows = [
        Growth("size", "0.25 MP", 2, make_result(), ""),
        Growth("size", "100 MP", 2, None, "too large"),
        Growth("tile", "64", 2, make_result(), ""),
        Growth("threads", "1", 1, make_result(stable=False, reasons=["busy"]), ""),
    ]
    origin = made_by("python -m benchmarks.growth")
    return GrowthReport(origin=origin, quick=False, subject=SUBJECT, rows=rows)


def gpu_report() -> GpuReport:
    rows = [
        GpuRow("copies", "copy in, pinned", summarise([0.001]), {"GB/s": 55.25}, "", ""),
        GpuRow("end to end", "onnxruntime CUDA", None, {}, "", "no CUDA provider"),
    ]
    origin = made_by("python -m benchmarks.gpu")
    return GpuReport(origin=origin, quick=False, device="A GPU", rows=rows, timeline="|##|")


def openvino_report() -> OpenVinoReport:
    def row(part: str, name: str, note: str = "", **facts: float) -> OpenVinoRow:
        named = {key.replace("_", " "): value for key, value in facts.items()}
        return OpenVinoRow(part, name, named, note=note)

    conv = {"count": 2.0, "seconds": 0.006, "multiply-adds": 3e9}
    rows = [
        row("psnr", "bfloat16", photo=50.25, noise=49.5, max_abs=0.03),
        row("psnr", "bfloat16 with float32 convolutions and sums", photo=60.25, noise=57.0),
        OpenVinoRow("psnr", "float16", {}, reason="not here"),
        row("psnr", "weights", photo=55.0, noise=54.0),
        row("psnr", "inputs, two-term weights", photo=56.0, noise=53.0),
        row("opening", "bfloat16", compiled=0.5, read=0.125, kept=1.0),
        row("shape", "float32", any_shape=0.5, one_shape=0.25, saved=0.5, compiling=2.0),
        row("memory", "bfloat16", bytes_per_pixel=608.4),
        row("memory", "bfloat16, one shape", bytes_per_pixel=202.4),
        row("memory", "float32", bytes_per_pixel=900.0),
        row("memory", "estimate", bytes_per_pixel=1877.0),
        row("operations", "all", "bfloat16 and float32", seconds=0.01, seconds_of_a_run=0.011),
        OpenVinoRow("operations", "Convolution fast", conv),
        row("operations", "Convolution slow", count=1, seconds=0.002),
        row("operations", "Add jit", count=7, seconds=0.0019),
        row("operations", "Reorder jit", count=3, seconds=0.00005),
        row("operations", "Split jit", count=1, seconds=0.00005),
    ]
    failed = [OpenVinoRow(part, "", {}, reason=f"no {part}") for part in ("memory", "operations")]
    return OpenVinoReport(
        origin=made_by("python -m benchmarks.openvino"), quick=False,
        ceilings=[Ceiling("a", "bfloat16", 2e12, "")],
        cases=[OpenVinoCase("srgan-x4 128x128", SUBJECT, 128, 128, rows),
               OpenVinoCase("demo 256x256", SUBJECT, 256, 256, failed)],
    )  # fmt: skip


def diffusion_report() -> DiffusionReport:
    compared, counted = compare_report(), openvino_report()
    facts = {"seconds": 0.002, "share": 0.0002}
    return DiffusionReport(
        origin=made_by("python -m benchmarks.diffusion"), quick=False,
        ceilings=counted.ceilings, cases=compared.cases, operations=counted.cases,
        overhead=[OpenVinoRow("overhead", "euler", facts)],
    )  # fmt: skip


def start_report() -> StartReport:
    rows = [
        StartRow("python", "starts", summarise([0.01, 0.02, 0.03]), True),
        StartRow("pixelrt run", "demo", summarise([0.5, 0.75, 1.0]), False),
    ]
    origin = made_by("python -m benchmarks.start")
    return StartReport(origin=origin, quick=False, width=64, height=48, rows=rows)


REPORTS = [
    *(compare_report, growth_report, gpu_report),
    *(openvino_report, diffusion_report, start_report),
]


@pytest.mark.parametrize("make", REPORTS)
def test_files_round_trip(make: Any, tmp_path: Path) -> None:
    write_record(tmp_path / "deep" / "x.json", make())
    assert read_record(tmp_path / "deep" / "x.json") == make()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: raw.update(kind="song"), "unknown kind"),
        (lambda raw: raw.update(more=1), "more"),
        (lambda raw: raw["cases"][0]["pairs"][0].pop("ratio"), "ratio"),
        (lambda raw: raw["origin"].update(format=9), "format 9"),
        (lambda raw: raw.pop("kind"), "kind"),
    ],
)
def test_damaged_files_are_refused(damage: Any, words: str, tmp_path: Path) -> None:
    write_record(tmp_path / "x.json", compare_report())
    raw = json.loads((tmp_path / "x.json").read_bytes())
    damage(raw)
    with pytest.raises(InputError, match=words):
        decode_record(json.dumps(raw).encode(), "x.json")


def test_a_number_that_is_none_is_not_kept(tmp_path: Path) -> None:
    bad = compare_report(ceilings=[Ceiling("a", "float16", float("nan"), "")])
    with pytest.raises(InputError, match="per_second"):
        write_record(tmp_path / "x.json", bad)
    assert not (tmp_path / "x.json").exists()


def test_tables_say_everything() -> None:
    text = render(
        [("a.json", compare_report()), ("b.json", growth_report()), ("c.json", gpu_report())]
    )
    for words in (
        "**srgan-x4 128x128**, 50 GFLOP",
        "| torch / eager | 6 s | 1 s, float16 | **6.00×** (5.50 to 6.50) | 42%, 42% |",
        "**2.00×** (1.90 to 2.10) (unstable)",
        "| torch.compile | not measured: no compiler |",
        "2000 GFLOP/s in float16, 30 GB/s copied",
        "| 0.25 MP | 1.02 s | 204 s | 95 MiB | 2 tiles of 80x50, halo 12 | 1.60 | 70.1 dB |",
        "| 100 MP | not measured: too large |",
        "| 1 processors | 1.02 s (unstable) |",
        "| copies | copy in, pinned | 1 ms | GB/s 55.25 |",
        "not measured: no CUDA provider",
        "`python -m benchmarks.compare`, 2026-02-03, a processor, 2 processors",
        "(benchmarks/results/b.json)",
    ):
        assert words in text, words
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.endswith("|") for row in rows)
    assert any(row.startswith("| in tiles of 64 | ") for row in rows)


def test_table_of_starts() -> None:
    text = render([("s.json", start_report())])
    for words in (
        "**A picture of 64x48**",
        "| python | starts | 20 ms | 10 ms | 30 ms |",
        "| pixelrt run | demo | 750 ms (unstable) | 500 ms | 1 s |",
    ):
        assert words in text, words


def test_starts_are_measured_and_failures_told(tmp_path: Path) -> None:
    out = tmp_path / "start.json"
    assert run_command(start.main, ["--quick", "-o", str(out)]) == 0
    found = read_record(out)
    assert isinstance(found, StartReport)
    times = {row.name: row.seconds.p50 for row in found.rows}
    assert times["python"] < times["pixelrt run"]
    failing = start.Start("x", "", ("-c", "raise SystemExit('no such thing')"), None, tmp_path)
    with pytest.raises(BackendError, match="no such thing"):
        start.run(failing, tmp_path)


def test_tables_of_openvino() -> None:
    text = render([("o.json", openvino_report())], "../elsewhere")
    name = SUBJECT.name
    for words in (
        f"| {name} | not followed | 50.2 / 49.5 | – | 60.2 / 57.0 | – | 55.0 / 54.0 | – |",
        "| – | 56.0 / 53.0 | – | – |",
        "| srgan-x4 128x128 | float32 | 500 ms | 250 ms | 50% | 2 s |",
        f"| {name} | bfloat16 | 500 ms | 125 ms | reads it |",
        f"| {name} | 1877 | – | – | 608 / 202 | – | – | 900 |",
        f"| {name} | not measured: no memory |",
        "**Operations of srgan-x4 128x128** in bfloat16 and float32: 10 ms in all operations, ",
        "| **Convolution** | all | 3 | 8 ms | 80% | 750 (38%) |",
        "| Convolution | fast | 2 | 6 ms | 60% | 1000 (50%) |",
        "| Convolution | slow | 1 | 2 ms | 20% |  |",
        "| Add | jit | 7 | 1.9 ms | 19% |  |",
        "| others |  | 4 | 100 µs | 1% |  |",
        "**Operations of demo 256x256**: not measured: no operations",
        "(../elsewhere/o.json)",
    ):
        assert words in text, words
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_each_page_has_its_own_results() -> None:
    results = [("a.json", compare_report()), ("o.json", openvino_report())]
    readme, all_rows, page = (render_page(one, results) for one in (README, BENCHMARKS, OPENVINO))
    assert "(../benchmarks/results/a.json)" in all_rows
    assert "o.json" not in all_rows
    assert ".json" not in readme
    assert "(../benchmarks/results/o.json)" in page
    assert "a.json" not in page


def test_the_summary_has_a_row_for_each_network() -> None:
    """Of what pixelrt ran by its own choice; OpenVINO in that precision."""
    pairs = [
        Pair(side("torch eager float32", seconds=6.0), side("pixelrt"), 11, 6.0, 5.5, 6.5),
        Pair(side("onnxruntime bare", stable=False), side("pixelrt"), 11, 2.0, 1.9, 2.1),
        Pair(side("openvino float32 bare"), side("pixelrt float32"), 11, 1.5, 1.4, 1.6),
        Pair(side("openvino float16 bare"), side("pixelrt float16"), 11, 1.25, 1.2, 1.3),
    ]
    case = Compared("srgan-x4 128x128", SUBJECT, 128, 128, 25_000_000_000, pairs, [])
    alone = Compared("unet 256x256", SUBJECT, 256, 256, 1, pairs[2:], [])
    text = "\n".join(summary([compare_report(cases=[case, alone])]))
    row = "| srgan-x4 128x128 | 1 s, float16 | 6.00× | – | ~2.00× | 1.25× | 42% | 61.2 dB |"
    assert row in text
    assert "**a processor, 2 processors**" in text
    assert "unet" not in text


def test_trials_are_not_shown() -> None:
    with pytest.raises(InputError, match="--quick"):
        render([("a.json", compare_report(quick=True))])


def test_tables_go_between_the_markers() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    new = with_tables(page, render([]))
    assert new == f"before\n{BEGIN}\n{END}\nafter\n"
    assert with_tables(new, render([])) == new
    with pytest.raises(InputError, match="no place"):
        with_tables("no markers", "x")


def test_the_command_writes_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, other, third = (tmp_path / name for name in ("README.md", "openvino.md", "diffusion.md"))
    rows = tmp_path / "benchmarks.md"
    for one in (page, rows, other, third):
        one.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    write_record(tmp_path / "results" / "a.json", compare_report())
    monkeypatch.setattr(table, "README", page)
    monkeypatch.setattr(table, "BENCHMARKS", rows)
    monkeypatch.setattr(table, "OPENVINO", other)
    monkeypatch.setattr(table, "DIFFUSION", third)
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    assert run_command(table.main, ["--check"]) == 1
    assert run_command(table.main, []) == 0
    assert run_command(table.main, ["--check"]) == 0
    assert "| srgan-x4 128x128 |" in page.read_text(encoding="utf-8")
    assert "6.00×" in rows.read_text(encoding="utf-8")
    write_record(tmp_path / "results" / "o.json", openvino_report())
    assert run_command(table.main, ["--check"]) == 1
    assert run_command(table.main, []) == 0
    assert "50.2 / 49.5" in other.read_text(encoding="utf-8")
    write_record(tmp_path / "results" / "d.json", diffusion_report())
    assert run_command(table.main, ["--check"]) == 1
    assert run_command(table.main, []) == 0
    text = third.read_text(encoding="utf-8")
    for words in (
        "**6.00×**",
        "| euler | 2 ms | 0.02% |",
        "**Operations of srgan-x4 128x128** in bfloat16",
    ):
        assert words in text, words
    assert "0.02%" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [README, BENCHMARKS, OPENVINO, DIFFUSION], ids=lambda page: page.name
)
def test_the_pages_show_the_results_that_are_committed(page: Path) -> None:
    """Run `python -m benchmarks.table` where this fails."""
    expected = render_page(page, table.read_results(RESULTS))
    shown = tables_of(page.read_text(encoding="utf-8"))
    if shown is None:
        assert not expected, f"{page.name} has no markers for the tables of benchmarks/results/"
    else:
        assert shown == expected


def test_of_a_comparison_made_again_the_last_one_counts() -> None:
    """On another processor it is another one."""
    old, origin = compare_report(), compare_report().origin
    machine = msgspec.structs.replace(origin.machine, processor="another")
    later = msgspec.structs.replace(origin, made="2999-01-01T00:00:00")
    new = compare_report(origin=later)
    elsewhere = compare_report(origin=msgspec.structs.replace(origin, machine=machine))
    results = [("a", new), ("b", old), ("c", elsewhere), ("d", growth_report())]
    assert [name for name, _ in table.newest(results)] == ["a", "c", "d"]
    more = msgspec.structs.replace(old.cases[0], name="not measured again")
    kept = dict(table.newest([("a", new), ("b", compare_report(cases=[*old.cases, more]))]))["b"]
    assert isinstance(kept, CompareReport)
    assert [case.name for case in kept.cases] == ["not measured again"]


# --- growth ---------------------------------------------------------------------------


def test_sizes_are_what_they_are_called() -> None:
    for count in growth.MEGAPIXELS:
        size = growth.size_of(count)
        assert size.pixels / 1e6 == pytest.approx(count, rel=0.03)
        assert size.width % 8 == size.height % 8 == 0
    assert growth.size_of(12) == Size(3000, 4000)


def test_processors_double() -> None:
    assert growth.thread_counts(1) == [1]
    assert growth.thread_counts(6) == [1, 2, 4, 6]
    assert growth.thread_counts(8) == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("megapixels", "seconds", "expected"),
    [(4, 90.0, [5]), (12, 90.0, [1]), (12, 30.0, [1, 5])],
)
def test_large_images_that_take_minutes_run_once(
    megapixels: float, seconds: float, expected: list[int]
) -> None:
    """The last of the runs is what counts."""
    runs: list[int] = []

    def run(case: object, effort: Effort) -> Any:
        runs.append(effort.runs or 0)
        return SimpleNamespace(result=SimpleNamespace(latency=SimpleNamespace(p50=seconds)))

    bench: Any = SimpleNamespace(run=run)
    growth.measure_case(bench, growth.Shape(growth.size_of(megapixels), RunOptions()), Effort(5))
    assert runs == expected
    assert growth.ONCE.warmup.max_runs == 0


def test_every_sweep_has_its_points() -> None:
    found = {point.sweep for point in growth.points((), growth.MEGAPIXELS)}
    assert found == {"size", "tile", "halo", "threads"}
    sizes = [p.value for p in growth.points(("size",), growth.MEGAPIXELS)]
    assert sizes == ["0.25 MP", "1 MP", "4 MP", "12 MP", "50 MP", "100 MP"]
    with pytest.raises(UsageError, match="no sweep"):
        list(growth.points(("colour",), ()))


def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "g.json"
    arguments = ["--quick", "--sweep", "size", "--sweep", "threads", "-o", str(out)]
    assert run_command(growth.main, arguments) == 0
    report = read_record(out)
    assert isinstance(report, GrowthReport)
    assert [row.sweep for row in report.rows][:2] == ["size", "size"]
    for row in report.rows:
        assert row.result is not None, row.reason
        assert row.result.fidelity.passed
    assert "per megapixel" in capsys.readouterr().out


def test_what_fails_is_a_row(tmp_path: Path) -> None:
    arguments = ["--quick", "--sweep", "size", "--backend", "warp-drive", "-o", str(tmp_path / "g")]
    assert run_command(growth.main, arguments) == 0
    report = read_record(tmp_path / "g")
    assert isinstance(report, GrowthReport)
    assert all("there is no backend" in row.reason for row in report.rows)
