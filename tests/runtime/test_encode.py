"""Writing image files: what is kept, what is said to be lost, and never half a file."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageCms, PngImagePlugin

from pixelrt.errors import ImageError, OutputError, PixelrtError, UsageError
from pixelrt.runtime.images import encode
from pixelrt.runtime.images.encode import output_format, write_picture
from pixelrt.runtime.images.metadata import Metadata
from pixelrt.runtime.images.read import FORMATS, Picture, read_picture

PHOTO = np.ascontiguousarray(skimage.data.astronaut()[:96, :128])
GREY = np.ascontiguousarray(skimage.data.camera()[:96, :128, None])
RAMP = np.tile(np.linspace(0, 255, 128).astype(np.uint8), (96, 1))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_PROFILE = bytes(16) + b"GRAY" + bytes(16) + b"acsp" + bytes(100)
XMP = b'<x:xmpmeta><rdf:Description exif:PixelXDimension="5" tiff:Orientation="6"/></x:xmpmeta>'
SUFFIXES = [".png", ".jpg", ".webp", ".tif", ".bmp"]


def exif_block() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132] = 6, "maker", "2020:01:02 03:04:05"
    exif[0x8769] = {0xA002: 4000, 0xA003: 3000, 0x9000: b"0232", 0x927C: b"note" * 20}
    exif[0x8825] = {1: "N", 2: (48.0, 51.0, 30.5)}
    return exif.tobytes()[6:]


FULL = Metadata(
    icc_profile=SRGB,
    exif=exif_block(),
    xmp=XMP,
    dpi=(300.0, 240.0),
    text={"Title": "a", "Umlaut": "ö", "International": PngImagePlugin.iTXt("日本", "ja", "題")},
    comment=b"hello",
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def round_trip(path: Path, picture: Picture, **options: Any) -> tuple[Picture, tuple[str, ...]]:
    notes = write_picture(path, picture, **options)
    assert names(path.parent) == [path.name]
    return read_picture(path), notes


# --- pixels ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".jpeg", ".jpe", ".tiff", ".PNG"])
@pytest.mark.parametrize("pixels", [PHOTO, GREY], ids=["RGB", "grey"])
def test_photographs(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    back, notes = round_trip(tmp_path / f"a{suffix}", Picture(pixels))
    assert notes == ()
    assert back.format == FORMATS[suffix.lower()]
    if back.format in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(back.pixels, pixels)
    else:
        mean_square = ((back.pixels.astype(float) - pixels) ** 2).mean()
        assert mean_square < 12  # 37 dB; WebP halves the colour resolution


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_transparency_is_kept_exactly(tmp_path: Path, suffix: str) -> None:
    for pixels in (PHOTO, GREY):
        path = tmp_path / f"{pixels.shape[2]}" / f"a{suffix}"
        path.parent.mkdir()
        back, _ = round_trip(path, Picture(pixels, RAMP), quality=100)
        assert back.alpha is not None
        np.testing.assert_array_equal(back.alpha, RAMP)
        np.testing.assert_array_equal(
            back.pixels, np.broadcast_to(pixels, (96, 128, back.pixels.shape[2]))
        )


def test_webp_at_100_is_lossless(tmp_path: Path) -> None:
    back, _ = round_trip(tmp_path / "a.webp", Picture(PHOTO), quality=100)
    np.testing.assert_array_equal(back.pixels, PHOTO)


def test_jpeg_has_full_colour_resolution(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", Picture(PHOTO))
    with Image.open(tmp_path / "a.jpg") as image:
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}  # type: ignore[attr-defined]


def test_quality_changes_the_size(tmp_path: Path) -> None:
    for suffix in (".jpg", ".webp"):
        sizes = []
        for quality in (50, 95):
            write_picture(tmp_path / f"a{suffix}", Picture(PHOTO), quality=quality)
            sizes.append((tmp_path / f"a{suffix}").stat().st_size)
        assert sizes[0] < sizes[1]


def test_views_are_written_like_arrays(tmp_path: Path) -> None:
    view = PHOTO[::-1, 5:60:2]
    back, _ = round_trip(tmp_path / "a.png", Picture(view, RAMP[::-1, 5:60:2]))
    np.testing.assert_array_equal(back.pixels, view)


def test_the_format_may_be_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.out", Picture(PHOTO), format="webp")
    assert read_picture(tmp_path / "a.out").format == "WEBP"
    assert output_format(Path("x"), "jpg") == "JPEG"


# --- metadata -------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_is_kept_or_its_loss_is_noted(tmp_path: Path, suffix: str) -> None:
    back, notes = round_trip(tmp_path / f"a{suffix}", Picture(PHOTO, metadata=FULL))
    assert back.notes == ()
    kind = FORMATS[suffix]
    for name, words in encode._NAMES.items():
        kept = name in encode._KEEPS[kind]
        assert bool(getattr(back.metadata, name)) == kept
        assert kept != any(words in note for note in notes)
    if kind == "BMP":
        return
    assert back.metadata.icc_profile == SRGB
    assert back.metadata.xmp == XMP.replace(b'"5"', b'"128"').replace(b'"6"', b'"1"')


@pytest.mark.parametrize("suffix", SUFFIXES[:-1])
def test_exif_has_the_written_size_and_orientation(tmp_path: Path, suffix: str) -> None:
    write_picture(tmp_path / f"a{suffix}", Picture(PHOTO, metadata=FULL))
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.size == (128, 96)
        exif = image.getexif()
        assert exif.get(0x0112, 1) == 1
        assert exif[0x010F] == "maker"
        inner = exif.get_ifd(0x8769)
        assert (inner[0xA002], inner[0xA003]) == (128, 96)
        assert inner[0x927C] == b"note" * 20
        assert exif.get_ifd(0x8825)[2] == (48.0, 51.0, 30.5)


def test_maker_notes_do_not_move(tmp_path: Path) -> None:
    """Cameras put absolute offsets into their notes."""
    write_picture(tmp_path / "a.jpg", Picture(PHOTO, metadata=FULL))
    with Image.open(tmp_path / "a.jpg") as image:
        written = image.info["exif"][6:]
    assert FULL.exif is not None
    assert len(written) == len(FULL.exif)
    assert written.index(b"note" * 20) == FULL.exif.index(b"note" * 20)


def test_png_text_comes_back_as_it_was(tmp_path: Path) -> None:
    back, _ = round_trip(tmp_path / "a.png", Picture(PHOTO, metadata=FULL))
    assert back.metadata.text == FULL.text
    japanese = back.metadata.text["International"]
    assert isinstance(japanese, PngImagePlugin.iTXt)
    assert (japanese.lang, japanese.tkey) == ("ja", "題")


@pytest.mark.parametrize(("suffix", "within"), [(".png", 0.01), (".jpg", 0), (".tif", 0.001)])
def test_resolution(tmp_path: Path, suffix: str, within: float) -> None:
    back, _ = round_trip(tmp_path / f"a{suffix}", Picture(PHOTO, metadata=FULL))
    assert back.metadata.dpi == pytest.approx((300, 240), abs=within or 1e-9)


def test_a_jpeg_comment_comes_back(tmp_path: Path) -> None:
    back, _ = round_trip(tmp_path / "a.jpg", Picture(PHOTO, metadata=FULL))
    assert back.metadata.comment == b"hello"


def test_nothing_of_a_file_gets_lost_between_formats(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", Picture(PHOTO, metadata=FULL))
    for suffix in (".tif", ".png", ".webp", ".jpg"):
        picture = read_picture(tmp_path / "a.jpg")
        write_picture(tmp_path / f"b{suffix}", picture)
        write_picture(tmp_path / "c.jpg", read_picture(tmp_path / f"b{suffix}"))
        with Image.open(tmp_path / "c.jpg") as image:
            exif = image.getexif()
            assert exif[0x0132] == "2020:01:02 03:04:05"
            assert exif.get_ifd(0x8769)[0x9000] == b"0232"
            assert exif.get_ifd(0x8825)[1] == "N"
            assert image.info["icc_profile"] == SRGB


@pytest.mark.parametrize(
    ("pixels", "profile", "suffix"),
    [
        (PHOTO, GREY_PROFILE, ".png"),
        (GREY, SRGB, ".jpg"),
        (GREY, GREY_PROFILE, ".webp"),  # WebP turns grey into RGB
        (PHOTO, b"nonsense", ".tif"),
    ],
)
def test_a_profile_of_another_colour_kind_is_dropped(
    tmp_path: Path, pixels: np.ndarray, profile: bytes, suffix: str
) -> None:
    picture = Picture(pixels, metadata=Metadata(icc_profile=profile))
    back, notes = round_trip(tmp_path / f"a{suffix}", picture)
    assert back.metadata.icc_profile is None
    assert any("profile does not fit" in note for note in notes)


def test_a_grey_profile_stays_with_grey(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".tif"):
        picture = Picture(GREY, metadata=Metadata(icc_profile=GREY_PROFILE))
        write_picture(tmp_path / f"a{suffix}", picture)
        assert read_picture(tmp_path / f"a{suffix}").metadata.icc_profile == GREY_PROFILE


@pytest.mark.parametrize(
    ("name", "value"),
    [("exif", exif_block() + bytes(70_000)), ("xmp", b"x" * 66_000), ("comment", b"c" * 66_000)],
)
def test_what_is_too_long_for_a_jpeg_is_left_out(tmp_path: Path, name: str, value: bytes) -> None:
    picture = Picture(PHOTO, metadata=replace(FULL, **{name: value}))
    back, notes = round_trip(tmp_path / "a.jpg", picture)
    assert getattr(back.metadata, name) is None
    assert any("too long for JPEG" in note for note in notes)
    for other in {"exif", "xmp", "comment", "icc_profile"} - {name}:
        assert getattr(back.metadata, other)


@pytest.mark.parametrize(("name", "room"), list(encode._JPEG_ROOM.items())[:3])
def test_what_just_fits_into_a_jpeg_is_kept(tmp_path: Path, name: str, room: int) -> None:
    start = exif_block() if name == "exif" else b""
    value = start + b"x" * (room - len(start))
    back, notes = round_trip(tmp_path / "a.jpg", Picture(PHOTO, metadata=Metadata(**{name: value})))
    assert notes == ()
    assert len(getattr(back.metadata, name)) == room


def test_a_profile_of_several_segments(tmp_path: Path) -> None:
    profile = SRGB + bytes(200_000)
    back, _ = round_trip(tmp_path / "a.jpg", Picture(PHOTO, metadata=Metadata(profile)))
    assert back.metadata.icc_profile == profile


@pytest.mark.parametrize("suffix", SUFFIXES[:-1])
def test_damaged_exif_never_costs_the_picture(tmp_path: Path, suffix: str) -> None:
    for exif in (b"junk", b"II*\0\xff\xff\xff\x7f"):
        picture = Picture(PHOTO, metadata=Metadata(exif=exif))
        notes = write_picture(tmp_path / f"a{suffix}", picture)
        assert any("EXIF data" in note for note in notes)
        assert read_picture(tmp_path / f"a{suffix}").metadata.exif is None


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_transparency_where_there_is_none(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ImageError, match="transparency") as caught:
        write_picture(tmp_path / f"a{suffix}", Picture(PHOTO, RAMP))
    assert caught.value.expected == "PNG, WebP or TIFF"
    assert names(tmp_path) == []
    opaque = Picture(PHOTO, np.full_like(RAMP, 255))
    back, notes = round_trip(tmp_path / f"a{suffix}", opaque)
    assert back.alpha is None
    assert "opaque" in notes[0]


@pytest.mark.parametrize(("suffix", "limit"), [(".jpg", 65_500), (".webp", 16_383)])
def test_sizes_beyond_the_format(tmp_path: Path, suffix: str, limit: int) -> None:
    write_picture(tmp_path / f"a{suffix}", Picture(np.zeros((1, limit, 3), np.uint8)))
    for shape in ((1, limit + 1, 3), (limit + 1, 1, 3)):
        with pytest.raises(OutputError, match="too large") as caught:
            write_picture(tmp_path / f"b{suffix}", Picture(np.zeros(shape, np.uint8)))
        assert str(limit) in caught.value.expected
        assert "PNG" in caught.value.hint
    assert names(tmp_path) == [f"a{suffix}"]


def test_a_webp_with_too_much_detail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Met for real with a photograph of 192 megapixels, which takes half a minute."""

    def fail(*_args: Any, **_options: Any) -> None:
        raise ValueError("encoding error 6")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OutputError, match="could not be encoded as WEBP") as caught:
        write_picture(tmp_path / "a.webp", Picture(PHOTO))
    assert "lossless" in caught.value.hint
    assert names(tmp_path) == []


def test_a_bmp_beyond_4_gib() -> None:
    with pytest.raises(OutputError, match="too large for BMP"):
        encode.check_size("BMP", 40_000, 40_000)


@pytest.mark.parametrize("name", ["a", "a.gif", "a.jxl", ".png"])
def test_unknown_suffixes(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        write_picture(tmp_path / name, Picture(PHOTO))
    assert ".png" in caught.value.expected


@pytest.mark.parametrize("quality", [0, 101, -1])
def test_quality_out_of_range(tmp_path: Path, quality: int) -> None:
    with pytest.raises(UsageError, match="quality"):
        write_picture(tmp_path / "a.jpg", Picture(PHOTO), quality=quality)


def test_no_clobber(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", Picture(PHOTO), overwrite=False)
    with pytest.raises(OutputError, match="exists already"):
        write_picture(tmp_path / "a.png", Picture(GREY), overwrite=False)
    assert read_picture(tmp_path / "a.png").pixels.shape == (96, 128, 3)


# --- never half a file ----------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError("encoder")]
)
def test_a_failing_encoder_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: BaseException
) -> None:
    path = tmp_path / f"a{suffix}"
    write_picture(path, Picture(PHOTO))
    before = path.read_bytes()

    def fail(self: Image.Image, file: io.BufferedRandom, *_args: Any, **_options: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else PixelrtError
    with pytest.raises(expected):
        write_picture(path, Picture(GREY))
    assert path.read_bytes() == before
    assert names(tmp_path) == [path.name]


def test_a_full_disk_at_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="the disk is full"):
        write_picture(tmp_path / "a.png", Picture(PHOTO))
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_cannot_grow(tmp_path: Path, suffix: str) -> None:
    """A real limit of the operating system, met in the middle of the encoder's writing."""
    code = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from pixelrt.errors import OutputError
        from pixelrt.runtime.images.encode import write_picture
        from pixelrt.runtime.images.read import Picture
        noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            write_picture(Path(sys.argv[1]), Picture(noise))
        except OutputError as error:
            print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / f"a{suffix}")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=Path(encode.__file__).parents[2],
    )
    assert "larger than allowed" in result.stdout, result.stderr
    assert names(tmp_path) == []
