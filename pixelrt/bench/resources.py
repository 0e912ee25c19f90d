"""Peak memory while something runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pixelrt.errors import BackendError
from pixelrt.runtime.device.cuda import Cuda, RealCuda

PROC = Path("/proc/self")
INTERVAL = 0.005
RESET_PEAK = "5"
"""Written to ``clear_refs``, it sets the peak back to the present (Linux, proc(5))."""

Probe = Callable[[], int]
"""Bytes in use now."""

KERNEL_METHOD = "VmHWM of the process, set back before the first run"
SAMPLED_METHOD = f"resident memory of the process, sampled every {INTERVAL * 1000:g} ms"
UNKNOWN_METHOD = "this system does not tell"
DEVICE_METHOD = f"used memory of the whole device, sampled every {INTERVAL * 1000:g} ms"
NO_DEVICE_METHOD = "no device memory is used"

DEVICE_BACKENDS = ("cuda", "tensorrt", "rtx")


@dataclass
class Peak:
    """``value``: the highest number of bytes seen, 0 where nothing tells. ``before``: the
    number at the start."""

    method: str
    before: int = 0
    value: int = 0


@contextmanager
def host_peak() -> Iterator[Peak]:
    """The process's peak resident memory within the block: the kernel's own figure where it
    can be set back, else a sampling thread's."""
    if _set_back():
        peak = Peak(KERNEL_METHOD, _status("VmRSS"))
        yield peak
        peak.value = _status("VmHWM")
    elif _status("VmRSS"):
        with sampled_peak(lambda: _status("VmRSS"), SAMPLED_METHOD) as peak:
            yield peak
    else:
        yield Peak(UNKNOWN_METHOD)


@contextmanager
def device_peak(backend: str, cuda: Cuda | None = None) -> Iterator[Peak | None]:
    """Used memory of the GPU within the block; ``None`` for backends without one."""
    if not any(word in backend for word in DEVICE_BACKENDS):
        yield None
        return
    try:
        device = cuda or RealCuda()
    except BackendError as exc:
        yield Peak(f"the device cannot be asked: {exc.message}")
        return
    with sampled_peak(lambda: _used(device), DEVICE_METHOD) as peak:
        yield peak


@contextmanager
def sampled_peak(probe: Probe, method: str, interval: float = INTERVAL) -> Iterator[Peak]:
    """The highest value of ``probe``, asked at the start, at the end and in between."""
    now = probe()
    peak = Peak(method, now, now)
    done = threading.Event()

    def sample() -> None:
        while not done.wait(interval):
            peak.value = max(peak.value, probe())

    thread = threading.Thread(target=sample, name="memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.value = max(peak.value, probe())


def _used(cuda: Cuda) -> int:
    cuda.activate()  # the sampling thread has no current device of its own
    free, total = cuda.memory_info()
    return total - free


def _set_back() -> bool:
    try:
        (PROC / "clear_refs").write_text(RESET_PEAK)
    except OSError:
        return False  # not Linux, or not allowed in this container
    return _status("VmHWM") > 0


def _status(key: str) -> int:
    """Bytes that ``/proc/self/status`` gives for a key; 0 where there is none."""
    try:
        lines = (PROC / "status").read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 if found else 0
