"""When frames are shown, in the file's own clock."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, cast

from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

_MICRO = Fraction(1, 10**6)


class Clock:
    """Times of the frames and packets of one file, unchanged with two exceptions.

    A broadcast recording (MPEG-TS, MPEG-PS) starts at any time of its sender's clock: there
    the start becomes zero, for all streams alike. A frame without a time, or with one that is
    not after the last, is put behind the last, since no container can hold it otherwise.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        rate = stream.average_rate or stream.guessed_rate
        self.time_base = stream.time_base or (1 / rate if rate else Fraction(1, 90_000))
        self._usual = max(1, round(1 / (rate * self.time_base))) if rate else 1
        any_clock = bool(container.format.flags & int(cast("Any", Flags.ts_discont).value))
        self._start = (container.start_time or 0) * _MICRO if any_clock else Fraction(0)
        self._last: int | None = None
        self._last_duration = 0
        self._untimed = self._moved = 0

    def of(self, frame: VideoFrame) -> tuple[int, int]:
        """(pts, duration) of the next frame."""
        duration = frame.duration or self._usual
        if frame.pts is None:
            pts = 0 if self._last is None else self._last + self._last_duration
            self._untimed += 1
        else:
            pts = frame.pts - self._offset(self.time_base)
        if self._last is not None and pts <= self._last:
            pts = self._last + 1
            self._moved += 1
        self._last, self._last_duration = pts, duration
        return pts, duration

    def shifted(self, packet: Packet[Stream]) -> Packet[Stream]:
        """A packet of another stream, its times counted from the same start."""
        offset = self._offset(packet.time_base)
        if packet.pts is not None:
            packet.pts -= offset
        if packet.dts is not None:
            packet.dts -= offset
        return packet

    @property
    def last_seconds(self) -> float:
        """When the last frame was shown."""
        return float((self._last or 0) * self.time_base)

    @property
    def notes(self) -> list[str]:
        notes = []
        if self._untimed:
            notes.append(f"{self._untimed} frames have no time; they follow at the frame rate")
        if self._moved:
            notes.append(f"{self._moved} frames had times out of order and follow the one before")
        return notes

    def _offset(self, time_base: Fraction) -> int:
        return round(self._start / time_base)
