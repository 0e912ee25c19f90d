"""Reading image files: every kind that is taken, every kind that is refused."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin

from pixelrt.errors import ImageError
from pixelrt.runtime.images.encode import write_picture
from pixelrt.runtime.images.read import Picture, picture_from_pil, picture_to_pil, read_picture

RGB = Image.fromarray(skimage.data.astronaut()[:96, :128])
GREY = Image.fromarray(skimage.data.camera()[:96, :128])
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_alpha(image: Image.Image) -> Image.Image:
    ramp = np.tile(np.linspace(0, 255, image.width).astype(np.uint8), (image.height, 1))
    image = image.copy()
    image.putalpha(Image.fromarray(ramp))
    return image


def fake_profile(kind: bytes) -> bytes:
    return bytes(16) + kind + bytes(16) + b"acsp" + bytes(100)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


# --- what is taken --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("image", [RGB, GREY], ids=["RGB", "grey"])
def test_lossless_files(kind: str, image: Image.Image) -> None:
    picture = read_picture(encoded(image, kind))
    assert picture.format == kind
    assert picture.alpha is None
    assert picture.notes == ()
    assert picture.pixels.flags.writeable
    assert picture.pixels.flags.c_contiguous
    np.testing.assert_array_equal(picture.pixels.squeeze(), np.asarray(image))
    assert picture.pixels.shape[2] == (3 if image is RGB else 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency(kind: str) -> None:
    image = with_alpha(RGB)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    picture = read_picture(encoded(image, kind, **options))
    assert picture.alpha is not None
    np.testing.assert_array_equal(np.dstack([picture.pixels, picture.alpha]), np.asarray(image))


def test_grey_with_transparency() -> None:
    image = with_alpha(GREY)
    picture = read_picture(encoded(image, "PNG"))
    assert picture.alpha is not None
    np.testing.assert_array_equal(np.dstack([picture.pixels, picture.alpha]), np.asarray(image))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(compression: str) -> None:
    picture = read_picture(encoded(RGB, "TIFF", compression=compression))
    np.testing.assert_array_equal(picture.pixels, np.asarray(RGB))


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
@pytest.mark.parametrize("image", [RGB, GREY], ids=["RGB", "grey"])
def test_jpeg(image: Image.Image, options: dict[str, Any]) -> None:
    data = encoded(image, "JPEG", quality=90, **options)
    picture = read_picture(data)
    np.testing.assert_array_equal(
        picture.pixels.squeeze(), np.asarray(Image.open(io.BytesIO(data)))
    )


def test_one_bit_becomes_grey() -> None:
    for kind in ("PNG", "TIFF", "BMP"):
        picture = read_picture(encoded(GREY.convert("1"), kind))
        assert picture.pixels.shape == (96, 128, 1)
        assert set(np.unique(picture.pixels)) == {0, 255}


def test_palette_with_and_without_transparency() -> None:
    palette = RGB.quantize(16)
    picture = read_picture(encoded(palette, "PNG"))
    np.testing.assert_array_equal(picture.pixels, np.asarray(palette.convert("RGB")))
    assert picture.alpha is None
    for transparency in (3, bytes(range(0, 160, 10))):
        data = encoded(palette, "PNG", transparency=transparency)
        picture = read_picture(data)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
        assert picture.alpha is not None
        np.testing.assert_array_equal(picture.alpha, expected[..., 3])
        np.testing.assert_array_equal(picture.pixels, expected[..., :3])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_level_of_grey_pngs_of_every_depth(depth: int) -> None:
    top = (1 << depth) - 1
    row = b"\0" + bytes([{1: 0x40, 2: 0x1B, 4: 0x01, 8: 0}[depth], top if depth == 8 else 0])
    data = png(
        2,
        1,
        depth,
        0,
        png_chunk(b"tRNS", struct.pack(">H", {1: 1, 2: 1, 4: 1, 8: 255}[depth])),
        png_chunk(b"IDAT", zlib.compress(row)),
    )
    picture = read_picture(data)
    assert picture.pixels[0, :, 0].tolist() == [0, 255 * {1: 1, 2: 1, 4: 1, 8: 255}[depth] // top]
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[255, 0]]


def test_transparent_colour_of_an_rgb_png() -> None:
    image = RGB.copy()
    image.putpixel((5, 7), (1, 2, 3))
    picture = read_picture(encoded(image, "PNG", transparency=(1, 2, 3)))
    assert picture.alpha is not None
    assert picture.alpha[7, 5] == 0
    assert int((picture.alpha == 0).sum()) == int((np.asarray(image) == (1, 2, 3)).all(2).sum())


def test_cmyk_without_a_profile_is_converted_by_pillow() -> None:
    data = encoded(RGB.convert("CMYK"), "JPEG", quality=95)
    picture = read_picture(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(picture.pixels, expected)
    assert "CMYK was converted to RGB" in picture.notes


def cmyk_profile() -> bytes:
    """A printer that knows white, mid grey for any colour, and black (ICC.1, lut8Type)."""
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += b"".join(struct.pack(">i", 65536 if i % 4 == 0 else 0) for i in range(9))
    lut += bytes(range(256)) * 4
    white, grey, black = (bytes([light, 128, 128]) for light in (255, 128, 0))
    lut += white + black + (grey + black) * 7  # black ink varies fastest
    lut += bytes(range(256)) * 3
    tags = struct.pack(">I4sII", 1, b"A2B0", 128 + 16, len(lut))
    size = struct.pack(">I", 128 + len(tags) + len(lut))
    header = size + b"lcms\x02\x10\0\0prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    header += struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + tags + lut


def test_cmyk_with_a_profile_goes_through_it() -> None:
    image = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 0), (4, 0, 8, 8))
    picture = read_picture(encoded(image, "TIFF", icc_profile=cmyk_profile()))
    assert (picture.pixels[:, :4] >= 250).all()
    cyan = picture.pixels[:, 4:].astype(int)
    assert np.ptp(cyan) <= 4  # the profile says grey; Pillow's own formula would say cyan
    assert 100 < cyan.mean() < 140
    assert picture.metadata.icc_profile is None
    assert picture.notes == ("CMYK was converted to RGB",)


def test_a_broken_cmyk_profile_is_noted() -> None:
    data = encoded(RGB.convert("CMYK"), "JPEG", icc_profile=fake_profile(b"CMYK"))
    assert any("cannot be used" in note for note in read_picture(data).notes)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_tiff_in_other_colour_notations(mode: str) -> None:
    if mode == "LAB":
        profile = ImageCms.createProfile("sRGB")
        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(RGB, profile, lab, outputMode="LAB")
        assert image is not None
    else:
        image = RGB.convert(mode)
    picture = read_picture(encoded(image, "TIFF"))
    assert picture.pixels.shape == (96, 128, 3)
    assert np.abs(picture.pixels.astype(int) - np.asarray(RGB)).mean() < 3


def test_every_way_to_give_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    data = encoded(RGB, "PNG")
    path.write_bytes(data)
    with path.open("rb") as file:
        pictures = [read_picture(path), read_picture(data), read_picture(file)]
        assert not file.closed
    for picture in pictures:
        np.testing.assert_array_equal(picture.pixels, np.asarray(RGB))


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(RGB, "PNG"))
    assert read_picture(tmp_path / "a.jpg").format == "PNG"


# --- orientation ----------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientation_as_pillow_applies_it(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    exif[0x010F] = "maker"
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(RGB, kind, exif=exif, **options)
    picture = read_picture(data)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.metadata.exif is not None
    kept = Image.Exif()
    kept.load(picture.metadata.exif)
    assert kept.get(0x0112, 1) == 1
    assert kept[0x010F] == "maker"


CORNERS = {  # top left, top right, bottom left, bottom right of the stored 1 2 / 3 4 (CIPA DC-008)
    1: (1, 2, 3, 4),
    2: (2, 1, 4, 3),
    3: (4, 3, 2, 1),
    4: (3, 4, 1, 2),
    5: (1, 3, 2, 4),
    6: (3, 1, 4, 2),
    7: (4, 2, 3, 1),
    8: (2, 4, 1, 3),
}


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_by_hand(turn: int) -> None:
    stored = np.zeros((50, 70), np.uint8)
    stored[0, 0], stored[0, -1], stored[-1, 0], stored[-1, -1] = 1, 2, 3, 4
    exif = Image.Exif()
    exif[0x0112] = turn
    pixels = read_picture(encoded(Image.fromarray(stored), "PNG", exif=exif)).pixels[..., 0]
    corners = (pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1])
    assert tuple(int(c) for c in corners) == CORNERS[turn]


@pytest.mark.parametrize("turn", [0, 9, 77])
def test_an_orientation_without_a_meaning_is_none(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    np.testing.assert_array_equal(
        read_picture(encoded(RGB, "PNG", exif=exif)).pixels, np.asarray(RGB)
    )


def test_orientation_that_only_xmp_gives() -> None:
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    picture = read_picture(encoded(RGB, "JPEG", xmp=xmp))
    assert picture.pixels.shape == (128, 96, 3)
    assert picture.metadata.xmp == b'<rdf:Description tiff:Orientation="1"/>'


# --- metadata that is lost ------------------------------------------------------------


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_costs_the_exif_only(kind: str, exif: bytes) -> None:
    picture = read_picture(encoded(RGB, kind, exif=exif))
    assert picture.pixels.shape == (96, 128, 3)
    assert picture.metadata.exif is None
    if len(exif) > 6:
        assert any("EXIF data is damaged" in note for note in picture.notes)


@pytest.mark.parametrize(
    ("image", "profile"),
    [(RGB, fake_profile(b"GRAY")), (GREY, SRGB), (RGB, b"nonsense")],
    ids=["grey for RGB", "RGB for grey", "damaged"],
)
def test_a_profile_that_does_not_fit_is_dropped_and_noted(
    image: Image.Image, profile: bytes
) -> None:
    picture = read_picture(encoded(image, "PNG", icc_profile=profile))
    assert picture.metadata.icc_profile is None
    assert any("profile" in note for note in picture.notes)


def test_a_tiff_with_odd_tags_is_read_without_a_python_warning() -> None:
    data = bytearray(encoded(RGB, "TIFF", copyright="x" * 50))
    entry = data.index(struct.pack("<HHI", 33432, 2, 51))
    data[entry + 8 : entry + 12] = struct.pack("<I", len(data) - 3)  # beyond the end
    picture = read_picture(bytes(data))
    np.testing.assert_array_equal(picture.pixels, np.asarray(RGB))
    assert picture.notes


def test_a_phone_s_jpeg_with_further_pictures_gives_the_first() -> None:
    data = encoded(RGB, "MPO", save_all=True, append_images=[RGB.resize((32, 24))], quality=95)
    picture = read_picture(data)
    assert picture.format == "JPEG"
    assert picture.pixels.shape == (96, 128, 3)
    assert "1 further pictures" in picture.notes[0]


# --- what is refused ------------------------------------------------------------------


def deep_tiff(array: NDArray[Any]) -> bytes:
    return encoded(Image.fromarray(array), "TIFF")


def sixteen_bit_rgb_tiff(bits: int, form: int) -> bytes:
    """Pillow cannot write these: a plain one-strip RGB TIFF by hand."""
    body = bytes(4 * 4 * 3 * bits // 8)
    tags = [
        (256, 3, 1, 4),
        (257, 3, 1, 4),
        (258, 3, 3, 8 + 2 + 9 * 12 + 4),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 200),
        (277, 3, 1, 3),
        (279, 4, 1, len(body)),
        (339, 3, 1, form),
    ]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + bytes(4)
    head = b"II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<HHH", bits, bits, bits)
    return head.ljust(200, b"\0") + body


def idat(row_bytes: int) -> bytes:
    return png_chunk(b"IDAT", zlib.compress(bytes(row_bytes + 1) * 4))


DEEP: dict[str, Callable[[], bytes]] = {
    "48-bit PNG": lambda: png(4, 4, 16, 2, idat(24)),
    "64-bit PNG": lambda: png(4, 4, 16, 6, idat(32)),
    "16-bit grey PNG": lambda: png(4, 4, 16, 0, idat(8)),
    "16-bit grey and alpha PNG": lambda: png(4, 4, 16, 4, idat(16)),
    "16-bit grey TIFF": lambda: deep_tiff(np.zeros((4, 4), np.uint16)),
    "32-bit TIFF": lambda: deep_tiff(np.zeros((4, 4), np.int32)),
    "float TIFF": lambda: deep_tiff(np.zeros((4, 4), np.float32)),
    "48-bit TIFF": lambda: sixteen_bit_rgb_tiff(16, 1),
    "float RGB TIFF": lambda: sixteen_bit_rgb_tiff(32, 3),
    "12-bit JPEG": lambda: encoded(RGB, "JPEG").replace(
        b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"
    ),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_is_refused(name: str) -> None:
    with pytest.raises(ImageError, match="more than 8 bits per channel") as caught:
        read_picture(DEEP[name]())
    text = str(caught.value)
    assert ("floating" in text) == ("float" in name)
    assert "8 bits per channel" in caught.value.expected
    assert "uint16" in caught.value.hint
    assert any(bits in caught.value.found for bits in ("12-bit", "16-bit", "32-bit"))


def apng() -> bytes:
    return encoded(RGB, "PNG", save_all=True, append_images=[GREY.convert("RGB")])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (apng, "2 frames"),
        (
            lambda: encoded(
                RGB, "WEBP", save_all=True, append_images=[GREY.convert("RGB"), RGB.rotate(9)]
            ),
            "3 frames",
        ),
        (lambda: encoded(RGB, "TIFF", save_all=True, append_images=[RGB, RGB]), "3 pages"),
    ],
    ids=["APNG", "WebP", "TIFF"],
)
def test_several_images_in_one_file(make: Callable[[], bytes], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_picture(make())


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", encoded(RGB, "PNG"))
    return file.getvalue()


OTHERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is no image\n", "text"),
    "HTML": (b"<!DOCTYPE html><html></html>", "HTML"),
    "zip": (zipped(), "zip archive"),
    "GIF": (encoded(RGB.quantize(8), "GIF"), "GIF"),
    "AVIF": (b"\0\0\0\x20ftypavif" + bytes(100), "AVIF"),
    "HEIC": (b"\0\0\0\x20ftypheic" + bytes(100), "HEIC"),
    "PSD": (b"8BPS\0\1" + bytes(100), "Photoshop"),
    "noise": (bytes(range(128, 255)), "unknown bytes"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_named(name: str) -> None:
    data, words = OTHERS[name]
    with pytest.raises(ImageError, match=words) as caught:
        read_picture(data)
    assert "PNG, JPEG, WebP, TIFF and BMP" in caught.value.expected


def test_missing_files_folders_and_text_streams(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_picture(tmp_path)
    with pytest.raises(ImageError, match="not binary"):
        read_picture(io.StringIO("text"))  # type: ignore[arg-type]


FULL: dict[str, bytes] = {
    "PNG": encoded(RGB, "PNG"),
    "JPEG": encoded(RGB, "JPEG", quality=95),
    "progressive JPEG": encoded(RGB, "JPEG", progressive=True),
    "WEBP": encoded(RGB, "WEBP"),
    "lossless WEBP": encoded(RGB, "WEBP", lossless=True),
    "WEBP with alpha": encoded(with_alpha(RGB), "WEBP"),
    "TIFF": encoded(RGB, "TIFF"),
    "LZW TIFF": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "deflate TIFF": encoded(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "BMP": encoded(RGB, "BMP"),
    "palette BMP": encoded(RGB.quantize(16), "BMP"),
}


@pytest.mark.parametrize("strict", [False, True], ids=["lenient Pillow", "strict Pillow"])
@pytest.mark.parametrize("name", FULL)
def test_files_that_are_cut_short_are_never_half_read(
    name: str, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", not strict)
    data = FULL[name]
    whole = read_picture(data)
    offsets = {1, 2, 7, 11, 20, 29, 30, 40, 60, *range(100, len(data), len(data) // 25)}
    for end in sorted(offsets | {len(data) - n for n in (1, 2, 5, 12, 13, 50)}):
        try:
            picture = read_picture(data[:end])
        except ImageError:
            continue
        np.testing.assert_array_equal(picture.pixels, whole.pixels, err_msg=f"cut at {end}")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is not strict
    with pytest.raises(ImageError):
        read_picture(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("name", ["JPEG", "progressive JPEG"])
def test_a_jpeg_filled_up_with_zeros(name: str) -> None:
    data = FULL[name]
    with pytest.raises(ImageError, match="damaged or cut short"):
        read_picture(data[: len(data) // 2] + bytes(len(data)))
    whole = read_picture(data).pixels
    np.testing.assert_array_equal(read_picture(data + bytes(100)).pixels, whole)


def test_a_png_with_one_wrong_bit() -> None:
    data = bytearray(FULL["PNG"])
    for at in (20, 30, 50, len(data) // 2, len(data) - 20):
        data[at] ^= 1
        with pytest.raises(ImageError):
            read_picture(bytes(data))
        data[at] ^= 1
    read_picture(bytes(data))


BOMB = png(60_000, 60_000, 8, 2, png_chunk(b"IDAT", zlib.compress(bytes(1000))))


def test_a_header_that_claims_gigapixels_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(ImageError, match="too large") as caught:
        read_picture(BOMB)
    assert "60000x60000 = 3,600.0 megapixels" in caught.value.found
    assert "500.0 megapixels" in caught.value.expected
    assert "max_pixels" in caught.value.hint


def test_a_webp_canvas_is_checked_before_it_is_opened() -> None:
    data = bytearray(encoded(with_alpha(RGB), "WEBP"))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xff\xff\x00\xff\xff\x00"
    with pytest.raises(ImageError, match="too large"):
        read_picture(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("lossless", [False, True])
def test_the_limit_is_the_caller_s(kind: str, lossless: bool) -> None:
    options = {"lossless": lossless} if kind == "WEBP" else {}
    data = encoded(RGB, kind, **options)
    assert read_picture(data, max_pixels=96 * 128).pixels.shape == (96, 128, 3)
    with pytest.raises(ImageError, match="too large"):
        read_picture(data, max_pixels=96 * 128 - 1)


def test_pillow_s_own_limit_neither_applies_nor_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("PNG", "TIFF", "WEBP"):
        data = encoded(RGB, kind)
        assert read_picture(data).pixels.shape == (96, 128, 3)
        assert Image.MAX_IMAGE_PIXELS == 100
        with pytest.raises(ImageError):
            read_picture(data[:200])
        assert Image.MAX_IMAGE_PIXELS == 100


def test_a_hundred_megapixels_give_no_warning() -> None:
    data = encoded(Image.new("L", (10_000, 10_000)), "PNG", compress_level=1)
    assert read_picture(data).pixels.shape == (10_000, 10_000, 1)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
def test_zero_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError):
        read_picture(png(*size, 8, 2, idat(12)))
    bmp = bytearray(encoded(RGB, "BMP"))
    bmp[18:26] = struct.pack("<II", *size)
    with pytest.raises(ImageError):
        read_picture(bytes(bmp))


def test_text_that_explodes() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "x" * 50_000_000, zip=True)
    data = encoded(RGB, "PNG", pnginfo=info)
    assert len(data) < 200_000
    with pytest.raises(ImageError, match="cannot be read"):
        read_picture(data)


def test_a_camera_raw_file_does_not_pass_as_its_thumbnail() -> None:
    for tags in ({254: 1}, {50706: b"\1\4\0\0"}):
        data = encoded(RGB, "TIFF", tiffinfo=tags)
        with pytest.raises(ImageError, match="camera raw"):
            read_picture(data)


@given(st.binary(max_size=200), st.sampled_from(sorted(FULL)))
def test_garbage_after_a_good_start_is_an_image_error_or_a_picture(junk: bytes, name: str) -> None:
    for keep in (30, 200):
        try:
            read_picture(FULL[name][:keep] + junk, max_pixels=10**6)
        except ImageError:
            continue


# --- Pillow's globals and threads -----------------------------------------------------


def test_threads_leave_pillow_as_it_was() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.showwarning)
    filters = list(warnings.filters)
    files = [*FULL.values(), BOMB, b"junk"]
    failures: list[BaseException] = []

    def work() -> None:
        for data in files * 5:
            try:
                read_picture(data)
            except ImageError:
                continue
            except BaseException as exc:
                failures.append(exc)
                raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.showwarning)
    assert after == before
    assert list(warnings.filters) == filters


# --- Pillow images --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pillow_there_and_back(mode: str) -> None:
    image = with_alpha(RGB).convert(mode)
    image.info = {"dpi": (72.0, 72.0), "comment": b"hello"}
    if mode.startswith("RGB"):
        image.info["icc_profile"] = SRGB
    back = picture_to_pil(picture_from_pil(image))
    assert back.mode == mode
    assert back.info == image.info
    np.testing.assert_array_equal(np.asarray(back), np.asarray(image))


def test_a_pillow_image_is_turned_upright_and_not_changed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encoded(RGB, "JPEG", exif=exif))) as image:
        picture = picture_from_pil(image)
        assert picture.pixels.shape == (128, 96, 3)
        assert image.size == (128, 96)
        assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_pillow_images_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="8 bits"):
        picture_from_pil(Image.new(mode, (4, 4)))


def test_an_empty_pillow_image_is_refused() -> None:
    with pytest.raises(ImageError, match="empty"):
        picture_from_pil(Image.new("RGB", (0, 4)))


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.uint16)],
)
def test_pixels_of_another_form_are_refused(pixels: NDArray[Any]) -> None:
    with pytest.raises(ImageError, match="not the pixels"):
        Picture(pixels)


def test_an_alpha_of_another_size_is_refused() -> None:
    with pytest.raises(ImageError, match="alpha"):
        Picture(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8))


# --- property -------------------------------------------------------------------------

PIXELS = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])).flatmap(
    lambda shape: arrays(np.uint8, shape)
)


@given(pixels=PIXELS, kind=st.sampled_from(["png", "tif", "bmp"]), data=st.data())
def test_writing_then_reading_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory,
    pixels: NDArray[np.uint8],
    kind: str,
    data: st.DataObject,
) -> None:
    alpha = None
    if kind != "bmp":
        alpha = data.draw(st.none() | arrays(np.uint8, pixels.shape[:2]))
    path = tmp_path_factory.mktemp("property") / f"a.{kind}"
    write_picture(path, Picture(pixels, alpha))
    back = read_picture(path)
    np.testing.assert_array_equal(back.pixels, pixels)
    if alpha is None:
        assert back.alpha is None
    else:
        assert back.alpha is not None
        np.testing.assert_array_equal(back.alpha, alpha)
