"""The commands of the README do what it says, in its order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pixelrt.cli.main import run
from tests.engines.support import required_tensorrt
from tests.export.test_swin2sr import authors_file

ROOT = Path(__file__).parents[1]


def commands() -> list[list[str]]:
    """Every ``pixelrt ...`` line of the README's code blocks, without the program."""
    lines = re.findall(
        r"^    (?:\.venv/bin/)?pixelrt (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    return [shlex.split(line) for line in lines]


@pytest.mark.slow
def test_commands(tmp_path: Path, photo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for place in ("photo.jpg", "photos/a.png"):
        Image.fromarray(photo[:60, :70]).save(place)
    weights = authors_file({"upsampler": "pixelshuffle", "upscale": 2}).tensors
    torch.save({"params": weights}, "Swin2SR_ClassicalSR_X2_64.pth")
    found = commands()
    assert [command[0] for command in found] == [
        *("run", "export", "verify", "run", "build", "inspect", "run", "bench"),
    ]
    required_tensorrt("tensorrt-rtx")
    for command in found:
        # the kind of TensorRT that asks for no GPU
        more = ["--backend", "tensorrt-rtx"] if command[0] == "build" else []
        assert run([*command, *more]) == 0, command
    for place in ("photo-x2.jpg", "upscaled/a.png"):
        with Image.open(place) as image:
            assert image.size == (140, 120)
    for place in ("report.html", "photo-x2.png", "bench.html"):
        assert Path(place).is_file()
    assert len(list(Path("swin2sr-x2.pixelrt/engines").glob("*/*.plan"))) == 1


def test_scripts_are_executable() -> None:
    for name in ("demo", "test", "check"):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
