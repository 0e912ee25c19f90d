"""Segments of a network: written beside its graph over the same weights, held against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixelrt.export.check import open_graph
from pixelrt.export.segment_graph import Built
from pixelrt.export.shared_weights import save_with, stored
from pixelrt.export.to_onnx import OPSET
from pixelrt.manifest import Graph, Network, Segment
from pixelrt.segments import Feeds, Tiling, run_segments

Values = NDArray[np.float32]
CHECK = Tiling(memory=2**30, side=40)
"""In pixels of the picture: samples are larger, so that all kinds of cuts are checked."""


def write_segments(built: Sequence[Built], graphs: Path, plain: str) -> list[Segment]:
    """Write ``PLAIN-NN.onnx`` beside ``PLAIN.onnx`` in ``graphs``. What its weight file does not
    hold comes to ``PLAIN-NN.bin``."""
    places = stored(graphs / f"{plain}.onnx")
    segments = []
    for number, one in enumerate(built):
        name = f"{plain}-{number:02}"
        data = save_with(one.model, graphs / f"{name}.onnx", places, f"{name}.bin")
        files = [f"graphs/{file}" for file in data]
        graph = Graph("network", f"graphs/{name}.onnx", one.inputs, [one.output], files, OPSET)
        segments.append(
            Segment(
                graph=graph,
                pixels=one.pixels,
                halo=one.halo,
                memory=one.memory,
                memory_pair=one.memory_pair,
                norm=one.norm,
            )
        )
    return segments


def run_in_tiles(network: Network, pixels: Values, graphs: Path) -> Values:
    """What the segments in ``graphs`` give on onnxruntime's CPU kernels, in tiles with cuts."""

    @contextmanager
    def opened(segment: Segment) -> Iterator[Callable[[Feeds], Values]]:
        session = open_graph(graphs / Path(segment.graph.file).name)
        yield lambda feeds: session.run(None, dict(feeds))[0]

    return run_segments(network, pixels, opened, CHECK)
