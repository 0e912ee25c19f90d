"""An onnxruntime session on a CUDA provider as an ``Engine``: bound to our memory and stream.

onnxruntime takes its stream when a session is opened, so that a session has one of its own;
a lane orders its own stream with that. Nothing of a run comes back to the host, and nothing
waits for it (``disable_synchronize_execution_providers``, onnxruntime_run_options_config_keys.h).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from pixelrt.errors import BackendError, OutOfMemoryError
from pixelrt.plans.profiles import Profile, Shape, choose_profile, tensor_shape
from pixelrt.runtime.backends.base import BackendInfo, Sample
from pixelrt.runtime.backends.onnxruntime import speaks_of_memory
from pixelrt.runtime.closing import release_quietly
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.engine import output_shape
from pixelrt.runtime.device.resources import DeviceBuffer, Event, Stream
from pixelrt.spec import TensorSpec

NO_SYNC = "disable_synchronize_execution_providers"
DEVICE_KIND = "cuda"
"""onnxruntime's name for memory of an NVIDIA GPU."""

MOST_GRAPHS = 64
"""A provider keeps what it recorded until its session is closed."""
NO_GRAPH = -1


@contextmanager
def failures(info: BackendInfo, shape: Shape) -> Iterator[None]:
    """onnxruntime's words as our errors."""
    try:
        yield
    # onnxruntime's exceptions share no base class below Exception
    except Exception as exc:
        words = str(exc)
        if speaks_of_memory(exc):
            raise OutOfMemoryError(
                f"{info.name} ran out of memory at {shape}", found=words
            ) from exc
        raise BackendError(f"{info.name} failed at {shape}", found=words) from exc


class OrtEngine:
    """``session`` is set by who makes it, to run on ``stream``; both are closed with the engine.

    See ``Engine``. ``graph_option``: the run option that numbers the CUDA graphs of a provider
    that records by itself; every bound shape and set of addresses gets a number of its own.
    """

    samples: tuple[Sample, ...] = ()
    recordable = False
    """Shape computations run on the host, which no CUDA graph holds."""
    max_lanes = 1

    def __init__(
        self,
        ort: Any,
        cuda: Cuda,
        stream: Stream,
        info: BackendInfo,
        specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
        profiles: Sequence[Profile] = (),
        graph_option: str = "",
    ) -> None:
        self.info = info
        self.inputs, self.outputs = specs
        self.profiles = tuple(profiles)
        self.ort: Any = ort
        self.cuda = cuda
        self.session: Any = None
        self.stream = stream
        self._graph_option = graph_option
        self._graphs = 0

    def work_bytes(self, shape: Shape) -> int | None:
        """onnxruntime allocates by itself."""
        if self.profiles:
            choose_profile(self.profiles, shape)
        return None

    def result_shape(self, shape: Shape) -> tuple[int, ...]:
        return output_shape(self.outputs[0], shape)

    def lane(self, stream: Stream) -> OrtLane:
        return OrtLane(self, stream)

    def close(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self.stream)
            stack.callback(self._let_go)
            stack.callback(self.stream.synchronize)

    def run_options(self) -> Any:
        options = self.ort.RunOptions()
        options.add_run_config_entry(NO_SYNC, "1")
        if self._graph_option:
            self._graphs += 1
            number = self._graphs if self._graphs <= MOST_GRAPHS else NO_GRAPH
            options.add_run_config_entry(self._graph_option, str(number))
        return options

    def _let_go(self) -> None:
        self.session = None


class OrtLane:
    """The session, in order with a stream of the caller's."""

    def __init__(self, engine: OrtEngine, stream: Stream) -> None:
        self.engine = engine
        self.stream = stream
        with ExitStack() as stack:
            self._ready = stack.enter_context(Event(engine.cuda))
            self._done = stack.enter_context(Event(engine.cuda))
            self._resources = stack.pop_all()

    def bind(
        self, shape: Shape, source: DeviceBuffer, result: DeviceBuffer, work: DeviceBuffer | None
    ) -> OrtBound:
        engine = self.engine
        (spec,), (output,) = engine.inputs, engine.outputs
        device = engine.cuda.device
        with failures(engine.info, shape):
            binding = engine.session.io_binding()
            dims, kind = tensor_shape(spec, shape), np.dtype(spec.dtype).type
            binding.bind_input(spec.name, DEVICE_KIND, device, kind, dims, source.address)
            dims, kind = engine.result_shape(shape), np.dtype(output.dtype).type
            binding.bind_output(output.name, DEVICE_KIND, device, kind, dims, result.address)
        return OrtBound(self, shape, binding)

    def run(self, shape: Shape, binding: Any, options: Any) -> None:
        """Queue a run between what the lane's stream holds now and what it is given next."""
        engine = self.engine
        self.stream.record(self._ready)
        engine.stream.wait(self._ready)
        try:
            with failures(engine.info, shape):
                engine.session.run_with_iobinding(binding, options)
            engine.stream.record(self._done)
            self.stream.wait(self._done)
        except BaseException as exc:
            # Part of the run may be queued where nobody else would wait for it.
            release_quietly(engine.stream.synchronize, exc)
            raise

    def close(self) -> None:
        self._resources.close()


class OrtBound:
    """A shape and addresses, as onnxruntime's I/O binding."""

    def __init__(self, lane: OrtLane, shape: Shape, binding: Any) -> None:
        self._lane = lane
        self._shape = shape
        self._binding: Any = binding
        self._options: Any = lane.engine.run_options()

    def launch(self) -> None:
        self._lane.run(self._shape, self._binding, self._options)

    def close(self) -> None:
        self._binding = self._options = None
