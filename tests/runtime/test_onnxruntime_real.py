"""What the real onnxruntime and NVIDIA's plugin wheel say and do, on machines without a GPU."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

from pixelrt.errors import BackendError
from pixelrt.runtime.backends import ort_engine
from pixelrt.runtime.backends.onnxruntime import OnnxRuntimeCpu
from pixelrt.runtime.backends.onnxruntime_cuda import CudaProvider
from pixelrt.runtime.backends.onnxruntime_device import OrtDeviceBackend, OrtMachine
from pixelrt.runtime.backends.ort_assignment import (
    CPU_PROVIDER,
    RECORD,
    read_profile,
    require_provider,
    require_tiny,
)
from pixelrt.runtime.device.resources import Stream
from pixelrt.runtime.load import load
from pixelrt.runtime.pipelines.image import ImageModel
from tests.runtime.device_cases import on_device, read_back
from tests.runtime.eager_cuda import EagerCuda

SHAPES_ONLY = """
<ir_version: 8, opset_import: ["" : 18]>
agraph (float[N, 3, H, W] x) => (int64[2] size)
<int64[2] sides = {2, 3}, int64 two = {2}>
{
    dims = Shape(x)
    low = Gather(dims, sides)
    size = Mul(low, two)
}
"""

WITH_PIXELS = """
<ir_version: 8, opset_import: ["" : 18]>
agraph (float[N, 3, H, W] x) => (float[N, 3, P, Q] y)
<int64[2] sides = {2, 3}, int64 two = {2}, int64[2] first = {1, 3}>
{
    dims = Shape(x)
    low = Gather(dims, sides)
    high = Mul(low, two)
    depth = Gather(dims, first)
    none = Cast <to = 1> (high)
    double = Concat <axis = 1> (x, x)
    y = Relu(x)
}
"""


def session(text: str, tmp_path: Path) -> Any:
    model = parser.parse_model(text)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}_{number}"
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.add_session_config_entry(RECORD, "1")
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "run")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return ort.InferenceSession(path, options, providers=[CPU_PROVIDER], enable_fallback=0)


def run(one: Any, side: int = 32) -> list[dict[str, Any]]:
    one.run(None, {"x": np.zeros((1, 3, side, side), np.float32)})
    return read_profile(one)


def test_it_tells_which_nodes_are_on_the_cpu(tmp_path: Path) -> None:
    one = session(SHAPES_ONLY, tmp_path)
    assert require_provider(one, CPU_PROVIDER) == (
        "shape_0 (Shape)",
        "gather_1 (Gather)",
        "mul_2 (Mul)",
    )
    with pytest.raises(BackendError, match="left CUDAExecutionProvider out") as caught:
        require_provider(one, "CUDAExecutionProvider")
    assert caught.value.found == "the session runs on CPUExecutionProvider"


def test_computations_on_shapes_are_allowed_and_nothing_else(tmp_path: Path) -> None:
    require_tiny(run(session(SHAPES_ONLY, tmp_path)), "CUDAExecutionProvider")
    with pytest.raises(BackendError, match="does not run the whole graph") as caught:
        require_tiny(run(session(WITH_PIXELS, tmp_path)), "CUDAExecutionProvider")
    assert "relu_6 (Relu)" in caught.value.found
    assert "cast_4 (Cast)" in caught.value.found
    assert "shape_0" not in caught.value.found
    assert "gather_3" not in caught.value.found
    assert caught.value.found.endswith("run by CPUExecutionProvider")


def test_the_profile_is_read_once_and_goes(tmp_path: Path) -> None:
    one = session(SHAPES_ONLY, tmp_path)
    assert run(one)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("events", [[], [{"cat": "Session"}], [{"cat": "Node", "args": {}}]])
def test_a_profile_without_nodes_proves_nothing(events: Any) -> None:
    with pytest.raises(BackendError, match="cannot be told"):
        require_tiny(events, "CUDAExecutionProvider")


class HostProvider(CudaProvider):
    """onnxruntime's CPU in place of a GPU: everything else is real."""

    name = "onnxruntime-host"
    provider = CPU_PROVIDER

    def missing(self, machine: OrtMachine) -> str:
        return ""

    def prepare(self, machine: OrtMachine, ort: Any, cuda: Any) -> None:
        pass

    def add(self, ort: Any, options: Any, setting: Any) -> list[Any]:
        return [(CPU_PROVIDER, {})]


@pytest.mark.parametrize("tile", ["off", 64])
def test_the_real_library_through_the_whole_device_path(
    photo: Any, tile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Binding to addresses, run options, profile and proof, with memory that is the host's."""
    monkeypatch.setattr(ort_engine, "DEVICE_KIND", "cpu")
    cuda = EagerCuda()
    bundle = load("demo").bundle
    device = OrtDeviceBackend(HostProvider(), OrtMachine(cuda=lambda: cuda))
    image = photo[:90, :77]
    with (
        ImageModel(bundle, backends=(device,)) as model,
        ImageModel(bundle, backends=(OnnxRuntimeCpu(),)) as cpu,
    ):
        assert model.info.name == "onnxruntime-host"
        wanted = cpu(image, tile=tile)
        np.testing.assert_array_equal(model(image, tile=tile), wanted)
        wide = image.astype(np.float32) / np.float32(255)
        np.testing.assert_allclose(model(wide, tile=tile), cpu(wide, tile=tile), atol=1e-5)
        with (
            Stream(cuda) as theirs,
            on_device(cuda, np.ascontiguousarray(image), theirs) as array,
        ):
            result = model.run_device(array, tile=tile)
            np.testing.assert_array_equal(read_back(cuda, result), wanted)
            del result
    cuda.assert_clean()


REGISTER = """
import onnxruntime, onnxruntime_ep_nv_tensorrt_rtx as plugin
from pixelrt.errors import BackendError
from pixelrt.runtime.backends.ort_plugins import register

for attempt in range(2):
    try:
        register(onnxruntime, plugin.get_ep_name(), plugin.get_library_path)
        print("registered", plugin.get_ep_name())
    except BackendError as exc:
        print(exc)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="NVIDIA's wheel is for Linux on x86-64",
)
def test_nvidias_plugin_is_registered_or_says_why_not() -> None:
    """In a process of its own: the plugin's libraries stay for the life of one."""
    done = subprocess.run(
        [sys.executable, "-c", REGISTER], capture_output=True, text=True, check=True, timeout=300
    )
    if "registered" in done.stdout:
        assert done.stdout == "registered NvTensorRTRTXExecutionProvider\n" * 2
        return
    assert done.stdout.count("onnxruntime could not load NvTensorRTRTXExecutionProvider") == 2
    assert "libcuda.so.1: cannot open shared object file" in done.stdout
    assert "libcuda.so.1 comes with NVIDIA's driver: install it" in done.stdout
