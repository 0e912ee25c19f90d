"""``pixelrt run`` on videos, as a user meets it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pixelrt.bundle import Bundle
from pixelrt.cli.main import run
from tests.runtime.video_clips import Clip, frames_of, moving, packets_of, times_of


@pytest.fixture
def bundle(srgan_bundle: Bundle) -> str:
    return str(srgan_bundle.root)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return Clip().write(tmp_path / "clip.mp4")


def pixelrt(*arguments: Any) -> int:
    return run([str(argument) for argument in arguments])


def test_a_video_beside_its_source(bundle: str, clip: Path, capsys: Any) -> None:
    assert pixelrt("run", bundle, clip) == 0
    made = clip.with_name("clip-x2.mp4")
    assert frames_of(made)[0].shape == (72, 96, 3)
    assert packets_of(made, "audio") == packets_of(clip, "audio")
    assert times_of(made) == times_of(clip)
    told = capsys.readouterr()
    assert "48x36" in told.out
    assert "96x72  12 frames" in told.out
    assert "verified" in told.err
    assert "[" not in told.err  # no encoder speaks to the terminal


def test_lossless_frames_are_those_of_the_pictures(bundle: str, tmp_path: Path) -> None:
    source = Clip("ffv1", "bgr0", audio="").write(tmp_path / "in.mkv")
    precision = ("--precision", "float32")
    codec = ("--video-codec", "ffv1")
    assert pixelrt("run", bundle, source, "-o", tmp_path / "out.mkv", *codec, *precision) == 0
    for k, (pixels, made) in enumerate(zip(moving(), frames_of(tmp_path / "out.mkv"), strict=True)):
        if k % 4 == 0:
            Image.fromarray(pixels).save(tmp_path / "one.png")
            arguments = (tmp_path / "one.png", "-o", tmp_path / "two.png", "--overwrite")
            assert pixelrt("run", bundle, *arguments, *precision) == 0
            np.testing.assert_array_equal(made, np.asarray(Image.open(tmp_path / "two.png")))


def test_encoder_options(bundle: str, clip: Path, tmp_path: Path) -> None:
    sizes = []
    for crf in (10, 40):
        target = tmp_path / f"{crf}.mkv"
        options = ("--video-codec", "libx265", "--crf", crf, "--pixel-format", "yuv444p")
        assert pixelrt("run", bundle, clip, "-o", target, "--no-audio", *options) == 0
        with av.open(str(target)) as made:
            assert [s.type for s in made.streams] == ["video"]
            assert made.streams.video[0].codec_context.name == "hevc"
            assert made.streams.video[0].pix_fmt == "yuv444p"
        sizes.append(target.stat().st_size)
    assert sizes[0] > 1.5 * sizes[1]


def test_videos_and_pictures_together(bundle: str, clip: Path, tmp_path: Path, capsys: Any) -> None:
    """A video is known by what is in it; a broken one does not stop the others."""
    odd = tmp_path / "odd.bin"
    odd.write_bytes(clip.read_bytes())
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:900])
    Image.fromarray(moving()[0]).save(tmp_path / "a.png")
    inputs = (odd, broken, tmp_path / "a.png", clip)
    assert pixelrt("run", bundle, *inputs, "-o", tmp_path / "out") == 3
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.png", "clip.mp4", "odd.mkv"]
    told = capsys.readouterr().err
    assert "broken.mp4 is cut short" in told
    assert "3 written, 0 skipped because they exist, 1 failed" in told
    assert pixelrt("run", bundle, clip, odd, "-o", tmp_path / "out") == 0
    assert "0 written, 2 skipped" in capsys.readouterr().err


def test_videos_in_folders_are_passed_over_and_told(
    bundle: str, clip: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    clip.rename(folder / "clip.mp4")
    assert pixelrt("run", bundle, folder, "-o", tmp_path / "out") == 3
    told = capsys.readouterr().err
    assert "there are no images" in told
    assert "name the videos themselves" in told
    Image.fromarray(moving()[0]).save(folder / "a.png")
    assert pixelrt("run", bundle, folder, "-o", tmp_path / "out") == 0
    assert "1 videos in folders are passed over" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("target", "options", "code", "words"),
    [
        ("out.png", [], 2, "does not say which video container"),
        ("out.mp4", ["--format", "png"], 2, "--format is for pictures"),
        ("out.mp4", ["--video-codec", "none"], 4, "no video encoder none"),
        ("out.webm", ["--video-codec", "libvpx-vp9"], 5, "--no-audio"),
        ("out.mp4", ["--max-pixels", "100"], 3, "48x36"),
        ("out.mp4", ["--max-memory", "1kB"], 4, "too small for one tile"),
        ("out.mp4", ["--crf", "77"], 2, "0 to 51"),
    ],
)
def test_wrong_options(
    bundle: str,
    clip: Path,
    tmp_path: Path,
    capsys: Any,
    target: str,
    options: list[str],
    code: int,
    words: str,
) -> None:
    assert pixelrt("run", bundle, clip, "-o", tmp_path / target, *options) == code
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4"]


def test_a_picture_does_not_become_a_video(bundle: str, tmp_path: Path, capsys: Any) -> None:
    Image.fromarray(moving()[0]).save(tmp_path / "a.png")
    assert pixelrt("run", bundle, tmp_path / "a.png", "-o", tmp_path / "a.mp4") == 2
    assert "does not say which format" in capsys.readouterr().err


def test_a_file_that_cannot_grow_leaves_nothing(bundle: str, clip: Path, tmp_path: Path) -> None:
    """The process's file size limit stands in for a full disk."""
    script = (
        "import resource, signal, sys\n"
        "from pixelrt.cli.main import run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    target = tmp_path / "out.mp4"
    command = [sys.executable, "-c", script, "run", bundle, str(clip), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert f"{target} could not be written: the file is larger than allowed" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4"]


SLOW_FRAMES = """
import sys, time
from pixelrt.cli.main import run
from pixelrt.runtime.pipelines.image import ImageModel

run_array = ImageModel.run_array

def slow(*arguments, **options):
    result = run_array(*arguments, **options)
    print("frame", flush=True)
    time.sleep(0.3)
    return result

ImageModel.run_array = slow
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_nothing(
    bundle: str, clip: Path, tmp_path: Path, how: signal.Signals
) -> None:
    """After Ctrl-C at once; what a killed process leaves is hidden, and the next run clears it."""
    target = tmp_path / "out" / "clip.mp4"
    command = [sys.executable, "-c", SLOW_FRAMES, "run", bundle, str(clip), "-o", str(target)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(3)] == ["frame\n"] * 3
    process.send_signal(how)
    _, told = process.communicate(timeout=300)
    assert not target.exists()
    if how == signal.SIGINT:
        assert process.returncode == 130, told
        assert "interrupted" in told
        assert "Traceback" not in told
        assert list(target.parent.iterdir()) == []
    else:
        assert [path.name[:9] for path in target.parent.iterdir()] == [".pixelrt-"]
    assert pixelrt("run", bundle, clip, "-o", target) == 0
    assert list(target.parent.iterdir()) == [target]
