"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pixelrt.bench.schema import Clocks, Machine
from pixelrt.errors import BackendError
from pixelrt.runtime.device.cuda import RealCuda
from pixelrt.runtime.machine import processor_name, usable_cpus

CPUINFO = Path("/proc/cpuinfo")
CPUFREQ = Path("/sys/devices/system/cpu")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd")
"""Processor flags that decide which kernels a backend takes."""
PACKAGES = (
    *("numpy", "Pillow", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino"),
    *("onnxruntime-ep-nv-tensorrt-rtx-cu13", "openvino", "tensorrt", "tensorrt-rtx"),
    *("cuda-bindings", "torch", "transformers"),
)


def describe_machine() -> Machine:
    """Processor, clock policy, memory, GPUs and the versions of what is installed."""
    return Machine(
        processor=processor_name(),
        features=_features(),
        usable_cpus=usable_cpus(),
        cpus=os.cpu_count() or 0,
        memory=_total_memory(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        governor=_governor(),
        load_average=_load(),
        gpus=_gpus(),
        versions={"python": platform.python_version()} | _versions(),
    )


def read_clocks() -> Clocks | None:
    """Frequencies now: the kernel's where it tells, else the processor's own table. In a
    virtual machine the latter is often the nominal frequency and never moves."""
    found = _numbers(CPUFREQ.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    if found:
        return _clocks([khz / 1000 for khz in found], "cpufreq")
    table = [float(text) for text in _cpuinfo("cpu MHz")]
    return _clocks(table, "cpuinfo") if table else None


def _clocks(mhz: list[float], source: str) -> Clocks:
    return Clocks(min(mhz), sum(mhz) / len(mhz), max(mhz), source)


def _numbers(paths: Iterable[Path]) -> list[float]:
    found = []
    for path in paths:
        try:
            found.append(float(path.read_text()))
        except (OSError, ValueError):  # a processor that is offline
            continue
    return found


def _cpuinfo(key: str) -> list[str]:
    try:
        lines = CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def _features() -> list[str]:
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or [""])[0].split()
    return [name for name in FEATURES if name in flags]


def _governor() -> str | None:
    try:
        found = {p.read_text().strip() for p in CPUFREQ.glob("cpu*/cpufreq/scaling_governor")}
    except OSError:
        return None
    return ", ".join(sorted(found)) or None


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _total_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0  # not POSIX


def _gpus() -> list[str]:
    try:
        cuda = RealCuda()
        return [cuda.device_name()]
    except BackendError:
        return []  # no driver, no device or no CUDA package: then there is none to use


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
