"""A backend for tests: a Python function in place of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from pixelrt.bundle import BundledNetwork
from pixelrt.errors import BackendError
from pixelrt.manifest import GraphRole
from pixelrt.plans.profiles import Profile
from pixelrt.runtime.backends.base import Array, BackendInfo, Offer, Sample
from pixelrt.runtime.closing import Closing
from pixelrt.spec import TensorSpec

Function = Callable[[Array], Array]


class FakeSession(Closing):
    """Runs ``function`` on the only input; records the shapes it was given in ``calls``."""

    profiles: tuple[Profile, ...] = ()
    samples: tuple[Sample, ...] = ()

    def __init__(
        self,
        function: Function,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        info: BackendInfo,
    ) -> None:
        self.info = info
        self.inputs = inputs
        self.outputs = outputs
        self.calls: list[tuple[int, ...]] = []
        self.closed = False
        self._function = function

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self.closed:
            raise BackendError("this session is closed")
        array = feeds[self.inputs[0].name]
        self.calls.append(array.shape)
        return {self.outputs[0].name: self._function(array)}

    def close(self) -> None:
        self.closed = True


class FakeBackend:
    """Opens every graph as ``functions[role]``; ``reason`` makes it unavailable.

    ``precisions``: one offer for each, all of the same function.
    """

    def __init__(
        self,
        functions: Mapping[str, Function],
        reason: str = "",
        *,
        name: str = "fake",
        precisions: tuple[str, ...] = ("float32",),
    ) -> None:
        self.name = name
        self.functions = functions
        self.reason = reason
        self.precisions = precisions
        self.sessions: list[FakeSession] = []

    def missing(self) -> str:
        return self.reason

    def offers(self, bundle: BundledNetwork, role: GraphRole) -> tuple[Offer, ...]:
        infos = [BackendInfo(self.name, "1", "none", name) for name in self.precisions]
        return tuple(Offer(info, partial(self._open, bundle, role, info)) for info in infos)

    def _open(self, bundle: BundledNetwork, role: GraphRole, info: BackendInfo) -> FakeSession:
        graph = bundle.component.graph(role)
        session = FakeSession(self.functions[role], tuple(graph.inputs), tuple(graph.outputs), info)
        self.sessions.append(session)
        return session
