"""The most that this machine does: large matrix products and copies in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.isolated import run_isolated
from benchmarks.records import Ceiling
from pixelrt.errors import PixelrtError
from pixelrt.runtime.machine import usable_cpus

SIDE = 2048
COPY_BYTES = 256 * 2**20
SECONDS = 2.0
SMALL, TOO_LONG = 256, 20.0
"""A product that would take so many seconds is measured on matrices of the small side instead:
some processors have no kernels for float16."""
PRECISIONS = ("float32", "bfloat16", "float16")
HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def measure_ceilings(*, quick: bool = False) -> list[Ceiling]:
    """Products through torch and OpenVINO in each precision, and a copy; each one in its own
    process. What cannot be measured has 0 and the reason."""
    side, seconds = (256, 0.05) if quick else (SIDE, SECONDS)
    jobs: list[tuple[str, str, Callable[[], float]]] = [
        (f"{library} matrix product", precision, partial(product, precision, side, seconds))
        for library, product in (("torch", torch_product), ("openvino", openvino_product))
        for precision in PRECISIONS
    ]
    size = COPY_BYTES // (64 if quick else 1)
    jobs.append(("numpy memory copy", "bytes", partial(memory_copy, size, seconds)))
    return [_measured(*job) for job in jobs]


def ceiling_of(ceilings: list[Ceiling], precision: str) -> float:
    """The best product of a precision in operations per second, 0 where there is none."""
    return max((one.per_second for one in ceilings if one.precision == precision), default=0.0)


def torch_product(precision: str, side: int, seconds: float) -> float:
    import torch

    torch.set_num_threads(usable_cpus())
    dtype = getattr(torch, precision)

    def rate(side: int) -> float:
        a, b = (torch.rand(side, side).to(dtype) for _ in range(2))
        return 2.0 * side**3 / fastest(lambda: torch.mm(a, b), seconds)

    with torch.inference_mode():
        small = rate(min(side, SMALL))
        return small if 2.0 * side**3 > small * TOO_LONG else max(small, rate(side))


def openvino_product(precision: str, side: int, seconds: float) -> float:
    """A product with constant weights, as convolutions and layers have them."""
    import openvino as ov
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    source = ops.parameter([side, side], np.float32)
    weights = ops.constant(rng.random((side, side), np.float32))
    model = ov.Model([ops.matmul(source, weights, False, False)], [source])
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": usable_cpus(),
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    feed = rng.random((side, side), np.float32)
    run = partial(request.infer, [feed], share_inputs=True, share_outputs=True)
    return 2.0 * side**3 / fastest(run, seconds)


def memory_copy(size: int, seconds: float) -> float:
    """Bytes read and written per second by one thread."""
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    return 2.0 * size / fastest(lambda: np.copyto(target, source), seconds)


def fastest(run: Callable[[], object], seconds: float) -> float:
    """The shortest of the runs within ``seconds``, after one that does not count. A ceiling
    is what is possible, so the best run counts and not the median."""
    run()
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best


def _measured(what: str, precision: str, run: Callable[[], float]) -> Ceiling:
    try:
        return Ceiling(what, precision, run_isolated(run), "")
    except (PixelrtError, ImportError, RuntimeError, TypeError) as exc:
        return Ceiling(what, precision, 0.0, " ".join(str(exc).split())[:200])
