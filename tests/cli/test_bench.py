"""``pixelrt bench`` on the demonstration bundle: that it works, never how fast."""

from __future__ import annotations

import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrt.bench import harness
from pixelrt.bench.harness import Outcome
from pixelrt.bench.reference import Compared
from pixelrt.bench.schema import STAGES, Memory, Report, decode_report
from pixelrt.bench.statistics import Stability, summarise
from pixelrt.bench.steady import Effort
from pixelrt.cli import bench
from pixelrt.cli.bench_page import write_page
from pixelrt.cli.bench_plots import HEIGHT, WIDTH, Point, Series, make_axis, number_text, plot
from pixelrt.cli.bench_table import results_table, seconds_text
from pixelrt.cli.main import run
from pixelrt.errors import UsageError
from pixelrt.geometry import Region
from tests.bench.test_schema import make_report, make_result
from tests.cli.test_report import opened

QUICK = ("bench", "demo", "--quick", "--quiet")
VOID = {"meta", "link", "img", "br"}


class WellFormed(HTMLParser):
    """Fails on tags that do not nest; counts elements and collects ids and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def bench_demo(folder: Path, *more: str, code: int = 0) -> tuple[Report, str]:
    """Report and page of a quick run."""
    json_path, html_path = folder / "b.json", folder / "b.html"
    files = ("--json", str(json_path), "--html", str(html_path))
    assert run([*QUICK, *files, *more]) == code
    return decode_report(json_path.read_bytes()), html_path.read_text(encoding="utf-8")


def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, page = bench_demo(
        tmp_path, "--size", "40", "--size", "96x64", "--tile", "auto", "--tile", "48"
    )
    sizes = [(one.width, one.height) for one in report.results]
    assert sizes == [(40, 40), (96, 64), (96, 64)]  # at 40 both tiles come to the same
    for one in report.results:
        assert one.fidelity.passed
        assert one.fidelity.psnr is not None
        assert one.latency.runs == 3
        assert sorted(one.stages) == sorted(STAGES)
        assert (one.output_width, one.output_height) == (2 * one.width, 2 * one.height)
        assert one.memory.host_peak > 10_000_000
        assert len(one.fidelity.samples) == 5
    assert report.results[2].plan.tiles > 1
    printed = capsys.readouterr().out
    assert report.results[0].backend in printed
    parsed = WellFormed(page)
    assert parsed.count["svg"] >= 4
    assert parsed.count["img"] >= 2 * len(report.results)
    assert "script" not in parsed.count
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)|https?://|url\(""", page)


def test_a_wrong_output_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = harness.read_picture

    def spoilt(path: Path) -> Any:
        picture = real(path)
        if path.name == "output.png":
            picture.pixels[5, 6] ^= 0x80
        return picture

    monkeypatch.setattr(harness, "read_picture", spoilt)
    report, page = bench_demo(tmp_path, "--size", "40", code=1)
    assert report.results[0].fidelity.max_levels == 128
    assert "WRONG" in capsys.readouterr().out
    assert "✗ WRONG" in page
    assert "Difference × 1<" in page


@pytest.mark.parametrize(("strict", "code"), [((), 0), (("--strict",), 1)])
def test_unstable_runs_say_so_and_fail_under_strict(
    strict: tuple[str, ...],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shaky = Stability(0.5, ("medians of its windows differ by 50%",))
    monkeypatch.setattr(harness, "judge", lambda *_, **__: shaky)
    report, page = bench_demo(tmp_path, "--size", "40", *strict, code=code)
    assert not report.results[0].stable
    assert "UNSTABLE" in capsys.readouterr().out
    assert "differ by 50%" in page


def test_stable_runs_pass_under_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "judge", lambda *_, **__: Stability(0.01, ()))
    report, page = bench_demo(tmp_path, "--size", "40", "--strict")
    assert report.results[0].stable
    assert "✓ The one case was stable" in page


def test_what_cannot_be_measured_is_listed(tmp_path: Path) -> None:
    """A tile that holds nothing between its halos; --strict minds."""
    more = ("--size", "64", "--tile", "8", "--tile", "auto")
    report, page = bench_demo(tmp_path, *more)
    assert len(report.results) == len(report.skipped) == 1
    assert "a tile of 8 is too small" in report.skipped[0].reason
    assert "a tile of 8 is too small" in page
    assert run([*QUICK, *more, "--strict"]) == 1


def test_nothing_measured_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*QUICK, "--size", "64", "--tile", "8"]) == 2
    assert run([*QUICK, "--backend", "warp-drive"]) == 2
    assert run([*QUICK, "--precision", "float16", "--backend", "onnxruntime-cpu"]) == 4
    assert run(["bench", "no-such.pixelrt"]) == 3
    assert run([*QUICK, "--json", "/no/such/folder/b.json"]) == 5
    assert "does not run this graph in float16" in capsys.readouterr().err


def test_a_photograph_of_ones_own(tmp_path: Path, photo: Any) -> None:
    from PIL import Image

    Image.fromarray(photo).save(tmp_path / "mine.png")
    report, _ = bench_demo(
        tmp_path,
        "--size",
        "40x30",
        "--image",
        str(tmp_path / "mine.png"),
        "--reference-pixels",
        "0",
    )
    assert report.input == "mine.png"
    assert report.results[0].fidelity.psnr is None


@pytest.mark.parametrize("options", [{"repeats": 3, "seconds": 1.0}, {"repeats": 3, "quick": True}])
def test_contradicting_efforts(options: Any) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        bench.effort_of(**{"repeats": None, "seconds": None, "quick": False, **options})


def test_effort() -> None:
    assert bench.effort_of(7, None, False) == Effort(7)
    assert bench.effort_of(None, 2.0, False) == Effort(seconds=2.0)
    assert str(bench.effort_of(None, None, False)) == "5 s, at least 5 runs"


def test_table_has_every_case_and_doubt() -> None:
    doubtful = make_result(stable=False, reasons=["because"], precision="float16")
    text = results_table(make_report(make_result(), doubtful))
    assert "2 tiles of 80x50, halo 12" in text
    assert "UNSTABLE  onnxruntime-cpu float16" in text
    assert "not measured  cuda auto, all, tile all: no device" in text
    assert "204 ms (20%)" in text


def test_numbers_in_words() -> None:
    assert [seconds_text(t) for t in (0, 2e-6, 0.0123, 1.5, 75, 1888.6)] == [
        "0", "2 µs", "12.3 ms", "1.5 s", "75 s", "1889 s",
    ]  # fmt: skip
    assert number_text(1234567) == "1\u2009234\u2009567"


# --- plots ----------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[5.0], [3.0, 4.0], [0.001, 50.0], [7.0, 7.0], [9.0, 80.0]])
def test_axes_hold_their_values_and_ticks(values: list[float]) -> None:
    for zero in (True, False):
        axis = make_axis("x", values, 10, 110, number_text, zero=zero)
        assert len(axis.ticks) >= 2
        for value in (*values, *axis.ticks):
            assert 10 - 1e-6 <= axis.place(value) <= 110 + 1e-6
        places = [axis.place(value) for value in sorted(values)]
        assert places == sorted(places)


def test_a_plot_draws_every_point_inside() -> None:
    series = [
        Series(f"<{n}>", tuple(Point(10.0**x, 0.5 * x + n, 2.0 * x + n) for x in range(1, 4)))
        for n in range(1, 9)
    ]
    text = plot("T", series, "x", "y")
    parsed = WellFormed(text)
    assert parsed.count["polyline"] == 8
    assert parsed.count["title"] == 24
    assert "<1>" in parsed.words
    for x, y in re.findall(r"([\d.]+),([\d.]+)", " ".join(re.findall(r'points="([^"]+)"', text))):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


# --- the page in a browser ------------------------------------------------------------


def made_up_page(path: Path) -> None:
    """Three sizes of two precisions, one of them wrong and one unstable."""
    outcomes = []
    rng = np.random.default_rng(0)
    for precision, factor in (("float32", 1.0), ("float16", 0.3)):
        for side in (64, 256, 1024):
            seconds = [factor * side * side * 2e-7 * step for step in (1.0, 1.01, 1.2)]
            image = rng.integers(0, 256, (side, side, 3), np.uint8)
            output = image.repeat(2, 0).repeat(2, 1)
            wrong = precision == "float16" and side == 64
            expected = output ^ (8 if wrong else 0)
            region = Region(0, 0, 2 * side, 2 * side)
            compared = Compared(70.0, 8, region, expected, "the whole output")
            result = make_result(
                precision=precision,
                width=side,
                height=side,
                output_width=2 * side,
                output_height=2 * side,
                latency=summarise(seconds),
                megapixels_per_second=side * side / 1e6 / seconds[0],
                seconds_per_megapixel=seconds[0] / (side * side / 1e6),
                stable=side != 256,
                reasons=["the machine was busy"] if side == 256 else [],
                memory=Memory(side * 10**6, 10**7, "VmHWM", None, "none"),
            )
            outcomes.append(Outcome(result, image, output, compared))
    write_page(path, make_report(*(one.result for one in outcomes)), outcomes)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_shown_well(width: int, scheme: str, tmp_path: Path) -> None:
    made_up_page(tmp_path / "b.html")
    view = {"width": width, "height": 844}
    with opened(tmp_path / "b.html", color_scheme=scheme, viewport=view) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        sizes = page.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
        assert len(sizes) >= 12
        assert all(sizes)
        ink = "getComputedStyle(document.querySelector('.plot circle')).fill"
        expected = "rgb(11, 87, 164)" if scheme == "light" else "rgb(134, 189, 242)"
        assert page.evaluate(ink) == expected
        assert page.evaluate(TEXTS_THAT_OVERLAP) == []


TEXTS_THAT_OVERLAP = """() => [...document.querySelectorAll('.plot > svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')];
  const boxes = texts.map(t => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([name, a], i) => boxes.slice(i + 1).filter(([_, b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1
  ).map(([other]) => name + ' | ' + other));
})"""


def test_the_command_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pixelrt", "bench", "a b"])
    report, _ = bench_demo(tmp_path, "--size", "40")
    assert shlex.split(report.command) == ["pixelrt", "bench", "a b"]
