"""An engine for tests: a network that repeats each pixel twice, as a kernel of the fake."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError
from pixelrt.manifest import GraphRole
from pixelrt.plans.profiles import Profile, Shape, choose_profile, tensor_shape
from pixelrt.runtime.backends.base import BackendInfo, Offer, Sample, Session
from pixelrt.runtime.device.engine import output_shape
from pixelrt.runtime.device.resources import DeviceBuffer, Stream
from pixelrt.runtime.device.session import DeviceSession
from pixelrt.spec import TensorSpec
from tests.bundles import nearest
from tests.runtime.fake_cuda import FakeCuda

WORK = 2
"""Bytes of memory to work in, per pixel."""


class DoublingEngine:
    """``Engine`` on the fake. ``wrong``: added to every value of the result."""

    samples: tuple[Sample, ...] = ()
    recordable = True
    max_lanes = 0

    def __init__(
        self,
        cuda: FakeCuda,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        profiles: Sequence[Profile] = (),
    ) -> None:
        self.info = BackendInfo("doubling", "1", "fake", "float32")
        self.inputs, self.outputs = inputs, outputs
        self.profiles = tuple(profiles)
        self.cuda = cuda
        self.shapes: list[Shape] = []
        self.closed = False

    def work_bytes(self, shape: Shape) -> int | None:
        if self.profiles:
            choose_profile(self.profiles, shape)
        return WORK * shape.batch * shape.height * shape.width

    def result_shape(self, shape: Shape) -> tuple[int, ...]:
        return output_shape(self.outputs[0], shape)

    def lane(self, stream: Stream) -> DoublingLane:
        return DoublingLane(self, stream)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class DoublingLane:
    def __init__(self, engine: DoublingEngine, stream: Stream) -> None:
        self.engine, self.stream = engine, stream

    def bind(
        self, shape: Shape, source: DeviceBuffer, result: DeviceBuffer, work: DeviceBuffer | None
    ) -> DoublingBound:
        return DoublingBound(self, shape, source, result, work)

    def close(self) -> None:
        pass


class DoublingBound:
    def __init__(
        self,
        lane: DoublingLane,
        shape: Shape,
        source: DeviceBuffer,
        result: DeviceBuffer,
        work: DeviceBuffer | None,
    ) -> None:
        assert work is not None
        self.lane, self.shape = lane, shape
        dims = tensor_shape(lane.engine.inputs[0], shape)
        high = lane.engine.result_shape(shape)
        self.reads = [(source.address, prod(dims))]
        self.writes = [(result.address, prod(high)), (work.address, prod(dims[:3]))]

        def run(given: object, taken: object, scratch: object) -> None:
            pixels = given.reshape(dims)  # type: ignore[attr-defined]
            scratch.fill(0)  # type: ignore[attr-defined]
            taken[:] = nearest(2)(pixels).reshape(-1)  # type: ignore[index]

        self.run = run

    def launch(self) -> None:
        self.lane.engine.shapes.append(self.shape)
        self.lane.engine.cuda.kernel(self.lane.stream.handle, self.reads, self.writes, self.run)

    def close(self) -> None:
        pass


class DoublingBackend:
    """Opens the image graph of any bundle of factor two."""

    name = "doubling"

    def __init__(self, cuda: FakeCuda, profiles: Sequence[Profile] = ()) -> None:
        self.cuda, self.profiles = cuda, profiles
        self.engines: list[DoublingEngine] = []

    def missing(self) -> str:
        return ""

    def offers(self, bundle: Bundle, role: GraphRole) -> tuple[Offer, ...]:
        if role != "image":
            raise BackendError("images only")
        info = BackendInfo(self.name, "1", "fake", "float32")
        return (Offer(info, lambda: self._open(bundle, role)),)

    def _open(self, bundle: Bundle, role: GraphRole) -> Session:
        graph = bundle.component.graph(role)
        specs = tuple(graph.inputs), tuple(graph.outputs)
        self.engines.append(DoublingEngine(self.cuda, *specs, self.profiles))
        return DeviceSession(self.cuda, self.engines[-1])
