"""The CUDA runtime calls that pixelrt uses, each one checked.

Everything else goes through the protocol ``Cuda``; ``RealCuda`` is NVIDIA's runtime by way
of ``cuda.bindings``, ``tests/runtime/fake_cuda.py`` a fake that checks the order of work.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pixelrt.errors import BackendError, OutOfMemoryError

INSTALL_HINT = "pip install 'pixelrt[cuda]', 'pixelrt[rtx]' or 'pixelrt[tensorrt]'"

CopyKind = Literal["h2d", "d2h", "d2d"]

LEGACY_STREAM = 1
"""The handle of the default stream that every other blocking stream waits for."""

OUT_OF_MEMORY, INSUFFICIENT_DRIVER, UNAVAILABLE, NO_DEVICE, NOT_READY = 2, 35, 46, 100, 600
"""``cudaError_t`` values with a meaning of their own (driver_types.h)."""

LOST = frozenset({214, 220, 226, 700, 702, 709, 710, *range(714, 720), 911, 999})
"""Errors after which the process can no longer use the device: ECC, NVLink, a kernel fault,
a launch time-out, a destroyed context, an unknown failure."""

HINTS = {
    UNAVAILABLE: "another process holds the GPU in exclusive mode; see nvidia-smi -q -d COMPUTE",
    NO_DEVICE: "no GPU is visible: check nvidia-smi, CUDA_VISIBLE_DEVICES, or docker run --gpus",
    101: "CUDA_VISIBLE_DEVICES may hide the device; nvidia-smi -L lists those there are",
    802: "the GPU is still starting: nvidia-fabricmanager may not be running",
    803: "the driver was updated while it was in use: restart the machine",
    OUT_OF_MEMORY: "close other programs that use the GPU, or lower --max-memory or --tile",
}


@dataclass(frozen=True)
class Rows:
    """``height`` rows of ``width`` bytes, the first at ``address``, each ``pitch`` bytes on."""

    address: int
    pitch: int
    width: int
    height: int

    def __post_init__(self) -> None:
        assert 0 < self.width <= self.pitch, "rows overlap or are empty"
        assert self.height > 0, "there are no rows"


class Cuda(Protocol):
    """One device. Handles and addresses are ints, sizes are bytes, streams may be foreign.

    ``device``: its number, as CUDA counts.

    Every call raises ``BackendError`` where CUDA reports an error, ``OutOfMemoryError``
    where memory was the reason; an error may also come from work that was queued earlier.
    """

    device: int

    def activate(self, device: int | None = None) -> None:
        """Make this device, or the one of that number, the calling thread's current one."""
        ...

    def current_device(self) -> int:
        """The number of the calling thread's current device."""
        ...

    def synchronize(self) -> None:
        """Wait on the host for all work of the current device, whoever queued it."""
        ...

    def device_count(self) -> int: ...

    def device_name(self) -> str: ...

    def compute_capability(self) -> tuple[int, int]: ...

    def memory_info(self) -> tuple[int, int]:
        """Bytes of device memory: free, in all."""
        ...

    def malloc(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def host_alloc(self, size: int) -> int:
        """Page-locked host memory."""
        ...

    def host_free(self, address: int) -> None: ...

    def stream_create(self) -> int:
        """A stream that does not wait for the legacy default stream."""
        ...

    def stream_destroy(self, stream: int) -> None: ...

    def stream_synchronize(self, stream: int) -> None: ...

    def stream_wait_event(self, stream: int, event: int) -> None:
        """Later work of ``stream`` waits for the last record of ``event``, if there is one."""
        ...

    def event_create(self, timing: bool) -> int: ...

    def event_destroy(self, event: int) -> None: ...

    def event_record(self, event: int, stream: int) -> None: ...

    def event_query(self, event: int) -> bool:
        """Whether the work before the last record is done; true if never recorded."""
        ...

    def event_synchronize(self, event: int) -> None: ...

    def event_elapsed(self, start: int, end: int) -> float:
        """Milliseconds between two recorded events made with ``timing``."""
        ...

    def copy(
        self, destination: int, source: int, size: int, kind: CopyKind, stream: int
    ) -> None: ...

    def copy_2d(self, target: Rows, source: Rows, kind: CopyKind, stream: int) -> None:
        """Copy rows to rows, as many and as wide; the two must not overlap."""
        ...

    def fill(self, address: int, value: int, size: int, stream: int) -> None: ...

    def capture_begin(self, stream: int) -> None:
        """Record what is queued on ``stream`` by this thread instead of running it."""
        ...

    def capture_end(self, stream: int) -> int:
        """The recorded graph. Where it raises, the capture is over all the same."""
        ...

    def graph_instantiate(self, graph: int) -> int: ...

    def graph_launch(self, executable: int, stream: int) -> None: ...

    def graph_destroy(self, graph: int) -> None: ...

    def executable_destroy(self, executable: int) -> None: ...


class RealCuda:
    """``Cuda`` over NVIDIA's runtime. ``api`` is the module ``cuda.bindings.runtime``.

    Raises ``BackendError`` where the package, the driver or the device is not there.
    """

    def __init__(self, device: int = 0, api: Any = None) -> None:
        self.device = device
        self._api: Any = api if api is not None else load_api()
        count = self.device_count()
        if not 0 <= device < count:
            raise BackendError(
                f"there is no CUDA device {device}",
                found=f"{count} device(s)",
                hint=HINTS[NO_DEVICE],
            )
        self.activate()

    def activate(self, device: int | None = None) -> None:
        self._call("cudaSetDevice", self.device if device is None else device)

    def current_device(self) -> int:
        return int(self._call("cudaGetDevice")[0])

    def synchronize(self) -> None:
        self._call("cudaDeviceSynchronize")

    def device_count(self) -> int:
        return int(self._call("cudaGetDeviceCount")[0])

    def device_name(self) -> str:
        name = self._call("cudaGetDeviceProperties", self.device)[0].name
        return name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else str(name)

    def compute_capability(self) -> tuple[int, int]:
        kinds = self._api.cudaDeviceAttr
        major, minor = (
            int(self._call("cudaDeviceGetAttribute", kind, self.device)[0])
            for kind in (
                kinds.cudaDevAttrComputeCapabilityMajor,
                kinds.cudaDevAttrComputeCapabilityMinor,
            )
        )
        return major, minor

    def memory_info(self) -> tuple[int, int]:
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def malloc(self, size: int) -> int:
        return int(self._call("cudaMalloc", size)[0])

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def host_alloc(self, size: int) -> int:
        return int(self._call("cudaHostAlloc", size, self._api.cudaHostAllocPortable)[0])

    def host_free(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def stream_create(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)[0])

    def stream_destroy(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def stream_synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def stream_wait_event(self, stream: int, event: int) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def event_create(self, timing: bool) -> int:
        flags = 0 if timing else self._api.cudaEventDisableTiming
        return int(self._call("cudaEventCreateWithFlags", flags)[0])

    def event_destroy(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def event_record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def event_query(self, event: int) -> bool:
        code, _ = self._try("cudaEventQuery", event)
        if int(code) not in (0, NOT_READY):
            raise self._error("cudaEventQuery", code)
        return int(code) == 0

    def event_synchronize(self, event: int) -> None:
        self._call("cudaEventSynchronize", event)

    def event_elapsed(self, start: int, end: int) -> float:
        return float(self._call("cudaEventElapsedTime", start, end)[0])

    def copy(self, destination: int, source: int, size: int, kind: CopyKind, stream: int) -> None:
        self._call("cudaMemcpyAsync", destination, source, size, self._kind(kind), stream)

    def copy_2d(self, target: Rows, source: Rows, kind: CopyKind, stream: int) -> None:
        assert (target.width, target.height) == (source.width, source.height), "rows do not fit"
        self._call(
            "cudaMemcpy2DAsync",
            *(target.address, target.pitch, source.address, source.pitch),
            *(source.width, source.height, self._kind(kind), stream),
        )

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        self._call("cudaMemsetAsync", address, value, size, stream)

    def capture_begin(self, stream: int) -> None:
        # Thread-local: another thread's allocation must not break this capture.
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def capture_end(self, stream: int) -> int:
        return int(self._call("cudaStreamEndCapture", stream)[0])

    def graph_instantiate(self, graph: int) -> int:
        return int(self._call("cudaGraphInstantiate", graph, 0)[0])

    def graph_launch(self, executable: int, stream: int) -> None:
        self._call("cudaGraphLaunch", executable, stream)

    def graph_destroy(self, graph: int) -> None:
        self._call("cudaGraphDestroy", graph)

    def executable_destroy(self, executable: int) -> None:
        self._call("cudaGraphExecDestroy", executable)

    def _kind(self, kind: CopyKind) -> Any:
        kinds = self._api.cudaMemcpyKind
        return {
            "h2d": kinds.cudaMemcpyHostToDevice,
            "d2h": kinds.cudaMemcpyDeviceToHost,
            "d2d": kinds.cudaMemcpyDeviceToDevice,
        }[kind]

    def _call(self, name: str, *args: Any) -> list[Any]:
        """The values that a call gives."""
        code, values = self._try(name, *args)
        if int(code):
            raise self._error(name, code)
        return values

    def _try(self, name: str, *args: Any) -> tuple[Any, list[Any]]:
        """The return code of a call, and its values."""
        try:
            code, *values = getattr(self._api, name)(*args)
        # cuda.bindings raises this where the driver lacks the function
        except RuntimeError as exc:
            raise BackendError(
                f"{name} cannot be called", found=str(exc), hint="update the NVIDIA driver"
            ) from exc
        return code, values

    def _error(self, call: str, raw: Any) -> BackendError:
        api, code = self._api, int(raw)
        name, text = (
            value.decode(errors="replace") if isinstance(value, bytes) else str(value)
            for value in (api.cudaGetErrorName(raw)[1], api.cudaGetErrorString(raw)[1])
        )
        # Reset CUDA's own copy: the next library to look must not find our error.
        api.cudaGetLastError()
        message, found = f"{call} failed: {name} ({code})", text
        if code == OUT_OF_MEMORY:
            return OutOfMemoryError(message, found=f"{text}; {self._free()}", hint=HINTS[code])
        if code == INSUFFICIENT_DRIVER:
            return BackendError(message, found=found, hint=self._driver_hint())
        if code in LOST:
            hint = "the GPU is lost to this process: start it again; dmesg may show an Xid error"
            return BackendError(message, found=found, hint=hint)
        return BackendError(message, found=found, hint=HINTS.get(code, ""))

    def _free(self) -> str:
        code, *values = self._api.cudaMemGetInfo()
        if int(code):
            return "free device memory unknown"
        free, total = (int(value) // 2**20 for value in values)
        return f"{free} of {total} MiB of device memory free"

    def _driver_hint(self) -> str:
        driver = int(self._api.cudaDriverGetVersion()[1] or 0)
        # Any driver of the same major version will do.
        needs = int(self._api.cudaRuntimeGetVersion()[1] or 0) // 1000
        if driver == 0:
            return f"no NVIDIA driver is installed; install one for CUDA {needs} or later"
        return f"the driver is for CUDA {_version(driver)}; update it to one for CUDA {needs}"


def load_api() -> Any:
    """The module ``cuda.bindings.runtime``; ``BackendError`` naming the extra without it."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as exc:
        raise BackendError(
            "CUDA needs the package cuda-bindings", found=str(exc), hint=INSTALL_HINT
        ) from exc


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
