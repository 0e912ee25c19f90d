"""Short clips that the tests make themselves, and what they look at in the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

NTSC = Fraction(30000, 1001)
LOSSLESS = {"libx264": {"qp": "0"}, "ffv1": {}}


def moving(count: int = 12, height: int = 36, width: int = 48) -> list[np.ndarray[Any, Any]]:
    """A coloured square that moves over a gradient, (height, width, 3) uint8 each."""
    rows, columns = np.mgrid[:height, :width]
    frames = []
    for k in range(count):
        picture = np.stack([rows * 3, columns * 4, np.full_like(rows, 90)], 2) % 256
        picture[5 : 5 + height // 4, 2 + k : 2 + k + width // 4] = (230, 40, 10 * k % 256)
        frames.append(picture.astype(np.uint8))
    return frames


@dataclass
class Clip:
    """How a clip is made: frames (H, W, 3) uint8 in ``pixel_format``, and sound."""

    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    audio: str = "aac"
    frames: Sequence[np.ndarray[Any, Any]] = field(default_factory=moving)
    rate: Fraction = NTSC
    pts: Sequence[int] | None = None
    time_base: Fraction | None = None
    rotation: int = 0
    aspect: Fraction | None = None
    tags: dict[str, int] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        with av.open(str(path), "w", container_options=self.container_options) as target:
            target.metadata.update(self.metadata)
            stream = target.add_stream(self.codec, rate=self.rate, options=self.options)
            height, width = self.frames[0].shape[:2]
            stream.width, stream.height, stream.pix_fmt = width, height, self.pixel_format
            stream.codec_context.time_base = self.time_base or 1 / self.rate
            stream.codec_context.sample_aspect_ratio = self.aspect or Fraction(0)
            for name, value in self.tags.items():
                setattr(stream.codec_context, name, value)
            if self.rotation:
                stream.set_display_rotation(self.rotation)
            sound = target.add_stream(self.audio, rate=44100) if self.audio else None
            for k, pixels in enumerate(self.frames):
                target.mux(stream.encode(self._frame(k, pixels)))
                for tone in tones(k, sound):
                    target.mux(sound.encode(tone))
            target.mux(stream.encode(None))
            if sound:
                target.mux(sound.encode(None))
        return path

    def _frame(self, index: int, pixels: np.ndarray[Any, Any]) -> VideoFrame:
        matrix = self.tags.get("colorspace", 6)
        frame = VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format=self.pixel_format,
            dst_colorspace=5 if matrix in (0, 6) else matrix,
            dst_color_range=self.tags.get("color_range", 1),
        )
        for name, value in self.tags.items():
            setattr(frame, name, value)
        frame.pts = self.pts[index] if self.pts else index
        frame.time_base = self.time_base or 1 / self.rate
        return frame


def tones(index: int, sound: Any) -> list[av.AudioFrame]:
    """About 35 ms of a tone for each frame."""
    if sound is None:
        return []
    name = sound.codec_context.format.name
    made = []
    start = 1536 * index
    wave = np.sin(np.arange(start, start + 1536) * 0.05) * 0.3
    if name.startswith("s16"):
        wave = (wave * 32767).astype(np.int16)
    samples = np.stack([wave, wave])
    if not name.endswith("p"):
        samples = samples.T.reshape(1, -1)
    dtype = np.int16 if name.startswith("s16") else np.float32
    tone = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples.astype(dtype)), format=name, layout="stereo"
    )
    tone.sample_rate, tone.pts, tone.time_base = 44100, start, Fraction(1, 44100)
    made.append(tone)
    return made


def frames_of(path: Path, form: str = "rgb24") -> list[np.ndarray[Any, Any]]:
    with av.open(str(path)) as source:
        return [f.reformat(format=form).to_ndarray() for f in source.decode(video=0)]


def times_of(path: Path) -> list[Fraction]:
    """When each frame is shown, in seconds."""
    with av.open(str(path)) as source:
        return [f.pts * f.time_base for f in source.decode(video=0)]


def packets_of(path: Path, kind: str) -> list[tuple[Any, ...]]:
    with av.open(str(path)) as source:
        return [
            (p.pts, p.duration, p.time_base, bytes(p))
            for p in source.demux()
            if p.stream.type == kind and p.size
        ]
