"""onnxruntime on an NVIDIA GPU: what its CUDA and its TensorRT-RTX provider have in common.

A provider gets the whole network or nothing: what stays on the CPU beyond the computation of
shapes is refused by name (``ort_assignment``). onnxruntime's own ways of falling back, to the
CPU at opening and at a failing run, are off.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from pixelrt.bundle import Bundle, BundledNetwork
from pixelrt.errors import BackendError
from pixelrt.geometry import Size, on_grid
from pixelrt.manifest import Graph, GraphRole
from pixelrt.pipeline_bundle import PipelineNetwork
from pixelrt.plans.axis_profiles import Lengths
from pixelrt.plans.profiles import Profile, Shape, axis_of, tensor_shape
from pixelrt.runtime.backends.base import Array, BackendInfo, Offer, Session
from pixelrt.runtime.backends.onnxruntime import tile_options
from pixelrt.runtime.backends.ort_assignment import (
    NO_FALLBACK,
    RECORD,
    read_profile,
    require_provider,
    require_tiny,
    require_version,
)
from pixelrt.runtime.backends.ort_engine import OrtEngine
from pixelrt.runtime.backends.ort_network import OrtNetwork
from pixelrt.runtime.device.cuda import Cuda, RealCuda
from pixelrt.runtime.device.memory import free_on
from pixelrt.runtime.device.resources import DeviceBuffer, Stream, settled
from pixelrt.runtime.device.session import DeviceSession
from pixelrt.runtime.verify_tensors import tensor_samples

Made = TypeVar("Made", OrtEngine, OrtNetwork)

PROBE = 32
"""Sides of the picture that shows what runs where: far more pixels than ``ort_assignment.TINY``."""
BATCH = "B"
"""The axis of segments that counts pictures."""


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False  # the package around it is missing


@dataclass(frozen=True)
class OrtMachine:
    """What a backend asks of the machine."""

    installed: Callable[[str], bool] = _installed
    load: Callable[[str], Any] = importlib.import_module
    cuda: Callable[[], Cuda] = RealCuda


HERE = OrtMachine()


@dataclass(frozen=True)
class Setting:
    """What a provider is to be opened with. ``profiles``: empty for every shape."""

    cuda: Cuda
    stream: Stream
    bundle: BundledNetwork
    graph: Graph
    profiles: tuple[Profile, ...]


class Provider(Protocol):
    """What differs between onnxruntime's providers for NVIDIA's GPUs."""

    name: str
    """The backend's name on the command line."""
    provider: str
    """The provider's name in onnxruntime."""
    shapes_on_host: bool
    """Whether computations on shapes may run on the CPU."""
    graph_option: str
    """The run option that numbers CUDA graphs, where the provider records them, or empty."""

    def missing(self, machine: OrtMachine) -> str:
        """Why the provider is not installed, or an empty string."""
        ...

    def prepare(self, machine: OrtMachine, ort: Any, cuda: Cuda) -> None:
        """Load the provider's libraries; ``BackendError`` where that fails."""
        ...

    def version(self, machine: OrtMachine, ort: Any) -> str: ...

    def precision(self) -> str: ...

    def profiles(self, bundle: Bundle) -> tuple[Profile, ...]:
        """The shapes that the session takes; empty for all."""
        ...

    def add(self, ort: Any, options: Any, setting: Setting) -> list[Any] | None:
        """Put the provider into session options; gives the ``providers`` argument, if any."""
        ...


class OrtDeviceBackend:
    """A backend over a provider of onnxruntime."""

    def __init__(self, provider: Provider, machine: OrtMachine = HERE) -> None:
        self.name = provider.name
        self._provider = provider
        self._machine = machine

    def missing(self) -> str:
        reason = self._provider.missing(self._machine)
        if reason:
            return reason
        try:
            self._machine.cuda()
        except BackendError as exc:
            return "; ".join(part for part in (exc.message, exc.found, exc.hint) if part)
        return ""

    def free_memory(self) -> int:
        """See ``DeviceMemory``."""
        return free_on(self._machine.cuda())

    def offers(self, network: BundledNetwork, role: GraphRole) -> tuple[Offer, ...]:
        """The float32 graph. Raises ``BackendError`` where the GPU or the provider is not there."""
        ort = load_onnxruntime(self._machine)
        cuda = self._machine.cuda()
        self._provider.prepare(self._machine, ort, cuda)
        info = BackendInfo(
            self.name,
            self._provider.version(self._machine, ort),
            cuda.device_name(),
            self._provider.precision(),
        )
        graph = network.component.graph(role, self.name)
        return (Offer(info, lambda: self._open(ort, cuda, network, graph, info)),)

    def _open(
        self, ort: Any, cuda: Cuda, network: BundledNetwork, graph: Graph, info: BackendInfo
    ) -> Session:
        if isinstance(network, PipelineNetwork):
            return open_network(ort, cuda, self._provider, network, graph, info)
        assert isinstance(network, Bundle)
        return DeviceSession(cuda, open_engine(ort, cuda, self._provider, network, graph, info))


def load_onnxruntime(machine: OrtMachine) -> Any:
    """onnxruntime's module. Raises ``BackendError`` for one that is broken or too old."""
    try:
        ort = machine.load("onnxruntime")
    except ImportError as exc:
        raise BackendError("onnxruntime cannot be imported", found=str(exc)) from exc
    require_version(str(ort.__version__))
    return ort


def open_engine(
    ort: Any, cuda: Cuda, provider: Provider, bundle: Bundle, graph: Graph, info: BackendInfo
) -> OrtEngine:
    """A session whose whole network is on the GPU. Raises ``BackendError`` naming what is not."""
    profiles = provider.profiles(bundle)
    specs = tuple(graph.inputs), tuple(graph.outputs)
    stream = Stream(cuda)
    engine = OrtEngine(ort, cuda, stream, info, specs, profiles, provider.graph_option)
    setting = Setting(cuda, stream, bundle, graph, profiles)
    return _opened(engine, ort, provider, setting, lambda made: run_once(made, probe_shape(bundle)))


def open_network(
    ort: Any,
    cuda: Cuda,
    provider: Provider,
    network: PipelineNetwork,
    graph: Graph,
    info: BackendInfo,
) -> OrtNetwork:
    """The same for a network of a pipeline, which takes every shape."""
    stream = Stream(cuda)
    return _opened(
        OrtNetwork(cuda, graph, stream, info),
        ort,
        provider,
        Setting(cuda, stream, network, graph, ()),
        lambda made: made.infer(probe_feeds(network, graph)),
    )


def _opened(
    made: Made, ort: Any, provider: Provider, setting: Setting, probe: Callable[[Made], object]
) -> Made:
    """``made`` with its session. ``probe``: one run, which shows what runs where."""
    folder = Path(tempfile.mkdtemp(prefix="pixelrt-profile-"))
    with ExitStack() as always, ExitStack() as failed:
        always.callback(shutil.rmtree, folder, ignore_errors=True)
        failed.callback(made.close)
        try:
            made.session = _session(ort, provider, setting, folder)
            _check(made, provider, probe)
        except BackendError as exc:
            # The frames and causes of the failure hold the session, which goes before its stream.
            exc.__cause__ = exc.__context__ = None
            raise exc.with_traceback(None) from None
        failed.pop_all()
    return made


def _check(made: Made, provider: Provider, probe: Callable[[Made], object]) -> None:
    """Raise ``BackendError`` where not all of the network is on the GPU."""
    host = require_provider(made.session, provider.provider)
    if not provider.shapes_on_host:
        return
    if host:
        probe(made)
    events = read_profile(made.session)
    if host:
        require_tiny(events, provider.provider)


def _session(ort: Any, provider: Provider, setting: Setting, folder: Path) -> Any:
    options = tile_options(ort)
    options.add_session_config_entry(RECORD, "1")
    if provider.shapes_on_host:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "run")
    else:
        options.add_session_config_entry(NO_FALLBACK, "1")
    path = str(setting.bundle.path(setting.graph.file))
    try:
        chosen = provider.add(ort, options, setting)
        return ort.InferenceSession(path, sess_options=options, providers=chosen, enable_fallback=0)
    # onnxruntime's exceptions share no base class below Exception
    except Exception as exc:
        if isinstance(exc, BackendError):
            raise
        raise BackendError(
            f"{provider.provider} could not load {setting.graph.file} of {setting.bundle.root}",
            found=str(exc),
        ) from exc


def probe_shape(bundle: Bundle) -> Shape:
    spec = bundle.manifest.image
    size = on_grid(Size(PROBE, PROBE), spec.multiple, spec.minimum)
    return Shape(1, size.height, size.width)


def probe_feeds(network: PipelineNetwork, graph: Graph) -> Mapping[str, Array]:
    """A sample; zeros of a segment, since the samples are those of the whole network."""
    if network.component is network.network.component:
        return next(tensor_samples(network)).feeds
    names = {axis_of(axis)[1] for spec in graph.inputs for axis in spec.shape} - {""}
    lengths = Lengths(tuple((name, 1 if name == BATCH else PROBE) for name in sorted(names)))
    return {one.name: np.zeros(tensor_shape(one, lengths), one.dtype) for one in graph.inputs}


def run_once(engine: OrtEngine, shape: Shape) -> None:
    """One run on an empty picture, and wait for it."""
    cuda, stream = engine.cuda, engine.stream
    sizes = [
        prod(dims) * np.dtype(spec.dtype).itemsize
        for dims, spec in (
            (tensor_shape(engine.inputs[0], shape), engine.inputs[0]),
            (engine.result_shape(shape), engine.outputs[0]),
        )
    ]
    with ExitStack() as stack:
        source, result = (stack.enter_context(DeviceBuffer(cuda, size)) for size in sizes)
        lane = engine.lane(stream)
        stack.callback(lane.close)
        stack.enter_context(settled(stream))
        stream.fill(source)
        lane.bind(shape, source, result, None).launch()
