"""ONNX to TensorRT plan."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelrt.engines.options import BuildOptions, check_options, has_gpu, target_of
from pixelrt.engines.report import EngineReport, parse_layers
from pixelrt.engines.trt import Progress, Watch, in_thread, monitor_of, products_of
from pixelrt.errors import BackendError, InputError
from pixelrt.plans.profiles import NamedLengths, tensor_shape
from pixelrt.plans.tensorrt import TensorRT, Told, load_tensorrt, logger_of, use_module
from pixelrt.spec import TensorSpec

__all__ = [
    "BuildOptions",
    "BuiltPlan",
    "TensorRT",
    "build_plan",
    "check_options",
    "load_tensorrt",
    "target_of",
    "use_module",
]

_BUILDING = threading.Lock()
"""TensorRT keeps one logger per process, so one build at a time may listen to it."""


@dataclass(frozen=True)
class BuiltPlan:
    """A serialised engine. ``warnings`` are TensorRT's own words; ``timing_cache`` is what it
    measured, empty for TensorRT for RTX."""

    plan: bytes
    timing_cache: bytes
    report: EngineReport
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.plan).hexdigest()


def build_plan(
    onnx_file: Path,
    inputs: Sequence[TensorSpec],
    options: BuildOptions,
    *,
    trt: TensorRT,
    origin: str = "",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> BuiltPlan:
    """Build a plan from an ONNX file, external weights included.

    ``inputs``: those of the graph, with named axes that the profiles set.
    ``origin``: who made the graph, for messages. ``progress`` and ``cancelled`` are called
    from the thread that builds, at every step of it.

    Raises ``InputError`` for a file that is no ONNX model; ``BackendError`` with TensorRT's own
    words where it does not take the graph (the node is named) or cannot build it, and where
    ``cancelled`` said so; ``KeyboardInterrupt`` after Ctrl-C, once the build has stopped.
    """
    check_options(options, trt)
    if not onnx_file.is_file():
        raise InputError(f"there is no graph at {onnx_file}", expected="an ONNX file")
    watch = Watch(progress, cancelled)

    def work() -> BuiltPlan:
        with _BUILDING:
            build = _Build(onnx_file, inputs, options, trt, origin or str(onnx_file), watch)
            return build.run()

    return in_thread(work, watch)


class _Build:
    """One build: what its steps share."""

    def __init__(
        self,
        onnx_file: Path,
        inputs: Sequence[TensorSpec],
        options: BuildOptions,
        trt: TensorRT,
        origin: str,
        watch: Watch,
    ) -> None:
        self.onnx_file = onnx_file
        self.inputs = inputs
        self.options = options
        self.trt = trt
        self.origin = origin
        self.watch = watch
        self.logger = logger_of(trt.module)
        self.told = self.logger.told = Told()
        try:
            self.builder = trt.module.Builder(self.logger)
        except (TypeError, RuntimeError) as exc:  # the bindings' words for "no GPU" say nothing
            raise BackendError(
                f"{trt} could not start", found=f"{self.told.words} ({exc})"
            ) from exc

    def run(self) -> BuiltPlan:
        start = time.perf_counter()
        # the parser owns the weights that the network points to: it must live as long
        network, parser = self._parse()
        self._fix_shapes(network, static=self.options.static)
        config = self._config(network)
        timed = self.trt.flavour == "tensorrt"  # TensorRT for RTX chooses on the GPU, later
        if timed:
            self._set_timings(config)
        monitor = monitor_of(self.trt.module, self.watch)
        config.progress_monitor = monitor
        self.told.errors.clear()  # without a GPU the builder starts with a complaint
        plan = self.builder.build_serialized_network(network, config)
        if self.watch.failure:
            raise self.watch.failure
        if plan is None:
            raise self._failed()
        report = self._report(network, plan)
        del parser
        return BuiltPlan(
            bytes(plan),
            bytes(config.get_timing_cache().serialize()) if timed else b"",
            report,
            time.perf_counter() - start,
            tuple(self.told.warnings),
        )

    def _failed(self) -> BackendError:
        if self.watch.stop.is_set():
            return BackendError(
                "the build was cancelled", found=f"while TensorRT was in: {self.watch.phase}"
            )
        hint = ""
        if "workspace" in self.told.words.lower() and self.options.workspace:
            hint = f"allow more than {self.options.workspace} bytes of workspace"
        elif self.options.version_compatible:
            hint = "version compatibility needs TensorRT's lean runtime: pip install tensorrt-lean"
        return BackendError(
            f"{self.trt} could not build {self.origin}", found=self.told.words, hint=hint
        )

    # --- graph ----------------------------------------------------------------------

    def _parse(self) -> tuple[Any, Any]:
        module = self.trt.module
        flags = 0
        if self.trt.flavour == "tensorrt" and self.trt.major == 10:
            flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = self.builder.create_network(flags)
        parser = module.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(self.onnx_file)):
            raise self._refused(parser)
        if network.num_outputs == 0:
            raise InputError(
                f"{self.onnx_file} holds no graph",
                found=f"{self.onnx_file.stat().st_size} bytes without an output",
                expected="an ONNX model",
            )
        self._check_inputs(network)
        return network, parser

    def _refused(self, parser: Any) -> InputError | BackendError:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        if any(error.code().name == "MODEL_DESERIALIZE_FAILED" for error in errors):
            return InputError(
                f"{self.onnx_file} is no ONNX model, or a part of one",
                found=errors[0].desc(),
                hint="export it again",
            )
        return BackendError(
            f"{self.trt} does not take {self.origin}",
            found="; ".join(map(_describe, errors)) or self.told.words,
            hint="use another backend, or replace the node in the recipe that made the graph",
        )

    def _check_inputs(self, network: Any) -> None:
        found = {network.get_input(index).name for index in range(network.num_inputs)}
        expected = {tensor.name for tensor in self.inputs}
        if found != expected:
            raise InputError(
                f"{self.onnx_file} has other inputs than its manifest says",
                found=", ".join(sorted(found)),
                expected=", ".join(sorted(expected)),
            )

    def _fix_shapes(self, network: Any, *, static: bool) -> None:
        """Give a static plan's inputs their only shape."""
        if static:
            shapes = {t.name: tensor_shape(t, self._optimum) for t in self.inputs}
            for index in range(network.num_inputs):
                tensor = network.get_input(index)
                tensor.shape = shapes[tensor.name]

    @property
    def _optimum(self) -> NamedLengths:
        return self.options.profiles[0].shapes[1]

    # --- options --------------------------------------------------------------------

    def _config(self, network: Any) -> Any:
        module, options = self.trt.module, self.options
        config = self.builder.create_builder_config()
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
        if options.workspace is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace)
        if options.level is not None:
            config.builder_optimization_level = options.level
        if options.max_aux_streams is not None:
            config.max_aux_streams = options.max_aux_streams
        if options.hardware_compatibility != "none":
            level = options.hardware_compatibility.upper()
            config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, level)
        self._set_flags(config)
        self._set_device(config)
        if not options.static:
            self._add_profiles(config)
        return config

    def _set_flags(self, config: Any) -> None:
        flags = self.trt.module.BuilderFlag
        for name, wanted in (
            ("VERSION_COMPATIBLE", self.options.version_compatible),
            ("STRIP_PLAN", self.options.strip_plan),
            ("REFIT", self.options.refit),
        ):
            if wanted:
                config.set_flag(getattr(flags, name))
        if not self.options.tf32:
            config.clear_flag(flags.TF32)

    def _set_device(self, config: Any) -> None:
        module, options = self.trt.module, self.options
        if options.capabilities:
            self._set_capabilities(config)
        if options.dla_core is not None:
            cores = self.builder.num_DLA_cores
            if options.dla_core >= cores:
                raise BackendError(
                    f"there is no DLA core {options.dla_core}",
                    found=f"{cores} DLA cores",
                    expected="a Jetson with a DLA, and a TensorRT that knows it (10.7 and earlier)",
                    hint="build for the GPU",
                )
            config.default_device_type = module.DeviceType.DLA
            config.DLA_core = options.dla_core
            config.set_flag(module.BuilderFlag.GPU_FALLBACK)

    def _set_capabilities(self, config: Any) -> None:
        wanted = self.options.capabilities
        known = self.trt.module.ComputeCapability.__members__
        config.num_compute_capabilities = len(wanted)  # makes the places that are filled next
        for index, capability in enumerate(wanted):
            value = known.get(str(capability).upper())
            if value is None or not config.set_compute_capability(value, index):
                raise BackendError(
                    f"{self.trt} does not build for {capability}",
                    found=self.told.words,
                    expected=f"some of {', '.join(known).lower()}",
                )

    def _set_timings(self, config: Any) -> None:
        """Use the measurements given; another GPU's or TensorRT's are left, with a warning."""
        for timings in (self.options.timing_cache, b""):
            cache = config.create_timing_cache(timings)
            if cache is not None and config.set_timing_cache(cache, False):
                return
            self.told.warnings.append("the timing cache does not fit and was left out")

    def _add_profiles(self, config: Any) -> None:
        for profile in self.options.profiles:
            made = self.builder.create_optimization_profile()
            for tensor in self.inputs:
                made.set_shape(
                    tensor.name, *(tensor_shape(tensor, shape) for shape in profile.shapes)
                )
            if config.add_optimization_profile(made) < 0:
                raise BackendError(
                    f"{self.trt} does not take profile {profile}", found=self.told.words
                )

    # --- report ---------------------------------------------------------------------

    def _report(self, network: Any, plan: Any) -> EngineReport:
        """The engine's layers, and the products of the graph at the optimum shape."""
        layers = parse_layers(self._inspected(plan) or self.told.layers)
        if not self.options.static:
            network, parser = self._parse()
            self._fix_shapes(network, static=True)
            products = products_of(self.trt.module, network)
            del parser
        else:
            products = products_of(self.trt.module, network)
        return EngineReport(layers, products, str(self._optimum))

    def _inspected(self, plan: Any) -> str:
        """The layers in the engine inspector's words; empty where no GPU can load the plan.

        TensorRT for RTX makes its kernels when it first runs: its build log says as much.
        """
        if self.trt.flavour != "tensorrt" or self.options.strip_plan or not has_gpu(self.trt):
            return ""
        engine = self.trt.module.Runtime(self.logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                f"{self.trt} cannot load the plan that it has built", found=self.told.words
            )
        form = self.trt.module.LayerInformationFormat.ONELINE
        return str(engine.create_engine_inspector().get_engine_information(form))


def _describe(error: Any) -> str:
    """A parser error: node, operator and TensorRT's words."""
    where = ""
    if error.node() >= 0:
        where = f"node {error.node()} {error.node_name()!r}, operator {error.node_operator()}: "
    return f"{where}{error.desc()}"
