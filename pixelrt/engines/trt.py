"""What a build asks of TensorRT's Python module: progress, Ctrl-C, and its products counted.

TensorRT calls back from C++ that cannot carry an exception; nothing here lets one through.
"""

from __future__ import annotations

import math
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from pixelrt.engines.report import Product

Progress = Callable[[str, int, int], None]
"""``progress(phase, step, steps)``; called from the thread that builds."""

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}

Result = TypeVar("Result")


class Watch:
    """Passes progress on and says when to stop; keeps what a caller's function raised."""

    def __init__(self, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self.progress = progress
        self.cancelled = cancelled
        self.stop = threading.Event()
        self.phase = ""
        self.failure: BaseException | None = None

    def tell(self, phase: str, step: int, steps: int) -> bool:
        """Whether to go on."""
        self.phase = phase
        try:
            if self.progress:
                self.progress(phase, step, steps)
            if self.cancelled and self.cancelled():
                self.stop.set()
        except BaseException as exc:  # noqa: BLE001  # C++ cannot carry it; raised after the build
            self.failure = self.failure or exc
            self.stop.set()
        return not self.stop.is_set()


def monitor_of(module: Any, watch: Watch) -> Any:
    """An ``IProgressMonitor`` that tells ``watch``."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # TensorRT has no types
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            watch.tell(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self.steps.get(phase_name, 0)
            return watch.tell(phase_name, min(step + 1, steps), steps)

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def in_thread(work: Callable[[], Result], watch: Watch) -> Result:
    """Run ``work`` in a thread of its own, so that Ctrl-C never strikes inside TensorRT.

    Ctrl-C sets ``watch.stop``; the build ends at its next step, then ``KeyboardInterrupt``
    goes on from here.
    """
    result: list[Result] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            result.append(work())
        except BaseException as exc:  # noqa: BLE001  # raised again in the caller's thread
            failure.append(exc)

    thread = threading.Thread(target=target, name="pixelrt-build")
    with _interrupts_held_back(watch.stop):
        thread.start()
        while thread.is_alive():
            thread.join(0.1)  # a signal that another thread receives does not wake this one
    if failure:
        raise failure[0]
    return result[0]


@contextmanager
def _interrupts_held_back(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C sets ``stop``; whoever handles it otherwise is told when the block is left.

    An exception could strike anywhere, inside ``Thread.start`` too, and leave the thread behind.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in its main thread alone
        return
    struck: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        struck.append(number)
        stop.set()

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if struck:
        signal.raise_signal(signal.SIGINT)


# --- what there is to compute -----------------------------------------------------------


def products_of(module: Any, network: Any) -> tuple[Product, ...]:
    """Convolutions and matrix products of a parsed network whose input shapes are fixed.

    Those with a dimension that only a run can tell are left out.
    """
    kinds = module.LayerType
    classes = {
        kinds.CONVOLUTION: (module.IConvolutionLayer, _convolution),
        kinds.DECONVOLUTION: (module.IDeconvolutionLayer, _deconvolution),
        kinds.MATRIX_MULTIPLY: (module.IMatrixMultiplyLayer, _matrix_product),
        kinds.EINSUM: (module.IEinsumLayer, _einsum),
    }
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in classes:
            layer.__class__, count = classes[layer.type]
            work = count(module, layer)
            if work > 0:
                dtype = layer.get_input(0).dtype.name
                found.append(Product(_node_of(layer), work, _DTYPES.get(dtype, dtype.lower())))
    return tuple(found)


def _node_of(layer: Any) -> str:
    named = re.match(r"\[ONNX Layer: (.*)\]$", layer.metadata or "")
    return named[1] if named else str(layer.name)


def _volume(dims: Iterable[int]) -> int:
    """Number of elements; 0 where a dimension is not known."""
    return math.prod(max(dim, 0) for dim in dims)


def _kernel(layer: Any) -> int:
    """Positions of a filter that each output (or input) element meets."""
    return _volume(layer.kernel_size_nd)


def _convolution(module: Any, layer: Any) -> int:
    inputs, outputs = layer.get_input(0).shape, layer.get_output(0).shape
    return _volume(outputs) * _kernel(layer) * int(inputs[1]) // int(layer.num_groups)


def _deconvolution(module: Any, layer: Any) -> int:
    inputs, outputs = layer.get_input(0).shape, layer.get_output(0).shape
    return _volume(inputs) * _kernel(layer) * int(outputs[1]) // int(layer.num_groups)


def _matrix_product(module: Any, layer: Any) -> int:
    inner = -2 if layer.op0 == module.MatrixOperation.TRANSPOSE else -1
    depth = int(tuple(layer.get_input(0).shape)[inner])
    return _volume(layer.get_output(0).shape) * max(depth, 0)


def _einsum(module: Any, layer: Any) -> int:
    terms = layer.equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        sizes.update(zip(term, layer.get_input(index).shape, strict=False))
    return _volume(sizes.values()) if len(terms) == 2 else 0
