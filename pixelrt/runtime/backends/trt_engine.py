"""A TensorRT plan as an ``Engine``: TensorRT 10, 11 and TensorRT for RTX.

Execution contexts use memory that the session manages (``USER_MANAGED``), each of the size that
TensorRT asks for at its shape. A context serves one shape and one set of addresses, as
TensorRT asks of one that is recorded into a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from traceback import clear_frames
from typing import Any

from pixelrt.errors import BackendError, OutOfMemoryError
from pixelrt.plans.facts import PlanFacts
from pixelrt.plans.profiles import NamedLengths, Shape, choose_profile, tensor_shape
from pixelrt.plans.tensorrt import TensorRT, Told, listening
from pixelrt.runtime.backends.base import BackendInfo, Sample
from pixelrt.runtime.closing import release_quietly
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.engine import output_shape
from pixelrt.runtime.device.resources import DeviceBuffer, Stream
from pixelrt.spec import TensorSpec

ALIGNMENT = 256
"""Of the memory that a context works in (``IExecutionContext.set_device_memory``)."""

REMEMBERED = 4096
"""Shapes whose working memory is not asked for again."""

MEMORY_WORDS = ("out of memory", "outofmemory", "allocation failed", "memory allocation")


def failure(what: str, told: Told) -> BackendError:
    """TensorRT's words as an error; ``OutOfMemoryError`` where they speak of memory."""
    if any(word in told.words.lower() for word in MEMORY_WORDS):
        return OutOfMemoryError(what, found=told.words)
    return BackendError(what, found=told.words)


@contextmanager
def letting_go() -> Iterator[None]:
    """Of an error under way, keep no TensorRT object alive: each holds device memory."""
    try:
        yield
    except BaseException as exc:
        clear_frames(exc.__traceback__)
        raise


class Loaded:
    """An ``ICudaEngine`` and its runtime, of which execution contexts are made.

    ``keep``: what has to live as long as the engine (the ``IRuntime``).
    """

    def __init__(self, trt: TensorRT, engine: Any, keep: Any = None) -> None:
        self.trt = trt
        self._engine: Any = engine
        self._keep: Any = keep

    def context(self, profile: int, stream: Stream) -> Any:
        """A new execution context for a profile; switching it may queue work on ``stream``."""
        with listening(self.trt.module) as told:
            context = self._engine.create_execution_context(self._manner())
            if context is None:
                raise failure(f"{self.trt} could not make an execution context", told)
            chosen = context.active_optimization_profile == profile
            if not chosen and not context.set_optimization_profile_async(profile, stream.handle):
                raise failure(f"{self.trt} did not take profile {profile}", told)
        return context

    def _manner(self) -> Any:
        """How contexts are made: in memory of ours; for RTX, with the final kernels at once.

        By default TensorRT for RTX compiles them while others run; a recorded graph would keep
        those others.
        """
        module = self.trt.module
        managed = module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.trt.flavour != "tensorrt-rtx":
            return managed
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(managed)
        eager = module.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        return config

    def set_lengths(
        self,
        context: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        lengths: NamedLengths,
    ) -> int:
        """Tell a context its shapes; gives the bytes of memory that it then works in."""
        with listening(self.trt.module) as told:
            for spec in inputs:
                dims = tensor_shape(spec, lengths)
                if not context.set_input_shape(spec.name, dims):
                    raise failure(f"{self.trt} did not take {spec.name} of shape {dims}", told)
            if missing := context.infer_shapes():
                raise failure(f"{self.trt} did not take {', '.join(missing)}, {lengths}", told)
            for spec in outputs:
                expected = tensor_shape(spec, lengths)
                found = tuple(context.get_tensor_shape(spec.name))
                if found != expected:
                    raise BackendError(
                        f"the plan gives another size than its graph for {lengths}",
                        found=f"{spec.name} {found}",
                        expected=str(expected),
                    )
            size = int(context.update_device_memory_size_for_shapes())
            if told.errors:
                raise failure(f"{self.trt} could not tell its memory for {lengths}", told)
        return size

    def bind(
        self, context: Any, memory: DeviceBuffer | None, tensors: Iterable[tuple[str, DeviceBuffer]]
    ) -> None:
        """Give a context memory to work in, and every tensor its address."""
        if memory is not None:
            context.set_device_memory(memory.address, memory.size)
        with listening(self.trt.module) as told:
            for name, buffer in tensors:
                if not context.set_tensor_address(name, buffer.address):
                    raise failure(f"{self.trt} did not take the address of {name}", told)

    def close(self) -> None:
        """Let go of the engine, then of the runtime; after all contexts."""
        self._engine = None
        self._keep = None


class TensorRTEngine:
    """``loaded``: an engine that was compared with ``facts``; see ``Engine``. It is closed too."""

    max_lanes = 0

    def __init__(
        self,
        loaded: Loaded,
        cuda: Cuda,
        facts: PlanFacts,
        info: BackendInfo,
        samples: tuple[Sample, ...],
    ) -> None:
        self.info = info
        self.inputs = tuple(facts.graph.inputs)
        self.outputs = tuple(facts.graph.outputs)
        self.profiles = facts.shapes()
        self.samples = samples
        self.recordable = facts.options.get("dla_core") is None
        self.loaded = loaded
        self._probes: dict[int, Any] = {}
        self._sizes: dict[Shape, int] = {}
        self._setup = Stream(cuda)
        """Where contexts that only answer questions switch their profile."""

    def work_bytes(self, shape: Shape) -> int:
        if shape not in self._sizes:
            if len(self._sizes) >= REMEMBERED:
                self._sizes.clear()
            profile = choose_profile(self.profiles, shape)
            with letting_go():
                if profile not in self._probes:
                    self._probes[profile] = self.loaded.context(profile, self._setup)
                self._sizes[shape] = self.set_shape(self._probes[profile], shape)
        return self._sizes[shape]

    def result_shape(self, shape: Shape) -> tuple[int, ...]:
        return output_shape(self.outputs[0], shape)

    def lane(self, stream: Stream) -> TensorRTLane:
        return TensorRTLane(self, stream)

    def close(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._setup)
            stack.callback(self._let_go)
            if self._probes:
                stack.callback(self._setup.synchronize)

    def set_shape(self, context: Any, shape: Shape) -> int:
        """Tell a context its shape; gives the bytes of memory that it then works in."""
        return self.loaded.set_lengths(context, self.inputs, self.outputs, shape)

    def _let_go(self) -> None:
        self._probes.clear()
        self.loaded.close()


class TensorRTLane:
    """Contexts on one stream."""

    def __init__(self, engine: TensorRTEngine, stream: Stream) -> None:
        self._engine = engine
        self._stream = stream

    def bind(
        self, shape: Shape, source: DeviceBuffer, result: DeviceBuffer, work: DeviceBuffer | None
    ) -> BoundContext:
        with letting_go():
            try:
                return self._bind(shape, source, result, work)
            except BaseException as exc:
                # the context may have work queued, and is about to go
                release_quietly(self._stream.synchronize, exc)
                raise

    def _bind(
        self, shape: Shape, source: DeviceBuffer, result: DeviceBuffer, work: DeviceBuffer | None
    ) -> BoundContext:
        engine = self._engine
        context = engine.loaded.context(choose_profile(engine.profiles, shape), self._stream)
        size = engine.set_shape(context, shape)
        if size:
            assert work is not None, "the plan needs memory to work in"
            assert work.size >= size, "the memory to work in is too small"
            assert work.address % ALIGNMENT == 0, "the memory to work in is not aligned"
        tensors = ((engine.inputs[0].name, source), (engine.outputs[0].name, result))
        engine.loaded.bind(context, work if size else None, tensors)
        return BoundContext(engine.loaded.trt, context, self._stream)

    def close(self) -> None:
        """Nothing is held: contexts are closed by those who bound them."""


class BoundContext:
    """An execution context with its shape and addresses."""

    def __init__(self, trt: TensorRT, context: Any, stream: Stream) -> None:
        self._trt = trt
        self._context: Any = context
        self._stream = stream

    def launch(self) -> None:
        with listening(self._trt.module) as told:
            if not self._context.execute_async_v3(self._stream.handle):
                raise failure(f"{self._trt} could not run the plan", told)

    def close(self) -> None:
        self._context = None
