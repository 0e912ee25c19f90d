"""What this machine has: processors and memory that the process may really use."""

from __future__ import annotations

import os
import platform
import sys
from functools import lru_cache
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """Processors this process may use: affinity and the container's quota counted in."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _cgroup_numbers("cpu.max")
    if len(quota) == 2 and quota[1] > 0:
        count = min(count, max(1, round(quota[0] / quota[1])))
    return count


def available_memory() -> int:
    """Bytes that can still be taken without swapping; the container's limit counted in."""
    free = _meminfo("MemAvailable")
    limit, used = _cgroup_numbers("memory.max"), _cgroup_numbers("memory.current")
    if limit and used:
        free = min(free, max(0, limit[0] - used[0])) if free else limit[0] - used[0]
    return free or 2 * 1024**3


@lru_cache(maxsize=1)
def processor_name() -> str:
    """The processor's model name, e.g. ``Intel(R) Xeon(R) Processor``."""
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform == "linux" and cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown processor"


@lru_cache(maxsize=1)
def processor_flags() -> frozenset[str]:
    """Instruction sets in the kernel's words, e.g. ``avx2``, ``amx_bf16``; empty where it
    does not tell (it does on Linux)."""
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform == "linux" and cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, words = line.partition(":")
            if name.strip().lower() in ("flags", "features"):
                return frozenset(words.split())
    return frozenset()


def _meminfo(key: str) -> int:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return 0
    for line in path.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _cgroup_numbers(name: str) -> list[int]:
    """Numbers of a cgroup v2 file; empty where it is missing or says ``max``."""
    try:
        words = (CGROUP / name).read_text().split()
    except OSError:
        return []  # no cgroup v2 here: nothing limits the process that way
    return [int(word) for word in words] if all(word.isdigit() for word in words) else []
