"""Networks of pipelines on onnxruntime's providers for NVIDIA's GPUs, on fakes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrt.errors import BackendError, FidelityError, OutOfMemoryError
from pixelrt.pipeline_bundle import PipelineNetwork
from pixelrt.runtime.backends.select import open_session
from tests.pipelines import mixing, network_feeds, write_pipeline
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_onnxruntime import CPU, CUDA, SHAPES, FakeOrt, Node, network
from tests.runtime.test_onnxruntime_device import cuda_backend, rtx_backend, rtx_world


@pytest.fixture
def unet(tmp_path: Path) -> PipelineNetwork:
    return write_pipeline(tmp_path / "small.pixelrt").network("unet")


@pytest.mark.parametrize("kind", ["cuda", "rtx"])
def test_tensors_of_any_lengths(unet: PipelineNetwork, kind: str) -> None:
    cuda = FakeCuda()
    ort = rtx_world(cuda) if kind == "rtx" else FakeOrt(cuda, (*SHAPES, *network(CUDA)))
    backend = rtx_backend(ort) if kind == "rtx" else cuda_backend(ort)
    opened = open_session(unet, "network", None, (backend,))
    with opened.session as session:
        assert opened.verdict.startswith("verified now")
        for lengths in ({"B": 2, "h": 3, "w": 4, "T": 5}, {"B": 1, "h": 7, "w": 2, "T": 9}):
            feeds = network_feeds(**lengths)
            noise, pooled = mixing(*feeds.values())
            found = session.infer(feeds)
            np.testing.assert_array_equal(found["noise"], noise)
            np.testing.assert_array_equal(found["pooled"], pooled)
        (state,) = ort.sessions
        assert not [name for name in state.options if "profile" in name]
        session.close()
        with pytest.raises(BackendError, match="closed"):
            session.infer(feeds)
    gc.collect()
    assert state.stream_when_closed
    cuda.assert_clean()


BY_DESIGN = Node("gather", "Gather", CPU, ({"int64": [2, 77]}, {"int64": [77]}))


@pytest.mark.parametrize(
    ("facts", "kind", "said"),
    [
        ({"nodes": (BY_DESIGN, *network(CUDA))}, BackendError, r"gather \(Gather\): run by CPU"),
        ({"run_error": "out of memory"}, OutOfMemoryError, "ran out of memory"),
        ({"load_error": "no such operator"}, BackendError, "could not load"),
        ({"wrong": 3}, FidelityError, "does not reproduce"),
    ],
)
def test_what_is_wrong_is_said(
    unet: PipelineNetwork, facts: dict[str, Any], kind: type[Exception], said: str
) -> None:
    cuda = FakeCuda()
    ort = FakeOrt(cuda, **{"nodes": (*SHAPES, *network(CUDA)), **facts})
    with pytest.raises((kind, BackendError)) as caught:
        open_session(unet, "network", None, (cuda_backend(ort),))
    assert caught.match(said)
    del caught
    gc.collect()
    cuda.assert_clean()
