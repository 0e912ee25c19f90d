"""``pixelrt run`` as a user meets it: files, folders, errors, interrupts."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelrt.bundle import Bundle
from pixelrt.cli.main import run
from pixelrt.runtime.backends.openvino import openvino_here
from tests.conftest import resized


@pytest.fixture
def bundle(srgan_bundle: Bundle) -> str:
    return str(srgan_bundle.root)


@pytest.fixture
def picture(tmp_path: Path, photo: Any) -> Path:
    path = tmp_path / "cat.png"
    Image.fromarray(resized(photo, 50, 37)).save(path)
    return path


def pixelrt(*arguments: Any) -> int:
    return run([str(argument) for argument in arguments])


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_a_file_in_every_format(
    bundle: str, picture: Path, tmp_path: Path, suffix: str, capsys: Any
) -> None:
    target = tmp_path / f"out.{suffix}"
    assert pixelrt("run", bundle, picture, "-o", target) == 0
    assert size(target) == (100, 74)
    told = capsys.readouterr()
    assert "50x37" in told.out
    assert "100x74" in told.out
    assert openvino_here().name in told.err
    assert "verified" in told.err


def test_without_an_output_the_result_stands_beside(bundle: str, picture: Path) -> None:
    assert pixelrt("run", bundle, picture, "-q") == 0
    assert size(picture.with_name("cat-x2.png")) == (100, 74)


def test_folders_keep_their_structure_and_skip_what_exists(
    bundle: str, picture: Path, tmp_path: Path, capsys: Any
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    for place in ("a.png", "deep/b.jpg", "deep/er/c.webp", "deep/notes.txt"):
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        if place.endswith("txt"):
            (source / place).write_text("no image")
        else:
            Image.open(picture).save(source / place)
    assert pixelrt("run", bundle, source, "-o", target) == 0
    found = sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file())
    assert found == ["a.png", "deep/b.jpg", "deep/er/c.webp"]
    before = (target / "a.png").stat().st_mtime_ns
    (target / "deep/b.jpg").unlink()
    assert pixelrt("run", bundle, source, "-o", target) == 0
    assert "1 written, 2 skipped" in capsys.readouterr().err
    assert (target / "a.png").stat().st_mtime_ns == before
    assert pixelrt("run", bundle, source, "-o", target, "--overwrite") == 0
    assert (target / "a.png").stat().st_mtime_ns != before


def test_one_bad_file_does_not_stop_a_folder(
    bundle: str, picture: Path, tmp_path: Path, capsys: Any
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "broken.png").write_bytes(picture.read_bytes()[:200])
    Image.open(picture).save(source / "good.png")
    assert pixelrt("run", bundle, source, "-o", tmp_path / "out") == 3
    told = capsys.readouterr().err
    assert "broken.png" in told
    assert "1 written, 0 skipped because they exist, 1 failed" in told
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.png"]


def test_format_and_clashes(bundle: str, picture: Path, tmp_path: Path, capsys: Any) -> None:
    source = tmp_path / "in"
    source.mkdir()
    Image.open(picture).save(source / "a.png")
    Image.open(picture).save(source / "a.jpg")
    assert pixelrt("run", bundle, source, "-o", tmp_path / "out", "--format", "webp") == 2
    assert "would both be written" in capsys.readouterr().err
    assert pixelrt("run", bundle, source, "-o", source, "--overwrite") == 2
    assert "itself an input" in capsys.readouterr().err
    assert pixelrt("run", bundle, source / "a.png", "-o", tmp_path / "b.tif") == 0
    with Image.open(tmp_path / "b.tif") as image:
        assert image.format == "TIFF"


def test_an_existing_file_is_never_lost(
    bundle: str, picture: Path, tmp_path: Path, capsys: Any
) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"precious")
    assert pixelrt("run", bundle, picture, "-o", target) == 5
    assert "exists" in capsys.readouterr().err
    assert target.read_bytes() == b"precious"
    assert pixelrt("run", bundle, picture, "-o", target, "--overwrite") == 0
    assert size(target) == (100, 74)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    ihdr = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def bad_inputs(picture: bytes) -> dict[str, bytes | None]:
    return {
        "missing": None,
        "empty": b"",
        "truncated": picture[: len(picture) // 2],
        "text": b"this is not a picture",
        "html": b"<html><body>404</body></html>",
        "huge": png_header(60_000, 60_000),
    }


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "text", "html", "huge"])
def test_bad_inputs_have_their_message(
    bundle: str, picture: Path, tmp_path: Path, capsys: Any, kind: str
) -> None:
    source, target = tmp_path / f"{kind}.png", tmp_path / "out" / "x.png"
    content = bad_inputs(picture.read_bytes())[kind]
    if content is not None:
        source.write_bytes(content)
    assert pixelrt("run", bundle, source, "-o", target) == 3
    told = capsys.readouterr().err
    assert f"{kind}.png" in told
    assert "Traceback" not in told
    if kind == "huge":
        assert "60000" in told
    assert not target.exists()


def test_messages_differ(bundle: str, picture: Path, tmp_path: Path, capsys: Any) -> None:
    """Each fault is told in its own words."""
    words = set()
    for kind, content in bad_inputs(picture.read_bytes()).items():
        source = tmp_path / "x.png"
        source.unlink(missing_ok=True)
        if content is not None:
            source.write_bytes(content)
        pixelrt("run", bundle, source, "-o", tmp_path / "y.png")
        words.add((kind, capsys.readouterr().err))
    assert len({text for _, text in words}) >= 5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--backend", "cuda"], 2, "onnxruntime-cpu"),
        (["--tile", "3"], 2, "too small"),
        (["--tile", "none"], 2, "auto, off"),
        (["--halo", "70dB"], 2, "60dB"),
        (["--max-memory", "lots"], 2, "2GB"),
        (["--max-memory", "1kB"], 4, "too small for one tile"),
        (["--pad", "library"], 2, "library"),
        (["--max-pixels", "100"], 3, "50x37"),
        (["--quality", "0"], 2, "quality"),
    ],
)
def test_wrong_options(
    bundle: str,
    picture: Path,
    tmp_path: Path,
    capsys: Any,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    assert pixelrt("run", bundle, picture, "-o", tmp_path / "o.png", *arguments) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()


def test_tiles_and_resize(bundle: str, picture: Path, tmp_path: Path) -> None:
    whole, tiled = tmp_path / "whole.png", tmp_path / "tiled.png"
    full = ("--precision", "float32")
    assert pixelrt("run", bundle, picture, "-o", whole, "--tile", "off", *full) == 0
    memory = ("--max-memory", "1GB")
    assert pixelrt("run", bundle, picture, "-o", tiled, "--tile", 24, *memory, *full) == 0
    difference = np.asarray(Image.open(whole)).astype(int) - np.asarray(Image.open(tiled))
    assert np.abs(difference).max() <= 1
    assert np.count_nonzero(difference.any(axis=2)) <= difference.shape[0] * 1e-4 * 100
    assert pixelrt("run", bundle, picture, "-o", tmp_path / "r.png", "--resize", "20x10") == 0
    assert size(tmp_path / "r.png") == (40, 20)


def test_a_file_that_cannot_grow_leaves_nothing(bundle: str, picture: Path, tmp_path: Path) -> None:
    """The process's file size limit stands in for a full disk."""
    script = (
        "import resource, signal, sys\n"
        "from pixelrt.cli.main import run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    target = tmp_path / "out.png"
    command = [sys.executable, "-c", script, "run", bundle, str(picture), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert str(target) in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cat.png"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


SLOW_TILES = """
import sys, time
from pixelrt.cli.main import run
from pixelrt.runtime.pipelines import image

run_plan = image.run_plan

def slow(*arguments, **options):
    def tell(done, total):
        print(done, total, flush=True)
        time.sleep(0.2)
    run_plan(*arguments, **{**options, "progress": tell})

image.run_plan = slow
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("files", [1, 3])
def test_interrupt_in_the_middle_leaves_nothing(
    bundle: str, photo: Any, tmp_path: Path, files: int
) -> None:
    """Ctrl-C after the first of many tiles, each of which is made to take a moment; of
    several files the next one is being read meanwhile."""
    source, target = tmp_path / "large.png", tmp_path / "out" / "large.png"
    target.parent.mkdir()
    if files > 1:
        source, target = tmp_path / "in" / "0.png", target.parent
        source.parent.mkdir()
    Image.fromarray(resized(photo, 1200, 1000)).save(source, compress_level=1)
    for k in range(1, files):
        (source.parent / f"{k}.png").write_bytes(source.read_bytes())
    source = source if files == 1 else source.parent
    arguments = ["run", bundle, str(source), "-o", str(target), "--tile", "128"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_TILES, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    started = [process.stdout.readline() for _ in range(2)]
    assert started[1].split() == ["1", started[0].split()[1]]
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert "interrupted" in told
    assert "Traceback" not in told
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
