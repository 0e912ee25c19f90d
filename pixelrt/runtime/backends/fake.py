"""A backend for tests: a Python function in place of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError
from pixelrt.manifest import Graph
from pixelrt.runtime.backends.base import Array, BackendInfo
from pixelrt.spec import TensorSpec

Function = Callable[[Array], Array]


class FakeSession:
    """Runs ``function`` on the only input; records the shapes it was given in ``calls``."""

    def __init__(
        self, function: Function, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self.info = BackendInfo("fake", "1", "none", "float32")
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FakeBackend:
    """Opens every graph as ``functions[role]``; ``reason`` makes it unavailable."""

    name = "fake"

    def __init__(self, functions: Mapping[str, Function], reason: str = "") -> None:
        self.functions = functions
        self.reason = reason
        self.sessions: list[FakeSession] = []

    def missing(self) -> str:
        return self.reason

    def open(self, bundle: Bundle, graph: Graph) -> FakeSession:
        session = FakeSession(self.functions[graph.role], tuple(graph.inputs), tuple(graph.outputs))
        self.sessions.append(session)
        return session
