"""Whole pipelines held against what diffusers made at export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.diffusion_parts import TINY
from pixelrt.bundle_files import MANIFEST
from pixelrt.cli.main import run
from pixelrt.errors import BundleError
from pixelrt.export.diffusion import pipeline as export
from pixelrt.export.diffusion.pipeline import export_untrained
from pixelrt.export.diffusion.whole import run_pipe
from pixelrt.pipeline_bundle import open_pipeline
from pixelrt.runtime.backends.select import Choice
from pixelrt.runtime.networks import Networks
from pixelrt.runtime.whole import WholeCheck, check_whole
from tests.cli.test_report import Page
from tests.diffusion.conftest import Exported

pytestmark = pytest.mark.slow

CPU = ["--backend", "onnxruntime-cpu"]


def wholes(path: Path) -> list[WholeCheck]:
    bundle = open_pipeline(path)
    with Networks(bundle, Choice("onnxruntime-cpu"), verify=False) as networks:
        return [check_whole(bundle, networks, one) for one in bundle.manifest.references]


def planted(bundle: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy with other settings."""
    shutil.copytree(bundle, target)
    manifest = json.loads((target / MANIFEST).read_text())
    change(manifest)
    (target / MANIFEST).write_text(json.dumps(manifest))
    return target


def test_a_whole_pipeline_is_that_of_diffusers(sdxl: Exported) -> None:
    """SDXL; Stable Diffusion is verified in ``test_verbs``."""
    found = wholes(sdxl.bundle)
    assert [one.name for one in found] == ["text-to-image", "image-to-image"]
    assert [len(one.steps) for one in found] == [4, 3]
    for one in found:
        assert one.passed, one.reasons
        assert one.precision == "float32"
        assert one.expected.images.shape == (1, 24, 32, 3)
        assert one.expected.images.std() > 10  # a picture, not a plain


def test_the_reference_is_diffusers_run_with_its_options(sd: Exported) -> None:
    bundle = open_pipeline(sd.bundle)
    first = bundle.manifest.references[0]
    images, steps, noise = run_pipe(sd.pipe, first.options)
    kept = bundle.reference(first)
    for found, wanted in ((steps, kept.steps), (noise, kept.noise)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(np.rint(images * 255) - kept.images).max() <= 1


PLANTED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another noise schedule": (lambda s: s["scheduler"].update(beta_end=0.013), "latents after"),
    "another kind of prediction": (
        lambda s: s["scheduler"].update(prediction_type="v_prediction"),
        "latents after step 1",
    ),
    "another scale of latents": (lambda s: s.update(scaling=0.19), "pictures"),
    "another scheduler": (
        lambda s: s["scheduler"].update(_class_name="EulerAncestralDiscreteScheduler"),
        "draws other noise",
    ),
    "another grid": (lambda s: s.update(minimum=64), "off the grid"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_what_each_network_alone_cannot_show(case: str, sd: Exported, tmp_path: Path) -> None:
    change, words = PLANTED[case]
    found = wholes(planted(sd.bundle, tmp_path / "a.pixelrt", lambda m: change(m["settings"])))
    assert any(words in reason for one in found for reason in one.reasons)
    assert not all(one.passed for one in found)


def test_verify_fails_though_every_network_passes(
    sd: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = PLANTED["another scale of latents"][0]
    path = planted(sd.bundle, tmp_path / "a.pixelrt", lambda m: change(m["settings"]))
    report = tmp_path / "report.html"
    assert run(["verify", str(path), *CPU, "--report", str(report)]) == 1
    told = capsys.readouterr()
    assert told.out.count(" ok\n") == 12
    assert told.out.count(" FAILED\n") == 2
    assert "12 of 14 checks passed" in told.out
    assert "text-to-image: pictures: " in told.err
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "2 of 14 checks failed" in page.text
    assert "text-to-image on onnxruntime-cpu : pictures: max abs" in page.text
    assert len(page.elements["svg"]) >= 2  # of two runs, latents step by step
    for start in ("Reference picture of text-to-image", "Output for image-to-image"):
        assert any(one["alt"].startswith(start) for one in page.elements["img"])
    assert "unet-1" in page.text


def test_a_bundle_without_a_reference_says_so(
    sd: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = planted(sd.bundle, tmp_path / "a.pixelrt", lambda m: m.pop("references"))
    assert run(["verify", str(path), *CPU]) == 0
    told = capsys.readouterr()
    assert "12 of 12 checks passed" in told.out
    assert "not checked  the whole pipeline" in told.err


def test_the_whole_can_be_left_out_of_an_export(
    sd: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Any] = []
    monkeypatch.setattr(export, "assemble", lambda plan, *_, **__: plans.append(plan))
    random = ["--family", "diffusion", "--random-init", "0", "--config", "stable-diffusion-1.5"]
    for source in ([str(sd.folder)], [str(sd.folder), "--weights", "float16"], random):
        for more in ([], ["--no-pipeline-reference"]):
            # There is no bundle to describe.
            words = ["export", *source, "-o", str(tmp_path / "a.pixelrt"), "-q", *more]
            assert run(words) == 0
        assert plans[-2].examples is not None
        assert plans[-1].examples is None


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, in bfloat16."""
    path = tmp_path_factory.mktemp("rounded") / "a.pixelrt"
    return export_untrained(TINY, 0, path, weights="bfloat16")


def test_rounded_and_random_weights_are_those_of_the_whole(rounded: Path) -> None:
    found = wholes(rounded)
    assert [one.name for one in found] == ["text-to-image", "image-to-image"]
    for one in found:
        assert one.passed, one.reasons
        assert one.precision == "float32"
        assert one.expected.images.std() > 10  # a picture, not a plain


@pytest.mark.parametrize("case", ["another noise schedule", "another scale of latents"])
def test_what_is_wrong_shows_with_rounded_weights_too(
    case: str, rounded: Path, tmp_path: Path
) -> None:
    change, words = PLANTED[case]
    found = wholes(planted(rounded, tmp_path / "a.pixelrt", lambda m: change(m["settings"])))
    assert any(words in reason for one in found for reason in one.reasons)


def test_a_mode_of_another_version_is_named(sd: Exported, tmp_path: Path) -> None:
    path = planted(
        sd.bundle, tmp_path / "a.pixelrt", lambda m: m["references"][0].update(mode="close")
    )
    with pytest.raises(BundleError, match="mode close of family stable-diffusion"):
        wholes(path)


def test_lower_precision_is_held_by_its_pictures(sd: Exported) -> None:
    check = wholes(sd.bundle)[0]
    low = {name: replace(info, precision="float16") for name, info in check.used.items()}
    assert check.picture is not None
    (far,) = [replace(check.steps[0], max_abs=0.3)]
    for psnr, non_finite, good in ((31.0, 0, True), (29.0, 0, False), (31.0, 2, False)):
        picture = replace(check.picture, psnr=psnr, non_finite=non_finite)
        assert replace(check, used=low, picture=picture, steps=(far,)).passed is good
    assert not replace(check, steps=(far,)).passed
    assert not replace(check, picture=replace(check.picture, psnr=59.0)).passed
    assert not replace(check, used=low, steps=(replace(far, non_finite=1),)).passed
