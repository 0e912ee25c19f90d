"""The checked calls: what each failure says. NVIDIA's module is a stand-in that reads codes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pixelrt.errors import BackendError, OutOfMemoryError
from pixelrt.runtime.device.cuda import Cuda, RealCuda, Rows, load_api
from tests.runtime.fake_cuda import FakeCuda

NAMES = {
    2: (b"cudaErrorMemoryAllocation", b"out of memory"),
    35: (b"cudaErrorInsufficientDriver", b"CUDA driver version is insufficient"),
    46: (b"cudaErrorDevicesUnavailable", b"CUDA-capable device(s) is/are busy or unavailable"),
    100: (b"cudaErrorNoDevice", b"no CUDA-capable device is detected"),
    600: (b"cudaErrorNotReady", b"device not ready"),
    700: (b"cudaErrorIllegalAddress", b"an illegal memory access was encountered"),
    719: (b"cudaErrorLaunchFailure", b"unspecified launch failure"),
}


class Api:
    """``cuda.bindings.runtime`` with the codes of some calls given; records every call."""

    cudaHostAllocPortable = 1  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaEventDisableTiming = 2  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaDeviceAttr = SimpleNamespace(  # noqa: N815
        cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76
    )

    def __init__(self, codes: dict[str, int] | None = None, driver: int = 12040) -> None:
        self.codes = codes or {}
        self.calls: list[tuple[Any, ...]] = []
        self.values: dict[str, tuple[Any, ...]] = {
            "cudaGetDevice": (0,),
            "cudaGetDeviceCount": (1,),
            "cudaGetDeviceProperties": (SimpleNamespace(name=b"NVIDIA H200"),),
            "cudaDeviceGetAttribute": (9,),
            "cudaMemGetInfo": (3 << 20, 8 << 20),
            "cudaMalloc": (4096,),
            "cudaHostAlloc": (8192,),
            "cudaStreamCreateWithFlags": (11,),
            "cudaEventCreateWithFlags": (12,),
            "cudaEventElapsedTime": (1.5,),
            "cudaStreamEndCapture": (13,),
            "cudaGraphInstantiate": (14,),
            "cudaDriverGetVersion": (driver,),
            "cudaRuntimeGetVersion": (13050,),
        }

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*args: Any) -> tuple[Any, ...]:
            self.calls.append((name, *args))
            code = self.codes.get(name, 0)
            values = self.values.get(name, ())
            return (code, *(None for _ in values)) if code else (0, *values)

        return call

    def cudaGetErrorName(self, code: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, NAMES[code][0]

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, NAMES[code][1]


TARGET, SOURCE = Rows(1, 8, 3, 2), Rows(4, 5, 3, 2)

USES: dict[str, Callable[[Cuda], object]] = {
    "cudaSetDevice": lambda cuda: cuda.activate(),
    "cudaGetDevice": lambda cuda: cuda.current_device(),
    "cudaDeviceSynchronize": lambda cuda: cuda.synchronize(),
    "cudaGetDeviceCount": lambda cuda: cuda.device_count(),
    "cudaGetDeviceProperties": lambda cuda: cuda.device_name(),
    "cudaDeviceGetAttribute": lambda cuda: cuda.compute_capability(),
    "cudaMemGetInfo": lambda cuda: cuda.memory_info(),
    "cudaMalloc": lambda cuda: cuda.malloc(64),
    "cudaFree": lambda cuda: cuda.free(4096),
    "cudaHostAlloc": lambda cuda: cuda.host_alloc(64),
    "cudaFreeHost": lambda cuda: cuda.host_free(8192),
    "cudaStreamCreateWithFlags": lambda cuda: cuda.stream_create(),
    "cudaStreamDestroy": lambda cuda: cuda.stream_destroy(11),
    "cudaStreamSynchronize": lambda cuda: cuda.stream_synchronize(11),
    "cudaStreamWaitEvent": lambda cuda: cuda.stream_wait_event(11, 12),
    "cudaEventCreateWithFlags": lambda cuda: cuda.event_create(False),
    "cudaEventDestroy": lambda cuda: cuda.event_destroy(12),
    "cudaEventRecord": lambda cuda: cuda.event_record(12, 11),
    "cudaEventQuery": lambda cuda: cuda.event_query(12),
    "cudaEventSynchronize": lambda cuda: cuda.event_synchronize(12),
    "cudaEventElapsedTime": lambda cuda: cuda.event_elapsed(12, 12),
    "cudaMemcpyAsync": lambda cuda: cuda.copy(1, 2, 3, "h2d", 11),
    "cudaMemcpy2DAsync": lambda cuda: cuda.copy_2d(TARGET, SOURCE, "d2d", 11),
    "cudaMemsetAsync": lambda cuda: cuda.fill(4096, 0, 64, 11),
    "cudaStreamBeginCapture": lambda cuda: cuda.capture_begin(11),
    "cudaStreamEndCapture": lambda cuda: cuda.capture_end(11),
    "cudaGraphInstantiate": lambda cuda: cuda.graph_instantiate(13),
    "cudaGraphLaunch": lambda cuda: cuda.graph_launch(14, 11),
    "cudaGraphDestroy": lambda cuda: cuda.graph_destroy(13),
    "cudaGraphExecDestroy": lambda cuda: cuda.executable_destroy(14),
}
"""Each call of NVIDIA's and the method that makes it."""


def opened(**codes: int) -> tuple[RealCuda, Api]:
    """A device that was found before ``codes`` began."""
    api = Api()
    cuda = RealCuda(api=api)
    api.codes = codes
    api.calls.clear()
    return cuda, api


@pytest.mark.parametrize("call", USES)
def test_every_return_code_is_checked(call: str) -> None:
    cuda, api = opened()
    USES[call](cuda)
    assert {name for name, *_ in api.calls} == {call}
    cuda, api = opened(**{call: 719})
    with pytest.raises(BackendError) as caught:
        USES[call](cuda)
    message = str(caught.value)
    assert f"{call} failed: cudaErrorLaunchFailure (719)" in message
    assert "unspecified launch failure" in message
    assert "the GPU is lost to this process" in message
    assert api.calls[-1] == ("cudaGetLastError",)


def test_every_method_is_among_them() -> None:
    methods = {name for name in vars(Cuda) if not name.startswith("_")}
    used = {name for use in USES.values() for name in use.__code__.co_names if name.islower()}
    assert methods == used
    assert methods <= set(dir(FakeCuda))


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-bindings is missing")
def test_nvidias_module_has_all_the_names() -> None:
    api = load_api()
    constants = {name for name in vars(Api) if name.startswith("cuda")}
    further = {"cudaGetLastError", "cudaDriverGetVersion", "cudaRuntimeGetVersion"}
    missing = [name for name in {*USES, *constants, *further} if not hasattr(api, name)]
    assert not missing
    assert int(api.cudaHostAllocPortable) == Api.cudaHostAllocPortable
    for group in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
        for name, value in vars(getattr(Api, group)).items():
            assert int(getattr(getattr(api, group), name)) == value


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-bindings is missing")
@pytest.mark.parametrize("call", USES)
def test_nvidias_module_takes_our_arguments(call: str) -> None:
    """Without a driver each call comes as far as CUDA itself, which then says so."""
    api = load_api()
    if int(api.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("a device is here: tests/gpu makes these calls with real handles")
    cuda, _ = opened()
    cuda._api = api
    with pytest.raises(BackendError, match=f"{call} failed: cudaError"):
        USES[call](cuda)


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaGraphInstantiate"])
def test_out_of_memory_says_what_is_free(call: str) -> None:
    cuda, _ = opened(**{call: 2})
    with pytest.raises(OutOfMemoryError) as caught:
        USES[call](cuda)
    assert caught.value.found == "out of memory; 3 of 8 MiB of device memory free"


def test_a_device_that_is_gone_cannot_say_what_is_free() -> None:
    cuda, _ = opened(cudaMalloc=2, cudaMemGetInfo=719)
    with pytest.raises(OutOfMemoryError, match="free device memory unknown"):
        cuda.malloc(1)


@pytest.mark.parametrize(
    ("code", "driver", "words"),
    [
        (35, 0, "no NVIDIA driver is installed; install one for CUDA 13"),
        (35, 12040, "the driver is for CUDA 12.4; update it to one for CUDA 13"),
        (100, 13000, "no GPU is visible"),
        (46, 13000, "another process holds the GPU"),
    ],
)
def test_no_device(code: int, driver: int, words: str) -> None:
    with pytest.raises(BackendError) as caught:
        RealCuda(api=Api({"cudaGetDeviceCount": code}, driver))
    assert words in caught.value.hint
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("device", [1, -1])
def test_a_device_number_that_is_not_there(device: int) -> None:
    with pytest.raises(BackendError, match=f"no CUDA device {device}"):
        RealCuda(device, api=Api())


def test_an_event_that_is_not_ready_is_no_error() -> None:
    cuda, api = opened(cudaEventQuery=600)
    assert cuda.event_query(12) is False
    api.codes = {}
    assert cuda.event_query(12) is True


def test_values_come_through() -> None:
    cuda, api = opened()
    assert cuda.device_name() == "NVIDIA H200"
    assert cuda.compute_capability() == (9, 9)
    assert cuda.memory_info() == (3 << 20, 8 << 20)
    assert (cuda.malloc(1), cuda.host_alloc(1)) == (4096, 8192)
    assert cuda.event_elapsed(1, 2) == 1.5
    for number, kind in enumerate(("h2d", "d2h", "d2d"), 1):
        cuda.copy(1, 2, 3, kind, 11)
        assert api.calls[-1] == ("cudaMemcpyAsync", 1, 2, 3, number, 11)
    USES["cudaMemcpy2DAsync"](cuda)
    assert api.calls[-1] == ("cudaMemcpy2DAsync", 1, 8, 4, 5, 3, 2, 3, 11)
    cuda.activate(7)
    assert api.calls[-1] == ("cudaSetDevice", 7)


def test_a_function_that_the_driver_lacks() -> None:
    cuda, api = opened()

    def lacking(*_: object) -> None:
        raise RuntimeError("Function cudaGraphInstantiate not found")

    api.cudaGraphInstantiate = lacking  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match="cudaGraphInstantiate cannot be called"):
        cuda.graph_instantiate(1)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError) as caught:
        RealCuda()
    for extra in ("cuda", "rtx", "tensorrt"):
        assert f"pixelrt[{extra}]" in caught.value.hint


def test_this_machine_has_a_device_or_says_why_not() -> None:
    """With whatever is installed here: never a crash."""
    try:
        RealCuda()
    except BackendError as exc:
        words = str(exc)
        assert "to do: " in words
