"""A fake of TensorRT's Python module: a numpy function as work queued on ``FakeCuda``.

It checks what the real one leaves undefined. ``Hazard`` is raised where memory is too small or
not aligned to 256, where a context is changed after it was recorded into a graph, and (by
``FakeCuda``) where an execution is not ordered with others that use its memory, or an engine or
context goes while work of it is queued. What the real one reports goes to the logger, with
``False`` or ``None``, as there. Engines and contexts hold device memory until they die.
"""

from __future__ import annotations

import enum
import hashlib
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from pixelrt.errors import BackendError, OutOfMemoryError
from pixelrt.geometry import round_up
from pixelrt.plans.axis_profiles import AxisProfile, Lengths, lengths_of, parse_axes
from pixelrt.plans.profiles import Profile, parse_profile, tensor_shape
from pixelrt.plans.target import Flavour
from pixelrt.plans.tensorrt import TensorRT, use_module
from pixelrt.spec import TensorSpec
from tests.runtime.fake_cuda import FakeCuda, Hazard

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]
"""All inputs in order to the output, or to a tuple of outputs."""

MAGIC = b"faketrt1"
WEIGHTS = b"the weights of the network"
CONTEXT_BYTES = 512


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class TensorFormat(enum.Enum):
    LINEAR, CHW4 = range(2)


class DataType(enum.Enum):
    FLOAT, HALF, UINT8, BF16, INT64 = range(5)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class SerializationFlag(enum.Enum):
    EXCLUDE_WEIGHTS, EXCLUDE_LEAN_RUNTIME, INCLUDE_REFIT = range(3)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


KINDS = {"uint8": "UINT8", "float32": "FLOAT", "float16": "HALF", "int64": "INT64"}


@dataclass(frozen=True)
class Net:
    """What a fake plan holds. ``function``: its name in ``FakeTensorRT``.

    ``more``: inputs and outputs beside the first of each, for networks of pipelines. ``graph``: an
    ONNX model, weights and all, that computes instead of a function; ``refit``: its weights can be
    replaced.
    """

    function: str
    source: TensorSpec
    result: TensorSpec
    profiles: tuple[Profile, ...] | tuple[AxisProfile, ...]
    work_per_pixel: int = 40
    stripped: bool = False
    static: bool = False
    more: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = ((), ())
    graph: bytes = b""
    refit: bool = False

    @property
    def sources(self) -> tuple[TensorSpec, ...]:
        return (self.source, *self.more[0])

    @property
    def results(self) -> tuple[TensorSpec, ...]:
        return (self.result, *self.more[1])

    def plan(self) -> bytes:
        facts = {
            "function": self.function,
            "sources": [[one.name, one.dtype, one.shape] for one in self.sources],
            "results": [[one.name, one.dtype, one.shape] for one in self.results],
            "profiles": [str(profile) for profile in self.profiles],
            "work": self.work_per_pixel,
            "stripped": self.stripped,
            "static": self.static,
            "refit": self.refit,
            "graph": len(self.graph),
        }
        body = json.dumps(facts).encode()
        return MAGIC + len(body).to_bytes(4, "little") + body + self.graph

    @classmethod
    def read(cls, data: bytes) -> Net:
        """Raises ``ValueError`` in words like TensorRT's."""
        if data[: len(MAGIC)] != MAGIC:
            raise ValueError("Serialization assertion header.magicTag failed: no engine file")
        size = int.from_bytes(data[8:12], "little")
        if len(data) < 12 + size:
            raise ValueError("Serialization assertion failed: plan size mismatch")
        facts, graph = json.loads(data[12 : 12 + size]), data[12 + size :]
        if len(graph) != facts["graph"]:
            raise ValueError("Serialization assertion failed: plan size mismatch")
        sources, results = (
            tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in facts[which])
            for which in ("sources", "results")
        )
        named = any("=" in text for text in facts["profiles"])
        profiles = tuple(map(parse_axes if named else parse_profile, facts["profiles"]))
        return cls(
            facts["function"],
            sources[0],
            results[0],
            profiles,  # type: ignore[arg-type]
            facts["work"],
            facts["stripped"],
            facts["static"],
            (sources[1:], results[1:]),
            graph,
            facts["refit"],
        )

    def lengths(self, shapes: Mapping[str, tuple[int, ...]]) -> Lengths:
        """Raises ``UsageError`` where they do not agree."""
        return Lengths(tuple(lengths_of(self.sources, shapes).items()))

    def holds(self, index: int, name: str, dims: tuple[int, ...]) -> bool:
        """Whether the dimensions of one input are within a profile."""
        (spec,) = (one for one in self.sources if one.name == name)
        least, _, most = (tensor_shape(spec, one) for one in self.profiles[index].shapes)
        return len(dims) == len(least) and all(
            low <= length <= high for low, length, high in zip(least, dims, most, strict=True)
        )


class FakeTensorRT:
    """The module's world: its device, its functions, and what was asked of it.

    ``refuse``: a method of TensorRT that fails from now on. ``built_in``: weights that no
    engine lets be replaced. ``location``, ``format`` and
    ``swapped``: what engines say of their tensors.
    """

    def __init__(
        self,
        cuda: FakeCuda,
        functions: Mapping[str, Function],
        *,
        flavour: Flavour = "tensorrt",
        version: str = "11.4.0",
        capturable: bool = True,
        weights: int = 4096,
    ) -> None:
        self.cuda = cuda
        self.functions = dict(functions)
        self.flavour = flavour
        self.version = version
        self.capturable = capturable
        self.weights = weights
        self.refuse = ""
        self.location = TensorLocation.DEVICE
        self.format = TensorFormat.LINEAR
        self.swapped = False
        self.built_in: set[str] = set()
        self.executed: list[tuple[int, ...]] = []
        self.contexts = 0
        self.host_code: list[bool] = []
        self.module = self._module()

    @property
    def trt(self) -> TensorRT:
        return use_module(self.module, self.flavour)

    def _module(self) -> Any:
        # weakly: loggers, and so the modules, are kept for the life of the process
        world = weakref.ref(self)

        class ILogger:
            ERROR, INTERNAL_ERROR, WARNING, INFO = range(4)

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, logger: Any) -> None:
                here = world()
                if here is not None and here.refuse == "Runtime":
                    logger.log(0, "planted refusal of Runtime")
                    raise TypeError("factory function returned nullptr")
                self.logger = logger

            def deserialize_cuda_engine(self, data: Any) -> Any:
                try:
                    net = Net.read(bytes(data))
                    here = world()
                    assert here is not None
                    here.host_code.append(self.engine_host_code_allowed)
                    return FakeEngine(here, self.logger, net)
                except (ValueError, BackendError) as exc:
                    report(self.logger, exc)
                    return None

        class Refitter:
            def __init__(self, engine: FakeEngine, logger: Any) -> None:
                self.engine, self.logger, self.graph, self.weights = engine, logger, b"", b""

            def get_all_weights(self) -> list[str]:
                here = world()
                assert here is not None
                names = weights_of(self.engine.net.graph) if self.engine.net.graph else ()
                return [name for name in names if name not in here.built_in]

            def refit_cuda_engine(self) -> bool:
                if self.engine.net.graph:
                    self.engine.replace(self.graph)
                    return True
                self.engine.refitted = self.weights == WEIGHTS
                return self.engine.refitted

            def get_missing_weights(self) -> list[str]:
                right = self.engine.net.graph or self.weights == WEIGHTS
                return [] if right else ["conv.weight"]

        class OnnxParserRefitter:
            def __init__(self, refitter: Refitter, logger: Any) -> None:
                self.refitter, self.logger = refitter, logger

            def refit_from_file(self, path: str) -> bool:
                file = Path(path)
                if self.refitter.engine.net.graph:
                    return self._take(file)
                beside = file.read_bytes().partition(b"external ")[2].decode()
                self.refitter.weights = (file.parent / beside).read_bytes() if beside else b""
                return bool(beside)

            def _take(self, file: Path) -> bool:
                """As the parser does: by name, of those that the engine has; all or none."""
                try:
                    names = self.refitter.get_all_weights()
                    graph = self.refitter.engine.net.graph
                    self.refitter.graph = with_weights(graph, file, names)
                except ValueError as exc:
                    report(self.logger, exc)
                    return False
                return True

        module = ModuleType("fake_tensorrt")
        vars(module).update(
            __version__=self.version,
            ILogger=ILogger,
            Runtime=Runtime,
            Refitter=Refitter,
            OnnxParserRefitter=OnnxParserRefitter,
            SerializationFlag=SerializationFlag,
            TensorIOMode=TensorIOMode,
            TensorLocation=TensorLocation,
            TensorFormat=TensorFormat,
            ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
            DynamicShapesKernelSpecializationStrategy=DynamicShapesKernelSpecializationStrategy,
        )
        return module


def report(logger: Any, failure: Exception) -> None:
    """As TensorRT does: words to the logger, no exception."""
    words = str(failure)
    if isinstance(failure, OutOfMemoryError):
        words = f"Error Code 2: OutOfMemory (Requested size was not available.) {words}"
    logger.log(0, words)


class _Held:
    """Device memory that goes with its owner, as TensorRT frees it: without a word."""

    def __init__(self, cuda: FakeCuda, size: int) -> None:
        self.cuda, self.size = cuda, size
        self.address = cuda.malloc(size)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self.cuda._remove(self.address, "device")

    @property
    def span(self) -> tuple[int, int]:
        return self.address, self.size


class FakeEngine:
    """``ICudaEngine``."""

    def __init__(self, world: FakeTensorRT, logger: Any, net: Net) -> None:
        self.world, self.logger, self.net = world, logger, net
        self.refitted = not net.stripped
        self.weights = _Held(world.cuda, world.weights)
        self.tensors = {one.name: one for one in (*net.sources, *net.results)}

    @property
    def refittable(self) -> bool:
        return self.net.refit

    def replace(self, graph: bytes) -> None:
        self.net = replace(self.net, graph=graph)

    def create_serialization_config(self) -> Any:
        """Weights out, not to be replaced again, unless one says otherwise."""
        flags = {SerializationFlag.EXCLUDE_WEIGHTS}
        return SimpleNamespace(flags=flags, set_flag=flags.add, clear_flag=flags.discard)

    def serialize_with_config(self, config: Any) -> bytes | None:
        if self.world.refuse == "serialize_with_config":
            report(self.logger, ValueError("planted refusal of serialize_with_config"))
            return None
        stripped = SerializationFlag.EXCLUDE_WEIGHTS in config.flags
        refit = self.net.refit and SerializationFlag.INCLUDE_REFIT in config.flags
        return replace(self.net, stripped=stripped, refit=refit).plan()

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.net.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        first = (name in {one.name for one in self.net.sources}) != self.world.swapped
        return TensorIOMode.INPUT if first else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[KINDS[self.tensors[name].dtype]]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return self.world.location

    def get_tensor_format(self, name: str) -> TensorFormat:
        return self.world.format

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        spec = self.tensors[name]
        if self.net.static:
            return tensor_shape(spec, self.net.profiles[0].shapes[0])
        return tuple(axis if isinstance(axis, int) else -1 for axis in spec.shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [tensor_shape(self.tensors[name], one) for one in self.net.profiles[index].shapes]

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(dynamic_shapes_kernel_specialization_strategy=None, strategy=None)
        config.set_execution_context_allocation_strategy = lambda it: vars(config).update(
            strategy=it
        )
        return config

    def create_execution_context(self, manner: Any) -> FakeContext | None:
        eager = DynamicShapesKernelSpecializationStrategy.EAGER
        if self.world.flavour == "tensorrt-rtx":
            assert manner.dynamic_shapes_kernel_specialization_strategy is eager
            manner = manner.strategy
        assert manner is ExecutionContextAllocationStrategy.USER_MANAGED
        try:
            if self.world.refuse == "create_execution_context":
                raise BackendError("planted refusal of create_execution_context")
            return FakeContext(self)
        except BackendError as exc:
            report(self.logger, exc)
            return None


class FakeContext:
    """``IExecutionContext`` whose memory the user manages; it keeps its engine alive."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.world, self.logger = engine, engine.world, engine.logger
        self.memory = _Held(self.world.cuda, CONTEXT_BYTES)
        self.active_optimization_profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.work: tuple[int, int] | None = None
        self.recorded = False
        for one in engine.net.sources:
            if engine.net.static or all(isinstance(axis, int) for axis in one.shape):
                self.shapes[one.name] = engine.get_tensor_shape(one.name)
        self.world.contexts += 1

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._change()
        if self.world.refuse == "set_optimization_profile_async":
            return self._refuse("planted refusal of set_optimization_profile_async")
        if not 0 <= index < self.engine.num_optimization_profiles:
            return self._refuse(f"profile index {index} is out of range")
        self.active_optimization_profile, self.shapes = index, {}
        return self._queue(stream, [], [self.memory.span], lambda span: span.fill(index))

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._change()
        index, dims = self.active_optimization_profile, tuple(shape)
        if self.world.refuse == "set_input_shape":
            return self._refuse("planted refusal of set_input_shape")
        if name not in {one.name for one in self.engine.net.sources}:
            return self._refuse(f"no input {name}")
        if not self.engine.net.holds(index, name, dims):
            profile = self.engine.net.profiles[index]
            return self._refuse(f"{dims} does not satisfy profile {profile}")
        self.shapes[name] = dims
        return True

    def infer_shapes(self) -> list[str]:
        return [one.name for one in self.engine.net.sources if one.name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tensor_shape(self.engine.tensors[name], self.engine.net.lengths(self.shapes))

    def update_device_memory_size_for_shapes(self) -> int:
        self._change()
        if self.world.refuse == "update_device_memory_size_for_shapes":
            self._refuse("planted refusal of update_device_memory_size_for_shapes")
            return 0
        return self._need() if not self.infer_shapes() else 0

    def set_device_memory(self, address: int, size: int) -> None:
        self._change()
        if address % 256:
            raise Hazard("the memory of a context is not aligned to 256")
        self.work = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._change()
        if self.world.refuse == "set_tensor_address":
            return self._refuse("planted refusal of set_tensor_address")
        if name not in self.engine.tensors or address % 256:
            return self._refuse(f"no tensor {name}, or address {address:x} is not aligned")
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        net, cuda = self.engine.net, self.world.cuda
        if self.world.refuse == "execute_async_v3":
            return self._refuse("planted refusal of execute_async_v3")
        if self.infer_shapes() or set(self.addresses) != set(self.engine.tensors):
            return self._refuse("shapes or addresses are not set")
        need = self._need()
        if need and (self.work is None or self.work[1] < need):
            raise Hazard(f"a context works in {self.work}, it needs {need} bytes")
        reads = [*map(self._span, net.sources), self.engine.weights.span, self.memory.span]
        writes = [*map(self._span, net.results)]
        writes += [(self.work[0], need)] if need and self.work else []
        function = running(net) if net.graph else self.world.functions[net.function]
        refitted = self.engine.refitted
        shapes = {name: self.get_tensor_shape(name) for name in self.engine.tensors}

        def run(*spans: Array) -> None:
            sources, rest = spans[: len(net.sources)], spans[len(net.sources) + 2 :]
            for span in rest[len(net.results) :]:
                span[:] = 0xA5
            given = [
                span.view(one.dtype).reshape(shapes[one.name])
                for span, one in zip(sources, net.sources, strict=True)
            ]
            values = function(*given)
            made = values if isinstance(values, tuple) else (values,)
            for span, one, value in zip(rest, net.results, made, strict=False):
                assert value.shape == shapes[one.name]
                assert value.dtype == one.dtype
                span.view(one.dtype)[:] = value.reshape(-1) if refitted else 0

        capturing = cuda.streams[stream].capture is not None
        if not self._queue(stream, reads, writes, run):
            return False
        self.recorded = self.recorded or capturing
        self.world.executed.append(shapes[net.source.name])
        return True

    def _span(self, spec: TensorSpec) -> tuple[int, int]:
        size = prod(self.get_tensor_shape(spec.name)) * np.dtype(spec.dtype).itemsize
        return self.addresses[spec.name], size

    def _need(self) -> int:
        counted = prod(length for _, length in self.engine.net.lengths(self.shapes).axes)
        return round_up(self.engine.net.work_per_pixel * counted, 256)

    def _queue(
        self,
        stream: int,
        reads: list[tuple[int, int]],
        writes: list[tuple[int, int]],
        run: Callable[..., None],
    ) -> bool:
        try:
            self.world.cuda.kernel(stream, reads, writes, run, capturable=self.world.capturable)
        except BackendError as exc:
            report(self.logger, exc)
            return False
        return True

    def _change(self) -> None:
        if self.recorded:
            raise Hazard("a context is changed after it was recorded into a graph")

    def _refuse(self, words: str) -> bool:
        self.logger.log(0, f"IExecutionContext: Error Code 3: API Usage Error ({words})")
        return False


def running(net: Net) -> Function:
    """The graph of a plan as a function, on onnxruntime."""
    from onnxruntime import InferenceSession

    session = InferenceSession(net.graph, providers=["CPUExecutionProvider"])
    names = [one.name for one in net.sources]
    results = [one.name for one in net.results]
    return lambda *given: tuple(session.run(results, dict(zip(names, given, strict=True))))


def weights_of(graph: bytes) -> dict[str, Any]:
    """Floating-point initializers of a model, as ``onnx.TensorProto`` by name."""
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    tensors = onnx.load_from_string(graph).graph.initializer
    return {one.name: one for one in tensors if one.data_type in floats}


def with_weights(graph: bytes, file: Path, names: Sequence[str]) -> bytes:
    """``graph`` with the weights of these names from another model. Raises ``ValueError``."""
    import onnx

    model = onnx.load_from_string(graph)
    others = {one.name: one for one in onnx.load(file).graph.initializer}
    for one in model.graph.initializer:
        if one.name in names:
            other = others.get(one.name)
            if other is None or (other.data_type, other.dims) != (one.data_type, one.dims):
                raise ValueError(f"Failed to refit all the weights: {one.name}")
            one.CopyFrom(other)
    return model.SerializeToString()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
