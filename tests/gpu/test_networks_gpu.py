"""Networks of pipelines on a real GPU: plans and onnxruntime's providers, proven and compared.

Where a backend or the device is missing, each test skips with the reason.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrt.cli.build_requests import Wishes, requests_of
from pixelrt.engines.build import BuildOptions
from pixelrt.engines.make import make_plan
from pixelrt.errors import OutOfMemoryError, UsageError
from pixelrt.fidelity import compare_relative
from pixelrt.pipeline_bundle import PipelineNetwork, open_pipeline
from pixelrt.plans.store import StoredPlan
from pixelrt.plans.target import Flavour
from pixelrt.runtime.backends.base import PlannedSession, Session
from pixelrt.runtime.backends.onnxruntime import OnnxRuntimeCpu
from pixelrt.runtime.backends.onnxruntime_cuda import ONNXRUNTIME_CUDA
from pixelrt.runtime.backends.onnxruntime_rtx import ONNXRUNTIME_RTX
from pixelrt.runtime.backends.select import open_session
from pixelrt.runtime.backends.tensorrt import HERE, TensorRTBackend
from pixelrt.runtime.device.cuda import RealCuda
from tests.gpu.test_memory_gpu import SLACK

CONFIG = {"resolution": 32, "channel_base": 512, "channel_max": 32, "z_dim": 16, "w_dim": 16}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small StyleGAN2 with random weights."""
    from pixelrt.export.stylegan import export_stylegan

    path = tmp_path_factory.mktemp("faces") / "faces.pixelrt"
    return export_stylegan(None, path, config=CONFIG, random_seed=3)


def planned(faces: Path, flavour: Flavour, name: str) -> tuple[PipelineNetwork, TensorRTBackend]:
    """A network and a backend with a plan of it, built here."""
    backend = TensorRTBackend(flavour)
    if reason := backend.missing():
        pytest.skip(f"{flavour}: {reason}")
    options = BuildOptions((), precision="float16")
    if flavour == "tensorrt-rtx":
        version = HERE.load(flavour).version
        options = replace(options, capabilities=HERE.target(flavour, version).capabilities)
    wishes = Wishes(networks=(name,), axes=("N=1,2,4",))
    try:
        trt, (request,) = requests_of(faces, wishes, options, flavour)
    except UsageError as exc:
        pytest.skip(f"{flavour} does not build for this GPU: {exc}")
    facts, files, _ = make_plan(request, trt)
    stored = StoredPlan(facts, "memory", lambda: {n: memoryview(d) for n, d in files.items()})
    network = open_pipeline(faces).network(name)
    return network, TensorRTBackend(flavour, plan=stored)


def feeds(network: PipelineNetwork, count: int) -> dict[str, Any]:
    (spec,) = network.component.graph("network").inputs
    shape = (count, *spec.shape[1:])
    return {spec.name: np.random.default_rng(count).normal(0, 1, shape).astype(spec.dtype)}


def close_to_the_processor(network: PipelineNetwork, session: Session, least: float) -> None:
    """At several counts, some more than a plan takes at once, and again as a recorded graph."""
    with open_session(network, "network", None, (OnnxRuntimeCpu(),)).session as reference:
        for count in (1, 2, 2, 2, 9):
            given = feeds(network, count)
            found = session.infer(given)
            for name, wanted in reference.infer(given).items():
                assert compare_relative(wanted, found[name]).psnr >= least


@pytest.mark.parametrize("name", ["mapping", "synthesis"])
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_plans_of_networks(faces: Path, flavour: Flavour, name: str) -> None:
    network, backend = planned(faces, flavour, name)
    before = RealCuda().memory_info()[0]
    opened = open_session(network, "network", None, (backend,))
    with opened.session as session:
        assert isinstance(session, PlannedSession)
        assert "verified" in opened.verdict
        close_to_the_processor(network, session, 40)
    assert RealCuda().memory_info()[0] > before - SLACK


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_without_memory_says_so(faces: Path, flavour: Flavour) -> None:
    """A device that is full: the run fails with its words, and works again afterwards."""
    network, backend = planned(faces, flavour, "synthesis")
    with open_session(network, "network", None, (backend,)).session as session:
        cuda = RealCuda()
        held: list[int] = []
        try:
            while True:
                held.append(cuda.malloc(256 * 2**20))
        except OutOfMemoryError:
            pass
        try:
            session.infer(feeds(network, 4))
        except OutOfMemoryError as exc:
            assert "memory" in str(exc)  # noqa: PT017 - it may also fit into what was kept
        finally:
            for address in held:
                cuda.free(address)
        close_to_the_processor(network, session, 40)


@pytest.mark.parametrize("name", ["mapping", "synthesis"])
@pytest.mark.parametrize("backend", [ONNXRUNTIME_CUDA, ONNXRUNTIME_RTX], ids=lambda one: one.name)
def test_onnxruntime(faces: Path, backend: Any, name: str) -> None:
    if reason := backend.missing():
        pytest.skip(f"{backend.name}: {reason}")
    network = open_pipeline(faces).network(name)
    with open_session(network, "network", None, (backend,)).session as session:
        close_to_the_processor(network, session, 40)
