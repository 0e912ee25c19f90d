"""The report of a pipeline, of checks made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrt.cli.report_pipeline import write_pipeline_report
from pixelrt.fidelity import Comparison, compare
from pixelrt.manifest import PipelineManifest, PipelineReference, Source
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.runtime.verify import Limits, Outcome
from pixelrt.runtime.whole import WholeCheck
from pixelrt.whole_run import WholeRun
from tests.cli.test_report import CPU, EVIL, Page, opened

NAME = "text-to-image"
HEIGHT, WIDTH = 24, 32
GOOD = Outcome("unet-0", Comparison(1e-6, 120.0, 1.0, 0, 9), Limits(4e-4, 0.0))


def bundle(prompt: str = "a cat") -> PipelineBundle:
    manifest = PipelineManifest(
        format=2,
        name=prompt,
        family="stable-diffusion",
        variant="StableDiffusionPipeline",
        settings={},
        source=Source("checkpoint", "pipe", sha256="ab" * 32),
        networks=[],
        fidelity=[],
        made_by={"pixelrt": "0.1.0"},
        files={},
        references=[PipelineReference(NAME, "text_to_image", {"prompt": prompt}, "a.npz")],
    )
    return PipelineBundle(Path(), manifest, "cd" * 32)


def check(off: int = 0, errors: tuple[float, ...] = (1e-7, 2e-7, 0.0), **more: Any) -> WholeCheck:
    """Every eighth value of the picture ``off`` levels away, the latents by ``errors``."""
    rng = np.random.default_rng(0)
    images = rng.integers(50, 200, (1, HEIGHT, WIDTH, 3), np.uint8)
    actual = images.copy()
    actual.reshape(-1)[::8] += np.uint8(off)
    steps = tuple(Comparison(error, 100.0, 1.0, 0, 9) for error in errors)
    found = compare(images / np.float32(255), actual / np.float32(255))
    run = WholeRun({"image": images[0]}, [], [], images)
    made: dict[str, Any] = {"images": actual, "steps": steps, "picture": found, **more}
    return WholeCheck(NAME, {"unet": CPU, "vae_decoder": CPU}, run, **made)


def page_of(tmp_path: Path, *checks: WholeCheck, prompt: str = "a cat") -> Page:
    path = tmp_path / "report.html"
    wholes = [("onnxruntime-cpu", one) for one in checks]
    write_pipeline_report(path, bundle(prompt), [(CPU, "unet", GOOD)], wholes)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_all_passed(tmp_path: Path) -> None:
    page = page_of(tmp_path, check())
    assert "✓ All 2 checks passed" in page.text
    assert "FAILED" not in page.text
    for fact in ("32×24 pixels", "prompt a cat", "Bit-identical", "2.00e-07", "1e-04", "unet-0"):
        assert fact in page.text
    assert [one["alt"] for one in page.elements["img"]] == [
        "image of text-to-image",
        "Reference picture of text-to-image",
        "Output for text-to-image on onnxruntime-cpu",
    ]
    assert len(page.elements["polyline"]) == 2  # the error and its limit


def test_what_failed_is_said_and_shown(tmp_path: Path) -> None:
    page = page_of(tmp_path, check(3, (1e-7, 2e-4, 3e-4)), check())
    assert "✗ 1 of 3 checks failed" in page.text
    reason = "latents after step 2: max abs 2.00e-04"
    assert page.text.count(reason) == 2  # at the top and beside the pictures
    assert "(at least 60 dB)" in page.text
    assert {"href": "#check-0"} in page.elements["a"]
    assert any(one["alt"].startswith("Absolute difference") for one in page.elements["img"])


def test_a_run_that_broke_off_has_no_picture(tmp_path: Path) -> None:
    broken = check(images=None, picture=None, steps=(), problem="the size is off the grid")
    page = page_of(tmp_path, broken)
    assert "the size is off the grid" in page.text
    assert not any(one["alt"].startswith("Output") for one in page.elements["img"])


def test_without_a_whole_run_the_page_says_so(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "✓ The one check passed" in page.text
    assert "The whole pipeline was not checked" in page.text


def test_not_finite_latents_are_not_drawn(tmp_path: Path) -> None:
    broken = Comparison(float("inf"), 0.0, 0.0, 4, 9)
    steps = (*check().steps[:2], broken)
    page = page_of(tmp_path, check(steps=steps))
    assert "latents after step 3: max abs inf, 0.0 dB, 4 of 9 values NaN or infinite" in page.text
    assert all("nan" not in one["points"] for one in page.elements["polyline"])


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_shown_well(tmp_path: Path, width: int) -> None:
    page_of(tmp_path, check(3, (1e-7, 2e-4, 3e-4)), check(), prompt=EVIL)
    with opened(tmp_path / "report.html", viewport={"width": width, "height": 844}) as page:
        inner = "document.documentElement.scrollWidth <= window.innerWidth"
        assert page.evaluate(inner)
        assert page.locator("svg[role=img]").count() == 2
        page.select_option("#amplify-all", label="× 1")
        page.locator("canvas").first.wait_for()
        page.select_option("#zoom", "8")
        assert page.evaluate(inner)
        assert EVIL in page.locator("h1").inner_text()
