"""How a frame is to be turned to stand upright (FFmpeg's display matrix)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame

from pixelrt.runtime.backends.base import Array

_ONE = 1 << 16  # 16.16 fixed point


@dataclass(frozen=True)
class Turn:
    """Rows and columns change places if ``swaps_sides``, then each runs ``rows``, ``columns``.

    ``rows`` and ``columns`` are 1, or -1 for backwards.
    """

    swaps_sides: bool
    rows: int
    columns: int

    def __call__(self, pixels: Array) -> Array:
        turned = pixels.swapaxes(0, 1) if self.swaps_sides else pixels
        return turned[:: self.rows, :: self.columns]


def side_data(frame: VideoFrame) -> list[SideData]:
    """What a frame brings along beside its samples. PyAV's stub calls it a dictionary."""
    return list(cast("Any", frame.side_data))


UPRIGHT = Turn(False, 1, 1)


def turn_of(frame: VideoFrame) -> Turn | None:
    """The turn that a frame asks for; ``None`` for angles that are no multiple of 90 degrees.

    The matrix (a b u / c d v / x y w) sends column x and row y to a*x + c*y and b*x + d*y.
    """
    for data in side_data(frame):
        if data.type == Type.DISPLAYMATRIX:
            a, b, _, c, d = np.frombuffer(bytes(data), "<i4")[:5].tolist()
            if abs(a) == abs(d) == _ONE and b == c == 0:
                return Turn(False, d // _ONE, a // _ONE)
            if abs(b) == abs(c) == _ONE and a == d == 0:
                return Turn(True, b // _ONE, c // _ONE)
            return None
    return UPRIGHT
