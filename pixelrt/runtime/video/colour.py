"""Decoded frames -> RGB arrays -> frames to encode, with the matrix and range they are meant in.

8-bit samples are converted by swscale. Deeper ones are converted here, in float32: swscale's
16-bit RGB puts white at 65280 of 65535, and a network would see everything 0.4 % darker.
The coefficients are those of ITU-T H.273, table 4; the tags are its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from pixelrt.errors import VideoError
from pixelrt.geometry import Size
from pixelrt.runtime.backends.base import Array

RGB, BT709, UNSPECIFIED, BT601 = 0, 1, 2, 6
"""Matrix coefficients; 2 means unspecified for primaries and transfer too."""

_LUMA = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""Matrix -> (KR, KB): BT.709, FCC, BT.601 (625 and 525 lines), SMPTE 240M, BT.2020."""

_SWSCALE = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
_DEPTHS = (8, 9, 10, 12, 14, 16)
_EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


@dataclass(frozen=True)
class Colour:
    """What the samples of a stream mean. ``full``: 0 to the peak, not 16 to 235."""

    matrix: int
    full: bool
    primaries: int
    transfer: int

    @property
    def range(self) -> ColorRange:
        return ColorRange.JPEG if self.full else ColorRange.MPEG


def colour_of(frame: VideoFrame, name: str) -> Colour:
    """What a frame says of itself; what it leaves open is taken as players take it.

    An unspecified matrix is BT.709 from 1280 columns or 577 rows on, and BT.601 below; an
    unspecified range is limited. Raises ``VideoError`` for matrices that are not linear.
    """
    tags = frame.color_primaries, frame.color_trc
    if frame.format.is_rgb:
        return Colour(RGB, True, *tags)
    matrix = frame.colorspace
    if matrix in (RGB, UNSPECIFIED):
        matrix = usual_matrix(Size(frame.height, frame.width))
    if matrix not in _LUMA:
        raise VideoError(
            f"{name} has a colour matrix that is not supported",
            found=f"number {matrix} of ITU-T H.273, table 4",
            expected="BT.601, BT.709, BT.2020 (non-constant luminance), SMPTE 240M, FCC or RGB",
            hint="convert the video to BT.709 first",
        )
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return Colour(matrix, full, *tags)


def usual_matrix(size: Size) -> int:
    """The matrix of a picture of this size where nobody says which."""
    return BT709 if size.width >= 1280 or size.height > 576 else BT601


def bits(form: VideoFormat) -> int:
    """Bits per sample as they are worked with: 8, 9, 10, 12, 14 or 16."""
    deepest = max(component.bits for component in form.components)
    return next((depth for depth in _DEPTHS if depth >= deepest), _DEPTHS[-1])


class ToRGB:
    """Frames of one stream as (H, W, 3) arrays: uint8 at 8 bits, else float32 in [0, 1].

    ``size``: what every frame is resized to (bicubic) before; ``None`` leaves it.
    """

    def __init__(self, colour: Colour, depth: int, size: Size | None) -> None:
        self.colour = colour
        self.depth = depth
        self.size = size
        self._swscale = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> Array:
        if self.depth == 8:
            return np.asarray(self._reformat(frame, "rgb24").to_ndarray())
        peak = 2**self.depth - 1
        if self.colour.matrix == RGB:
            planes = _planes(self._reformat(frame, f"gbrp{self.depth}le"))
            rgb = np.stack([planes[k] for k in (2, 0, 1)], 2).astype(np.float32)
            return np.asarray(rgb / np.float32(peak))
        planes = _planes(self._reformat(frame, f"yuv444p{self.depth}le"))
        return _rgb_of(planes, self.colour, self.depth)

    def _reformat(self, frame: VideoFrame, name: str) -> VideoFrame:
        matrix = _SWSCALE.get(self.colour.matrix)
        full = ColorRange.JPEG if name == "rgb24" else self.colour.range
        return self._swscale.reformat(
            frame,
            width=self.size.width if self.size else None,
            height=self.size.height if self.size else None,
            format=name,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            interpolation=_EXACT,
            src_color_range=self.colour.range,
            dst_color_range=full,
        )


class FromRGB:
    """(H, W, 3) arrays, uint8 or float32 in [0, 1], as frames of the pixel format ``form``."""

    def __init__(self, colour: Colour, form: VideoFormat) -> None:
        self.colour = colour
        self.form = form
        self.depth = bits(form)
        self._swscale = VideoReformatter()

    def __call__(self, pixels: Array) -> VideoFrame:
        if self.depth == 8:
            if pixels.dtype != np.uint8:
                pixels = np.rint(pixels * np.float32(255)).astype(np.uint8)
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            source = ColorRange.JPEG
        else:
            frame = self._deep(pixels)
            source = self.colour.range
        return self._tagged(self._reformat(frame, source))

    def _deep(self, pixels: Array) -> VideoFrame:
        peak = 2**self.depth - 1
        if pixels.dtype == np.uint8:
            pixels = pixels.astype(np.float32) / np.float32(255)
        if self.form.is_rgb:
            samples = np.rint(pixels * np.float32(peak))
            return _frame([samples[..., k] for k in (1, 2, 0)], f"gbrp{self.depth}le")
        return _frame(_yuv_of(pixels, self.colour, self.depth), f"yuv444p{self.depth}le")

    def _reformat(self, frame: VideoFrame, source: ColorRange) -> VideoFrame:
        matrix = _SWSCALE.get(self.colour.matrix)
        return self._swscale.reformat(
            frame,
            format=self.form.name,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            interpolation=_EXACT,
            src_color_range=source,
            dst_color_range=self.colour.range,
        )

    def _tagged(self, frame: VideoFrame) -> VideoFrame:
        frame.colorspace = self.colour.matrix
        frame.color_range = self.colour.range
        frame.color_primaries = self.colour.primaries
        frame.color_trc = self.colour.transfer
        return frame


def _rgb_of(planes: list[Array], colour: Colour, depth: int) -> Array:
    kr, kb = _LUMA[colour.matrix]
    black, luma, middle, chroma = _levels(colour, depth)
    y, cb, cr = (plane.astype(np.float32) for plane in planes)
    y = (y - black) / luma
    rgb = np.empty((*y.shape, 3), np.float32)
    rgb[..., 0] = y + (cr - middle) * np.float32(2 * (1 - kr) / chroma)
    rgb[..., 2] = y + (cb - middle) * np.float32(2 * (1 - kb) / chroma)
    rgb[..., 1] = (y - kr * rgb[..., 0] - kb * rgb[..., 2]) / np.float32(1 - kr - kb)
    return np.clip(rgb, 0, 1, out=rgb)


def _yuv_of(rgb: Array, colour: Colour, depth: int) -> list[Array]:
    kr, kb = _LUMA[colour.matrix]
    black, luma, middle, chroma = _levels(colour, depth)
    y = rgb @ np.array([kr, 1 - kr - kb, kb], np.float32)
    cb = (rgb[..., 2] - y) * np.float32(chroma / (2 * (1 - kb))) + middle
    cr = (rgb[..., 0] - y) * np.float32(chroma / (2 * (1 - kr))) + middle
    return [np.clip(np.rint(plane), 0, 2**depth - 1) for plane in (y * luma + black, cb, cr)]


def _levels(colour: Colour, depth: int) -> tuple[np.float32, ...]:
    """Level of black, span of luma, level of no colour, span of chroma (H.273, 8.3)."""
    step, peak = 2 ** (depth - 8), 2**depth - 1
    values = (0, peak, 128 * step, peak) if colour.full else (16, 219, 128, 224)
    return tuple(np.float32(value * (1 if colour.full else step)) for value in values)


def _planes(frame: VideoFrame) -> list[Array]:
    """The planes of a frame of 16-bit words, each (H, W)."""
    return [_words(plane)[:, : frame.width] for plane in frame.planes]


def _frame(planes: list[Array], form: str) -> VideoFrame:
    height, width = planes[0].shape
    frame = VideoFrame(width, height, form)
    for plane, values in zip(frame.planes, planes, strict=True):
        _words(plane)[:, :width] = values
    return frame


def _words(plane: Any) -> Array:
    memory = np.asarray(memoryview(plane)).view("<u2")
    return memory.reshape(plane.height, plane.line_size // 2)
