"""The shipped demonstration network keeps its promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import pixelrt
from pixelrt.bundle import open_bundle
from pixelrt.runtime.load import bundle_path
from tests.conftest import resized

ROOT = Path(__file__).parents[1]
MAX_WEIGHTS = 500_000
MAX_PEAK = 1_500_000_000


def test_it_is_small_and_says_what_it_is() -> None:
    bundle = open_bundle(bundle_path("demo"))
    assert bundle.manifest.files["graphs/weights.bin"].bytes <= MAX_WEIGHTS
    assert bundle.manifest.family == "srgan"
    assert "demonstration" in (ROOT / "examples/demo_network/README.md").read_text()


@pytest.mark.slow
def test_it_beats_bicubic_by_one_decibel_on_photographs_it_never_saw() -> None:
    done = subprocess.run(
        [sys.executable, "examples/evaluate_demo.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    gain = float(done.stdout.split("mean")[1].split()[0])
    assert gain >= 1.0, done.stdout


def test_training_never_sees_the_held_out_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    import demo_data  # type: ignore[import-not-found]

    assert len(demo_data.HELD_OUT) >= 3
    assert not set(demo_data.HELD_OUT) & set(demo_data.TRAINING)


@pytest.mark.slow
def test_twelve_megapixels_in_bounded_memory(tmp_path: Path, photo: Any) -> None:
    source, target = tmp_path / "large.jpg", tmp_path / "large.png"
    Image.fromarray(resized(photo, 4000, 3000)).save(source)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pixelrt.cli.main import run\n"
        "code = run(sys.argv[1:])\n"
        "status = Path('/proc/self/status').read_text().splitlines()\n"
        "print([x for x in status if x.startswith('VmHWM')][0].split()[1], file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", script, "run", "demo", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = int(done.stderr.splitlines()[-1]) * 1024
    assert peak < MAX_PEAK, f"{peak / 1e6:.0f} MB"
    with Image.open(target) as image:
        assert image.size == (8000, 6000)


def test_the_example_of_the_package_docstring(photo: Any) -> None:
    with pixelrt.load("demo") as model:
        out = model(Image.fromarray(photo[:40, :50]))
    assert out.size == (100, 80)
