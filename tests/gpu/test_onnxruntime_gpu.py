"""onnxruntime's CUDA and TensorRT-RTX providers on a real GPU, and images that are there already.

Where a provider or the device is missing, each test skips with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError, ImageError
from pixelrt.fidelity import compare
from pixelrt.runtime.backends.base import BackendInfo
from pixelrt.runtime.backends.onnxruntime import OnnxRuntimeCpu
from pixelrt.runtime.backends.onnxruntime_cuda import ONNXRUNTIME_CUDA, CudaProvider
from pixelrt.runtime.backends.onnxruntime_device import HERE, OrtDeviceBackend, open_engine
from pixelrt.runtime.backends.onnxruntime_rtx import ONNXRUNTIME_RTX, RtxProvider
from pixelrt.runtime.device.cuda import RealCuda
from pixelrt.runtime.device.interop import DeviceArray
from pixelrt.runtime.device.resources import Stream
from pixelrt.runtime.load import load
from pixelrt.runtime.pipelines.image import ImageModel
from tests.conftest import resized
from tests.gpu.test_memory_gpu import SLACK
from tests.runtime.device_cases import on_device, read_back
from tests.test_families import CASES, planes

BACKENDS = (ONNXRUNTIME_CUDA, ONNXRUNTIME_RTX, OrtDeviceBackend(RtxProvider(graphs=True)))
IDS = ("cuda", "rtx", "rtx-graphs")


@pytest.fixture(params=BACKENDS, ids=IDS)
def backend(request: pytest.FixtureRequest) -> OrtDeviceBackend:
    """A backend that takes the GPU at hand; what it says where it does not is the reason."""
    one: OrtDeviceBackend = request.param
    reason = one.missing()
    if not reason:
        try:
            one.offers(load("demo").bundle, "image")
        except BackendError as exc:
            reason = str(exc)
    if reason:
        pytest.skip(f"{one.name}: {reason}")
    return one


@pytest.fixture
def no_leak(backend: OrtDeviceBackend) -> Iterator[None]:
    cuda = RealCuda()
    before = cuda.memory_info()[0]
    yield
    # onnxruntime and cuDNN keep what they loaded
    assert cuda.memory_info()[0] > before - 16 * SLACK


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_family_is_proven_and_comes_out_as_on_the_cpu(
    case: str, backend: OrtDeviceBackend, make_bundle: Callable[..., Bundle], photo: Any
) -> None:
    bundle = make_bundle(*CASES[case])
    pixels = planes(resized(photo, 256, 256), bundle.manifest.image.channels_in)
    with (
        ImageModel(bundle, backends=(backend,)) as gpu,
        ImageModel(bundle, backends=(OnnxRuntimeCpu(),)) as cpu,
    ):
        got, wanted = gpu(pixels), cpu(pixels)
        assert gpu.info.name == backend.name
        assert gpu.passed_over == ()
        psnr = 90 if gpu.info.precision == "float32" else 55
        assert compare(wanted / 255, got / 255).psnr >= psnr


@pytest.mark.usefixtures("no_leak")
def test_tiles_and_runs_agree(backend: OrtDeviceBackend, srgan_bundle: Bundle, photo: Any) -> None:
    with ImageModel(srgan_bundle, backends=(backend,)) as model:
        whole = model(photo, tile="off") if not model.session().profiles else None
        first = model(photo, tile=96)
        for _ in range(4):
            np.testing.assert_array_equal(model(photo, tile=96), first)
        if whole is not None:
            assert compare(whole / 255, first / 255).psnr >= 70


@pytest.mark.usefixtures("no_leak")
def test_images_on_the_gpu_come_out_as_from_the_host(
    backend: OrtDeviceBackend, srgan_bundle: Bundle, photo: Any
) -> None:
    cuda = RealCuda()
    with ImageModel(srgan_bundle, backends=(backend,)) as model, Stream(cuda) as theirs:
        for pixels in (photo[:100, :131], photo[:7, :9], photo):
            wanted = model(pixels, tile=96)
            image = np.ascontiguousarray(pixels)
            with on_device(cuda, image, theirs) as array:
                result = model.run_device(array, tile=96)
                np.testing.assert_array_equal(read_back(cuda, result), wanted)
                del result


@pytest.mark.usefixtures("no_leak")
def test_torch_keeps_its_stream_and_its_arrays(
    backend: OrtDeviceBackend, srgan_bundle: Bundle, photo: Any
) -> None:
    """The picture is written late on torch's stream and overwritten at once; out and in place."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    with ImageModel(srgan_bundle, backends=(backend,)) as model:
        wanted = model(photo, tile=96)
        model.run_device(torch.from_numpy(photo.copy()).cuda(), tile=96)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            image = torch.zeros(photo.shape, dtype=torch.uint8, device="cuda")
            torch.cuda._sleep(200_000_000)
            image.copy_(torch.from_numpy(photo).pin_memory(), non_blocking=True)
            out = torch.zeros(wanted.shape, dtype=torch.uint8, device="cuda")
            given = model.run_device(image, stream=stream.cuda_stream, out=out, tile=96)
            taken = torch.from_dlpack(model.run_device(image, stream=stream.cuda_stream, tile=96))
            image.fill_(0)
            copies = out.clone(), taken.clone()
        stream.synchronize()
        assert given.address == out.data_ptr()
        assert taken.device == out.device
        for copy in copies:
            np.testing.assert_array_equal(copy.cpu().numpy(), wanted)
        with pytest.raises(ImageError, match="C-contiguous"):
            model.run_device(image.permute(1, 0, 2))


def test_cupy_takes_results(backend: OrtDeviceBackend, srgan_bundle: Bundle, photo: Any) -> None:
    cupy = pytest.importorskip("cupy")
    with ImageModel(srgan_bundle, backends=(backend,)) as model:
        wanted = model(photo, tile=96)
        for take in (cupy.asarray, cupy.from_dlpack):
            result = take(model.run_device(cupy.asarray(photo), tile=96))
            np.testing.assert_array_equal(result.get(), wanted)


def test_a_result_says_its_device(backend: OrtDeviceBackend, photo: Any) -> None:
    cuda = RealCuda()
    with (
        ImageModel(load("demo").bundle, backends=(backend,)) as model,
        Stream(cuda) as theirs,
        on_device(cuda, np.ascontiguousarray(photo[:40, :40]), theirs) as array,
    ):
        result = model.run_device(array)
        assert isinstance(result, DeviceArray)
        assert result.__dlpack_device__() == (2, 0)


DET = """
<ir_version: 8, opset_import: ["" : 18]>
agraph (uint8[N, H, W, 3] image) => (uint8[N, P, Q, 3] result)
<float[4] twice = {1.0, 2.0, 2.0, 1.0}>
{
    x = Cast <to = 1> (image)
    mean = ReduceMean (x)
    det = Det (mean)
    sum = Add (x, det)
    high = Resize <mode = "nearest"> (sum, , twice)
    result = Cast <to = 2> (high)
}
"""
"""onnxruntime has no CUDA kernel for ``Det``: it goes to the CPU, without a word."""


def test_a_node_without_a_kernel_is_refused_by_name(tmp_path: Path, srgan_bundle: Bundle) -> None:
    reason = ONNXRUNTIME_CUDA.missing()
    if reason:
        pytest.skip(reason)
    model = parser.parse_model(DET)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}_{number}"
    onnx.save(model, tmp_path / "det.onnx")
    graph = srgan_bundle.component.graph("image")
    planted = SimpleNamespace(
        path=lambda _: tmp_path / "det.onnx",
        root=tmp_path,
        sha256=srgan_bundle.sha256,
        manifest=SimpleNamespace(image=srgan_bundle.manifest.image),
    )
    cuda, provider, ort = RealCuda(), CudaProvider(), HERE.load("onnxruntime")
    provider.prepare(HERE, ort, cuda)
    info = BackendInfo("onnxruntime-cuda", "", "", "float32")
    with pytest.raises(BackendError, match="does not run the whole graph") as caught:
        open_engine(ort, cuda, provider, planted, graph, info)  # type: ignore[arg-type]
    assert "det_2 (Det)" in caught.value.found
