from __future__ import annotations

import base64
import html
import io
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pixelrt.bundle import Bundle, encode_reference
from pixelrt.cli import report_pictures as pictures
from pixelrt.cli.report import write_report
from pixelrt.cli.report_markup import Html, element, markup
from pixelrt.errors import OutputError
from pixelrt.fidelity import compare, histogram
from pixelrt.manifest import Component, Manifest, Measured, MemoryNeed, Reference, Source
from pixelrt.runtime.backends.base import BackendInfo, Sample
from pixelrt.runtime.verify import IMAGE_MIN_PSNR, LEVEL, Check, Limits
from pixelrt.spec import ImageSpec, ReceptiveField, Tolerance

EVIL = "<script>alert('x')</script>\"&"
LIMIT = 4e-5
HEIGHT, WIDTH, SCALE = 12, 16, 2
CPU = BackendInfo("onnxruntime-cpu", "1.24.0", "Intel(R) <Xeon>", "float32")


# --- checks made by hand --------------------------------------------------------------


def make_bundle(root: Path, *, name: str = "demo", channels: int = 3) -> Bundle:
    """A bundle with one reference sample; graphs are not needed to report."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (1, HEIGHT, WIDTH, channels), dtype=np.uint8)
    outputs = expected_core(channels)
    (root / "reference").mkdir(parents=True, exist_ok=True)
    (root / "reference" / "noise.npz").write_bytes(encode_reference(inputs, outputs))
    manifest = Manifest(
        format=1,
        name=name,
        family="swin2sr",
        variant=name,
        config={"upscale": name},
        source=Source("checkpoint", name + ".safetensors", sha256="ab" * 32),
        image=ImageSpec("super-resolution", SCALE, channels, channels, 1, 1, "symmetric", "local"),
        receptive_field=ReceptiveField(1, 4),
        tolerance=Tolerance(LIMIT / 4),
        memory=MemoryNeed(0, 1),
        components=[Component("network", "float32", [])],
        references=[sample(name)],
        fidelity=[Measured("onnxruntime-cpu", "noise", 1.25e-6, 120.0)],
        made_by={"pixelrt": "0.1.0", "torch": "2.9.0"},
        files={},
    )
    return Bundle(root, manifest, "cd" * 32)


def sample(name: str = "noise") -> Reference:
    return Reference(name, "noise", "reference/noise.npz", HEIGHT, WIDTH)


def taken(expected: NDArray[np.float32], name: str) -> Sample:
    pixels = np.random.default_rng(0).integers(
        0, 256, (1, HEIGHT, WIDTH, expected.shape[1]), dtype=np.uint8
    )
    return Sample(name, pixels, expected, "noise")


def expected_core(channels: int = 3) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    return rng.uniform(0.1, 0.9, (1, channels, SCALE * HEIGHT, SCALE * WIDTH)).astype(np.float32)


def core_check(error: Any = 0.0, *, channels: int = 3, name: str = "noise") -> Check:
    """Core check whose output is the expected one plus ``error``."""
    expected = expected_core(channels)
    actual = (expected + np.asarray(error, np.float32)).astype(np.float32)
    got = compare(expected, actual)
    shown = taken(expected, name)
    return Check(shown, "core", CPU, got, Limits(LIMIT, 0.0), actual, expected)


def image_check(error: Any = 0, *, channels: int = 3) -> Check:
    """Image check whose output is off by ``error`` levels."""
    levels = np.rint(expected_core(channels) * 255).transpose(0, 2, 3, 1)
    actual = (levels + error).astype(np.uint8)
    got = compare(levels / 255, actual / 255.0)
    shown = taken(expected_core(channels), "noise")
    return Check(shown, "image", CPU, got, Limits(LEVEL * 1.001, IMAGE_MIN_PSNR), actual, levels)


def one_value(value: float, channels: int = 3) -> NDArray[np.float32]:
    """An error in the first channel of pixel (y 3, x 5) only."""
    error = np.zeros_like(expected_core(channels))
    error[0, 0, 3, 5] = value
    return error


def small_noise(channels: int = 3) -> NDArray[np.float32]:
    rng = np.random.default_rng(2)
    return rng.normal(0, 1e-6, expected_core(channels).shape).astype(np.float32)


def page_of(tmp_path: Path, *checks: Check, **bundle: Any) -> str:
    path = tmp_path / "report.html"
    write_report(path, make_bundle(tmp_path / "b", **bundle), list(checks))
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Elements by name, the visible text, and whether all elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: dict[str, list[dict[str, str]]] = {}
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.setdefault(tag, []).append({k: v or "" for k, v in attrs})
        if tag not in {"img", "input", "meta", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"script", "style"}:
            self.words.append(data)


def picture(uri: str) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    return np.asarray(image)


def picture_by_alt(page: Page, start: str) -> NDArray[np.uint8]:
    return picture(next(i["src"] for i in page.elements["img"] if i["alt"].startswith(start)))


# --- what the page says ---------------------------------------------------------------


def test_all_passed(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path, core_check(small_noise()), image_check()))
    assert page.open == []
    assert "✓ All 2 checks passed" in page.text
    assert "FAILED" not in page.text
    for fact in ("swin2sr, variant demo", "ab" * 32, "cd" * 32, "torch 2.9.0", "1.0e-05 at export"):
        assert fact in page.text
    for fact in ("scale x2", "onnxruntime-cpu 1.24.0", "Intel(R) <Xeon>", "1.25e-06 at most, by"):
        assert fact in page.text


def test_failure_says_why_and_where(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path, core_check(), core_check(one_value(4e-3))))
    assert "✗ 1 of 2 checks failed" in page.text
    assert (
        "noise on onnxruntime-cpu, core graph : max abs 4.00e-03 is 100 times the limit"
        in page.text
    )
    assert "1 of 768 pixels above the limit" in page.text
    assert {"href": "#check-1"} in page.elements["a"]
    assert any(a.get("id") == "check-1" for a in page.elements["article"])


def test_image_graph_fails_by_psnr(tmp_path: Path) -> None:
    """One level everywhere is within max abs, and still too much."""
    page = Page(page_of(tmp_path, image_check(1)))
    assert "48.1 dB is less than 68 dB" in page.text
    assert "above the limit" not in page.text.replace("above the limit NaN", "")


def test_table_has_every_number(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path, core_check(one_value(1e-5))))
    for cell in ("16×12", "1.00e-05", "0", "max abs ≤ 4.00e-05", "✓ passed", "1 − "):
        assert cell in page.text
    scopes = [th.get("scope") for th in page.elements["th"]]
    assert set(scopes) == {"row", "col"}


def test_identical_is_said_not_drawn(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path, core_check(), image_check()))
    assert page.text.count("Bit-identical : all 2 304 values equal the reference.") == 2
    assert "∞ dB" in page.text
    assert not any("difference" in i["alt"] for i in page.elements["img"])


def test_negative_zero_is_equal_but_not_bit_identical(tmp_path: Path) -> None:
    check = core_check()
    check.expected[0, 0, 0, 0], check.actual[0, 0, 0, 0] = 0.0, -0.0
    page = Page(page_of(tmp_path, check))
    assert "Equal : all" in page.text
    assert "Bit-identical" not in page.text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 3])
def test_not_finite_is_magenta(tmp_path: Path, value: float, channels: int) -> None:
    check = core_check(one_value(value, channels), channels=channels)
    page = Page(page_of(tmp_path, check, channels=channels))
    assert "1 of" in page.text
    assert "values are NaN or infinite" in page.text
    for start in ("Output for", "Absolute difference"):
        shown = picture_by_alt(page, start)
        assert tuple(shown[3, 5]) == pictures.MAGENTA
        assert np.all(shown == pictures.MAGENTA, axis=-1).sum() == 1


def test_everything_not_finite(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path, core_check(np.nan)))
    assert np.all(picture_by_alt(page, "Absolute difference") == pictures.MAGENTA)


def test_grey(tmp_path: Path) -> None:
    checks = core_check(small_noise(1), channels=1), image_check(channels=1)
    page = Page(page_of(tmp_path, *checks, channels=1))
    shown = picture_by_alt(page, "Output for")
    assert shown.shape == (SCALE * HEIGHT, SCALE * WIDTH)
    assert np.array_equal(shown, np.rint(checks[0].actual[0, 0] * 255))
    assert picture_by_alt(page, "Input").shape == (HEIGHT, WIDTH)


def test_no_checks_is_no_success(tmp_path: Path) -> None:
    assert "✗ No check was run" in Page(page_of(tmp_path)).text


def test_random_weights_are_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    fields = {f: getattr(bundle.manifest, f) for f in bundle.manifest.__struct_fields__}
    manifest = Manifest(**{**fields, "source": Source("random", "swin2sr", seed=7)})
    write_report(tmp_path / "r.html", Bundle(bundle.root, manifest, "ef" * 32), [core_check()])
    text = Page((tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "random weights, seed 7" in text
    assert "the pictures mean nothing" in text


def test_text_is_escaped(tmp_path: Path) -> None:
    text = page_of(tmp_path, core_check(one_value(1.0), name=EVIL), name=EVIL)
    assert "<script>alert" not in text
    assert html.escape(EVIL) in text
    page = Page(text)
    assert len(page.elements["script"]) == 1
    assert EVIL in page.text
    assert any(EVIL in image["alt"] for image in page.elements["img"])


def test_page_asks_for_nothing_outside(tmp_path: Path) -> None:
    text = page_of(tmp_path, core_check(small_noise()))
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.search(r"https?://|url\(", text)


def test_write_failure_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_report(tmp_path / "none" / "r.html", make_bundle(tmp_path / "b"), [core_check()])


# --- pictures and numbers -------------------------------------------------------------


def test_factor_makes_the_largest_error_bright() -> None:
    assert pictures.visible_factor(np.array([[1.2e-5]])) == 50_000
    assert pictures.visible_factor(np.array([[0.9]])) == 1
    assert pictures.visible_factor(np.array([[np.nan]])) == pictures.FACTORS[-1] == 10**8


def test_difference_colours() -> None:
    worst = np.array([[0.0, 1e-5, 1e-4, 1e-1, np.nan]])
    shown = pictures.show_difference(worst, 10_000, 5e-5)[0].tolist()
    assert shown[0] == [0, 0, 0]
    assert shown[1] == [26, 26, 26]
    assert shown[2] == shown[3] == [255, 76, 76]
    assert shown[4] == list(pictures.MAGENTA)


def test_error_above_the_limit_is_never_dark() -> None:
    assert pictures.show_difference(np.array([[1e-4]]), 1, 5e-5)[0, 0].tolist() == [110, 0, 0]


def test_packed_difference_keeps_size_and_side_of_the_limit() -> None:
    rng = np.random.default_rng(3)
    worst = 10.0 ** rng.uniform(-9, 1, (7, 9))
    worst[0, :3] = 0.0, np.nan, LIMIT
    raw = zlib.decompress(base64.b64decode(pictures.pack_difference(worst, LIMIT)))
    halves = np.frombuffer(raw, np.uint8).reshape(2, 7, 9).astype(np.uint32)
    values = ((halves[0] << 24) | (halves[1] << 16)).view(np.float32)
    assert np.array_equal(np.isnan(values), np.isnan(worst))
    np.testing.assert_allclose(np.abs(values), worst, rtol=0.004)
    assert np.array_equal(np.signbit(values), worst > LIMIT)


def test_decades_are_those_of_fidelity() -> None:
    check = core_check(small_noise())
    error = pictures.absolute_error(check)
    lines = histogram(check.expected, check.actual).splitlines()
    counts = [int(line.split()[3]) for line in lines]
    zeros = int(np.count_nonzero(error == 0))
    decades = pictures.count_decades(error, LIMIT)
    assert sum(counts) == zeros + sum(count for _, _, count, _ in decades)
    assert decades[-1][2] == counts[-1]


def test_decades_split_at_the_limit() -> None:
    error = np.array([[[2e-5, 3e-5, 5e-5, 2e-4]]])
    assert pictures.count_decades(error, LIMIT) == [(1e-5, 1e-4, 3, 1), (1e-4, 1e-3, 1, 1)]


def test_image_difference_is_in_parts_of_one() -> None:
    error = pictures.absolute_error(image_check(1))
    np.testing.assert_allclose(error, 1 / 255)


def test_markup_escapes_what_is_not_markup() -> None:
    assert markup("<", Html("<br>")) == "&lt;<br>"
    assert element("p", "a&b", title='"', hidden=True, inert=False) == (
        '<p title="&quot;" hidden>a&amp;b</p>'
    )


# --- in a browser ---------------------------------------------------------------------

CHROMIUM_ARGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def find_chromium() -> str:
    """Path of a Chromium; skips the test where there is none, and fails under CI."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for found in map(shutil.which, names) if found), None)
    if path:
        return path
    if os.environ.get("CI"):
        pytest.fail(f"none of {', '.join(names)} is installed, and CI must have one")
    pytest.skip(f"none of {', '.join(names)} is installed")


@contextmanager
def opened(report: Path, **context: Any) -> Iterator[Any]:
    """The report in Chromium. At the end: no console message, no error, no request outside."""
    from playwright.sync_api import sync_playwright

    executable = find_chromium()
    troubles: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=executable, args=CHROMIUM_ARGS)
        try:
            page = browser.new_page(**context)
            page.on("console", lambda message: troubles.append(message.text))
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.on("request", lambda request: troubles.append(request.url[:60]))
            page.goto(report.as_uri())
            yield page
        finally:
            browser.close()
    outside = [t for t in troubles if not t.startswith(("file:", "data:"))]
    assert outside == []


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """All kinds of checks on one page."""
    checks = [
        core_check(small_noise()),
        image_check(),
        core_check(one_value(np.nan) + small_noise()),
        core_check(one_value(0.1) + small_noise(), name=EVIL),
    ]
    page_of(tmp_path, *checks, name=EVIL)
    return tmp_path / "report.html"


# By way of a second canvas: Chromium warns about reading one often that is not made for it.
CANVAS_PIXELS = """canvas => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height)
    .getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def canvas_pixels(page: Any, index: int) -> NDArray[np.uint8]:
    canvas = page.locator(".difference").nth(index).locator("canvas")
    values = np.array(canvas.evaluate(CANVAS_PIXELS), np.uint8)
    return values.reshape(SCALE * HEIGHT, SCALE * WIDTH, 4)[..., :3]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_shown_well(report: Path, scheme: str, width: int) -> None:
    view = {"width": width, "height": 844}
    with opened(report, color_scheme=scheme, viewport=view) as page:
        widths = page.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
        assert len(widths) > 10
        assert all(widths)
        inner = "document.documentElement.scrollWidth <= window.innerWidth"
        assert page.evaluate(inner)
        page.select_option("#zoom", "8")
        assert page.evaluate(inner)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 21, 24)")


@pytest.mark.browser
def test_amplification_changes_the_difference(report: Path) -> None:
    with opened(report) as page:
        figure = page.locator(".difference").nth(0)
        started = picture(figure.locator("img").get_attribute("src"))
        slider = figure.get_by_label("Amplify")
        slider.focus()
        page.keyboard.press("ArrowRight")
        figure.locator("canvas").wait_for()
        brighter = canvas_pixels(page, 0)
        assert brighter.mean() > started.mean() * 1.3
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(100)
        # The browser paints what Python painted, but for bfloat16's last bit.
        assert np.abs(canvas_pixels(page, 0).astype(int) - started).max() <= 1
        assert "times" in (figure.locator("canvas").get_attribute("aria-label") or "")


@pytest.mark.browser
def test_amplify_all_and_colours(report: Path) -> None:
    with opened(report) as page:
        page.select_option("#amplify-all", label="× 1")
        page.locator("canvas").nth(2).wait_for()
        assert page.locator(".factor").all_inner_texts() == ["× 1"] * 3
        assert tuple(canvas_pixels(page, 1)[3, 5]) == pictures.MAGENTA
        assert tuple(canvas_pixels(page, 2)[3, 5]) == (110, 8, 8)


@pytest.mark.browser
def test_wipe_and_flicker(report: Path) -> None:
    with opened(report) as page:
        output = page.locator(".output").nth(0)
        assert output.locator(".over").evaluate("e => getComputedStyle(e).clipPath") == (
            "inset(0px 100% 0px 0px)"
        )
        output.get_by_label("Wipe to reference").fill("40")
        assert output.locator(".stack").evaluate("e => e.style.getPropertyValue('--wipe')") == "40%"
        button = output.get_by_role("button", name="Flicker")
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "false"


@pytest.mark.browser
def test_readable_without_script(report: Path) -> None:
    with opened(report, java_script_enabled=False) as page:
        assert page.get_by_text("2 of 4 checks failed").first.is_visible()
        assert page.locator(".difference img").count() == 3
        assert not page.get_by_role("slider").first.is_visible()


@pytest.mark.browser
def test_large_difference_is_never_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone wrong pixel would be averaged away."""
    monkeypatch.setattr("pixelrt.cli.report_check.SHOWN_WIDTH", 10)
    page_of(tmp_path, core_check(one_value(0.1)))
    with opened(tmp_path / "report.html", viewport={"width": 60, "height": 800}) as page:
        box = page.locator(".difference img").bounding_box()
        assert (box["width"], box["height"]) == (SCALE * WIDTH, SCALE * HEIGHT)
