"""Networks in segments: run over tiles of a picture such that the result equals the untiled one.

Group norms use statistics of the whole picture, which no tile knows. A network is therefore cut
before every norm: while a segment is run over all tiles, what a later norm needs is gathered from
the tiles' own pixels, and values wait on the host. numpy only; what runs a graph is given.
"""

from pixelrt.segments.check import problems_of
from pixelrt.segments.layout import Step, layout, whole_need
from pixelrt.segments.run import Feeds, Opener, run_segments
from pixelrt.segments.tiles import Tiling

__all__ = [
    "Feeds",
    "Opener",
    "Step",
    "Tiling",
    "layout",
    "problems_of",
    "run_segments",
    "whole_need",
]
