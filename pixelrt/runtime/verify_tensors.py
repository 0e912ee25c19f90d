"""Hold a network of a pipeline against its samples: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from pixelrt.errors import FidelityError
from pixelrt.fidelity import Comparison, compare_relative
from pixelrt.pipeline_bundle import PipelineNetwork
from pixelrt.runtime.backends.base import Array, PlannedSession, Session, TensorSample


def tensor_samples(network: PipelineNetwork) -> Iterator[TensorSample]:
    """All samples, smallest first, each read when it is asked for."""
    return (TensorSample(*sample) for sample in network.samples())


def samples_for(network: PipelineNetwork, session: Session) -> Iterator[TensorSample]:
    """Those of the bundle that the session takes, and those that it brings along; smallest first.

    Raises ``FidelityError`` where there is none: nothing could be proven.
    """
    found = tensor_samples(network)
    if not isinstance(session, PlannedSession):
        return found
    fitting = [sample for sample in found if session.takes(sample.feeds)]
    if not fitting and not session.tensor_samples:
        raise FidelityError(
            f"{session.info} cannot be held against the samples of {network.name}",
            found="its plan takes none of them",
            hint="build the plan again: `pixelrt build` adds a sample of its size",
        )
    return iter(sorted((*fitting, *session.tensor_samples), key=lambda sample: sample.size))


def compare_tensors(network: PipelineNetwork, session: Session, sample: TensorSample) -> Comparison:
    """The worst of the outputs, each of its own largest magnitude. Never raises on a mismatch."""
    actual = session.infer({name: np.ascontiguousarray(v) for name, v in sample.feeds.items()})
    return min(worst_of(sample.expected, actual), key=lambda found: (found.psnr, -found.max_abs))


def worst_of(expected: Mapping[str, Array], actual: Mapping[str, Array]) -> Iterator[Comparison]:
    """Each output in units of the largest magnitude that is expected of it."""
    for name, wanted in expected.items():
        yield compare_relative(wanted, actual[name])
