"""How much memory a graph takes per input pixel, measured in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from pixelrt.errors import ExportError
from pixelrt.manifest import MemoryNeed
from pixelrt.spec import ImageSpec

SMALL_SIDE, LARGE_SIDE = 64, 224
MARGIN = 1.15
"""Allocators round up, differently on every machine."""


def measure_memory(core: Path, spec: ImageSpec) -> MemoryNeed:
    """Run ``core`` at two sizes and read the process's peak after each.

    Raises ``ExportError`` where the process fails, with its last words.
    """
    command = [sys.executable, "-m", "pixelrt.export.memory", str(core), *map(str, _sides(spec))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(
            "measuring the memory of the graph failed", found=done.stderr.strip()[-500:]
        )
    base, small, large = json.loads(done.stdout)
    low, high = (side * side for side in _sides(spec))
    per_pixel = max(1, int((large - small) / (high - low) * MARGIN))
    return MemoryNeed(fixed=max(0, small - base - per_pixel * low), per_pixel=per_pixel)


def _sides(spec: ImageSpec) -> tuple[int, int]:
    small = max(spec.minimum, SMALL_SIDE - SMALL_SIDE % spec.multiple)
    large = max(2 * small, LARGE_SIDE - LARGE_SIDE % spec.multiple)
    return small, large


def _peak() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held before exec
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


def _main(core: str, small: int, large: int) -> None:
    import onnxruntime as ort

    base = _peak()
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    session = ort.InferenceSession(core, options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0]
    peaks = [base]
    for side in (small, large):
        pixels = np.full((1, int(feed.shape[1]), side, side), 0.5, np.float32)
        session.run(None, {feed.name: pixels})
        peaks.append(_peak())
    sys.stdout.write(json.dumps(peaks))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
