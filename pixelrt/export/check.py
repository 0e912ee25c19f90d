"""Does the graph reproduce PyTorch? onnxruntime on the CPU answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pixelrt.errors import ExportError
from pixelrt.export.recipe import Recipe
from pixelrt.export.samples import Sample, to_core
from pixelrt.fidelity import Comparison, compare, histogram
from pixelrt.geometry import Size
from pixelrt.grid import grid_size, pad_image
from pixelrt.manifest import Graph, Measured
from pixelrt.spec import ImageSpec

BACKEND = "onnxruntime-cpu"

Outputs = Sequence[NDArray[np.float32]]


def check_core(
    folder: Path,
    graph: Graph,
    recipe: Recipe,
    spec: ImageSpec,
    samples: Sequence[Sample],
    expected: Outputs,
) -> list[Measured]:
    """Compare the float graph with PyTorch on every sample.

    Raises ``ExportError`` with the worst sample and its errors by decade.
    """
    session = open_graph(folder / Path(graph.file).name)
    results = []
    for sample, want in zip(samples, expected, strict=True):
        feed = {session.get_inputs()[0].name: to_core(sample.pixels, spec)}
        got = session.run(None, feed)[0][:, :, : want.shape[2], : want.shape[3]]
        results.append((sample, want, got, compare(want, got)))
    worst = max(results, key=lambda r: r[3].max_abs)
    limit = recipe.tolerance.max_abs
    if worst[3].max_abs > limit:
        raise _mismatch(graph.file, worst[0], worst[3], limit, histogram(worst[1], worst[2]))
    return [Measured(BACKEND, s.name, c.max_abs, c.psnr) for s, _, _, c in results]


def check_image(
    folder: Path, graph: Graph, spec: ImageSpec, samples: Sequence[Sample], expected: Outputs
) -> None:
    """Compare the uint8 graph with the clamped and rounded reference: one level at most."""
    session = open_graph(folder / Path(graph.file).name)
    for sample, want in zip(samples, expected, strict=True):
        size = Size(*sample.pixels.shape[1:3])
        pixels = pad_image(sample.pixels, grid_size(size, spec), spec.pad_mode)
        got = session.run(None, {graph.inputs[0].name: np.ascontiguousarray(pixels)})[0]
        levels = np.rint(np.clip(want, 0, 1) * 255).transpose(0, 2, 3, 1)
        got = got[:, : levels.shape[1], : levels.shape[2]]
        result = compare(levels, got)
        if result.max_abs > 1:
            raise _mismatch(graph.file, sample, result, 1.0, histogram(levels, got))


def open_graph(path: Path) -> ort.InferenceSession:
    """A graph on onnxruntime's CPU kernels. Raises ``ExportError``."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's exceptions share no base class below Exception
        raise ExportError("onnxruntime could not load the exported graph", found=str(exc)) from exc


def _mismatch(
    graph: str, sample: Sample, result: Comparison, limit: float, errors: str
) -> ExportError:
    return ExportError(
        f"{graph} does not reproduce PyTorch; no bundle was written",
        found=f"{result} on sample {sample.name}; errors by size:\n{errors}",
        expected=f"max abs at most {limit:.0e}",
        hint="report this with the checkpoint's configuration: it is a fault of the export",
    )
