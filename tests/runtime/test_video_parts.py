"""The parts that a video goes through: colour, turning, recognition, choice of format."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.codec import Codec
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from PIL import Image

from pixelrt.errors import UsageError, VideoError
from pixelrt.geometry import Size
from pixelrt.runtime.video.colour import Colour, FromRGB, ToRGB, bits, colour_of
from pixelrt.runtime.video.encoder import encoded_size, find_encoder, pixel_format
from pixelrt.runtime.video.formats import container_of, is_video
from pixelrt.runtime.video.options import VideoOptions
from pixelrt.runtime.video.times import Clock
from pixelrt.runtime.video.turn import Turn
from pixelrt.runtime.video.whole import missing_bytes
from tests.runtime.video_clips import Clip, moving

LUMA = {6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}


def h273(rgb: Any, matrix: int, full: bool, depth: int) -> Any:
    """RGB in [0, 1] to levels Y, Cb, Cr: ITU-T H.273, equations 11 to 13 and 20 to 31."""
    kr, kb = LUMA[matrix]
    y = kr * rgb[..., 0] + (1 - kr - kb) * rgb[..., 1] + kb * rgb[..., 2]
    cb, cr = (rgb[..., 2] - y) / (2 * (1 - kb)), (rgb[..., 0] - y) / (2 * (1 - kr))
    if full:
        peak = 2**depth - 1
        levels = y * peak, cb * peak + 2 ** (depth - 1), cr * peak + 2 ** (depth - 1)
    else:
        step = 2 ** (depth - 8)
        levels = step * (219 * y + 16), step * (224 * cb + 128), step * (224 * cr + 128)
    return np.clip(np.rint(np.stack(levels)), 0, 2**depth - 1)


def frame_of(planes: Any, depth: int) -> VideoFrame:
    form = "yuv444p" if depth == 8 else f"yuv444p{depth}le"
    _, height, width = planes.shape
    frame = VideoFrame(width, height, form)
    for plane, values in zip(frame.planes, planes, strict=True):
        words = np.asarray(memoryview(plane)).view(np.uint8 if depth == 8 else "<u2")
        words.reshape(height, -1)[:, :width] = values
    return frame


def planes_of(frame: VideoFrame, depth: int) -> Any:
    return np.stack(
        [
            np.asarray(memoryview(plane))
            .view(np.uint8 if depth == 8 else "<u2")
            .reshape(plane.height, -1)[:, : frame.width]
            for plane in frame.planes
        ]
    )


@pytest.mark.parametrize("depth", [8, 10, 12])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_colours_are_those_of_the_standard(matrix: int, full: bool, depth: int) -> None:
    """There and back: an error of the rounding to levels, and none of scale."""
    rgb = np.random.default_rng(0).random((48, 64, 3))
    rgb[0], rgb[1] = 0, 1
    levels = h273(rgb, matrix, full, depth)
    colour = Colour(matrix, full, 2, 2)
    found = ToRGB(colour, depth, None)(frame_of(levels, depth))
    assert found.dtype == (np.uint8 if depth == 8 else np.float32)
    values = found / 255 if depth == 8 else found
    assert np.abs(values - rgb).max() < 2.2 / (2**depth - 1) * (1 if full else 255 / 219)
    assert np.abs((values - rgb).mean()) < 0.1 / (2**depth - 1) + (0.05 / 255 if depth == 8 else 0)
    assert (values[0] == 0).all()
    assert (values[1] >= 1 - 2e-7).all()
    form = VideoFormat("yuv444p" if depth == 8 else f"yuv444p{depth}le", 64, 48)
    back = FromRGB(colour, form)(found)
    assert (back.colorspace, back.color_range) == (matrix, 2 if full else 1)
    off = planes_of(back, depth).astype(int) - levels
    assert np.abs(off).max() <= 1
    # libswscale's chroma of full range is half a level low in 8 bits; nothing else drifts.
    drift = np.abs(off.mean(axis=(1, 2)))
    assert drift[0] < (0.1 if depth == 8 else 1e-3)
    assert drift[1:].max() < ((0.6 if full else 0.1) if depth == 8 else 1e-3)


@pytest.mark.parametrize("form", ["yuv420p", "yuv420p10le", "yuv422p12le"])
def test_flat_colours_survive_shared_chroma(form: str) -> None:
    colour = Colour(1, False, 2, 2)
    pixels = np.full((16, 32, 3), (200, 60, 30), np.uint8)
    given = pixels if form == "yuv420p" else pixels.astype(np.float32) / np.float32(255)
    frame = FromRGB(colour, VideoFormat(form, 32, 16))(given)
    assert frame.format.name == form
    back = ToRGB(colour, bits(frame.format), None)(frame)
    assert np.abs(back * (1.0 if back.dtype == np.uint8 else 255.0) - pixels).max() <= 1.6


def test_what_a_frame_leaves_open() -> None:
    small, large = VideoFrame(64, 48, "yuv420p"), VideoFrame(1280, 720, "yuv420p")
    assert colour_of(small, "x") == Colour(6, False, 2, 2)
    assert colour_of(large, "x") == Colour(1, False, 2, 2)
    assert colour_of(VideoFrame(64, 48, "yuvj420p"), "x").full
    assert colour_of(VideoFrame(64, 48, "bgr0"), "x") == Colour(0, True, 2, 2)
    small.colorspace = 14
    with pytest.raises(VideoError, match="colour matrix") as caught:
        colour_of(small, "clip.mp4")
    assert "14" in caught.value.found


@pytest.mark.parametrize("swaps", [False, True])
@pytest.mark.parametrize("rows", [1, -1])
@pytest.mark.parametrize("columns", [1, -1])
def test_turns_move_every_pixel_where_the_matrix_says(swaps: bool, rows: int, columns: int) -> None:
    """(x, y) goes to (a*x + c*y, b*x + d*y), counted from the far end where that is negative."""
    pixels = np.arange(15).reshape(3, 5)
    turned = Turn(swaps, rows, columns)(pixels)
    for (y, x), value in np.ndenumerate(pixels):
        across, down = (columns * y, rows * x) if swaps else (columns * x, rows * y)
        place = down - (rows < 0), across - (columns < 0)
        assert turned[place] == value


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "mov"])
def test_videos_are_known_by_their_content(tmp_path: Path, suffix: str) -> None:
    made = Clip(frames=moving(40)).write(tmp_path / f"a.{suffix}")
    plain = made.rename(tmp_path / "plain.png")
    assert is_video(plain)
    assert missing_bytes(plain) == 0


def test_pictures_are_known_by_their_content(tmp_path: Path) -> None:
    for name in ("png", "jpeg", "webp", "tiff", "bmp"):
        Image.new("RGB", (9, 9)).save(tmp_path / "picture.mp4", name)
        assert not is_video(tmp_path / "picture.mp4")
    (tmp_path / "photo.mp4").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(99))
    assert not is_video(tmp_path / "photo.mp4")
    assert is_video(tmp_path / "missing.MP4")
    assert not is_video(tmp_path / "missing.png")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_missing_bytes_are_seen(tmp_path: Path, suffix: str) -> None:
    options = {"movflags": "+faststart"} if suffix == "mp4" else {}
    path = Clip(audio="", container_options=options).write(tmp_path / f"a.{suffix}")
    data = path.read_bytes()
    for missing in (1, 100, 500):
        path.write_bytes(data[:-missing])
        assert missing_bytes(path) == missing


def test_a_trailer_is_not_a_box(tmp_path: Path) -> None:
    path = Clip(audio="").write(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes() + b"\xff\xff\xff\xffjunk of a camera")
    assert missing_bytes(path) == 0


def test_times_that_do_not_increase_are_put_behind_the_last() -> None:
    """Nothing can be stored out of order, and no frame is thrown away."""
    rate = Fraction(25)
    stream: Any = SimpleNamespace(time_base=Fraction(1, 1000), average_rate=rate)
    container: Any = SimpleNamespace(format=SimpleNamespace(flags=0), start_time=5_000_000)
    clock = Clock(container, stream)
    given = [7, 40, 40, 12, None, 200]
    frames: list[Any] = [SimpleNamespace(pts=pts, duration=0) for pts in given]
    assert [clock.of(frame)[0] for frame in frames] == [7, 40, 41, 42, 82, 200]
    assert clock.notes == [
        "1 frames have no time; they follow at the frame rate",
        "2 frames had times out of order and follow the one before",
    ]


def test_a_live_recording_has_no_length(tmp_path: Path) -> None:
    """Matroska written without going back: sizes are unknown, nothing can be missing."""
    live = Clip(container_options={"live": "1"}).write(tmp_path / "a.mkv")
    assert missing_bytes(live) == 0
    live.write_bytes(live.read_bytes()[:-500])
    assert missing_bytes(live) == 0


@pytest.mark.parametrize(
    ("codec", "depth", "expected"),
    [
        ("libx264", 8, "yuv420p"),
        ("libx264", 10, "yuv420p10le"),
        ("libx264", 12, "yuv420p10le"),
        ("libx265", 12, "yuv420p12le"),
        ("libvpx-vp9", 10, "yuv420p"),
        ("libsvtav1", 10, "yuv420p10le"),
        ("prores_ks", 8, "yuv422p10le"),
        ("ffv1", 8, "bgr0"),
        ("ffv1", 10, "gbrp10le"),
        ("ffv1", 16, "gbrp16le"),
    ],
)
def test_the_pixel_format_follows_encoder_and_depth(codec: str, depth: int, expected: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV is without {codec}")
    form = pixel_format(Codec(codec, "w"), VideoOptions(codec), depth, Size(8, 8))
    assert form.name == expected


def test_even_sides_only_where_chroma_is_shared() -> None:
    expected = {
        "yuv420p": Size(6, 8),
        "yuv420p10le": Size(6, 8),
        "yuv422p": Size(5, 8),
        "yuv444p": Size(5, 7),
        "bgr0": Size(5, 7),
        "gray": Size(5, 7),
        "nv12": Size(6, 8),
    }
    for name, size in expected.items():
        assert encoded_size(VideoFormat(name, 7, 5), Size(5, 7)) == size, name


def test_names_of_containers() -> None:
    assert container_of(Path("a.b/C.MKV")) == "matroska"
    with pytest.raises(UsageError, match="container"):
        container_of(Path("clip.gif"))
    assert find_encoder("libx264").name == "libx264"
