"""Hold a network of a pipeline against its samples: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pixelrt.fidelity import Comparison, compare
from pixelrt.pipeline_bundle import PipelineNetwork
from pixelrt.runtime.backends.base import Array, Session


@dataclass(frozen=True)
class TensorSample:
    """Inputs by name with PyTorch's fp32 outputs by name."""

    name: str
    feeds: Mapping[str, Array]
    expected: Mapping[str, Array]


def tensor_samples(network: PipelineNetwork) -> Iterator[TensorSample]:
    """All samples, smallest first, each read when it is asked for."""
    return (TensorSample(*sample) for sample in network.samples())


def compare_tensors(network: PipelineNetwork, session: Session, sample: TensorSample) -> Comparison:
    """The worst of the outputs, each of its own largest magnitude. Never raises on a mismatch."""
    actual = session.infer({name: np.ascontiguousarray(v) for name, v in sample.feeds.items()})
    return min(worst_of(sample.expected, actual), key=lambda found: (found.psnr, -found.max_abs))


def worst_of(expected: Mapping[str, Array], actual: Mapping[str, Array]) -> Iterator[Comparison]:
    """Each output in units of the largest magnitude that is expected of it."""
    for name, wanted in expected.items():
        peak = peak_of(wanted)
        yield compare(wanted / peak, actual[name] / peak)


def peak_of(values: Array) -> float:
    """The largest magnitude, or 1 where all are zero."""
    return float(np.max(np.abs(values), initial=0.0)) or 1.0
