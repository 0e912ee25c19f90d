"""The seam between pixelrt and whatever executes a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from pixelrt.bundle import Bundle
from pixelrt.manifest import Graph
from pixelrt.spec import TensorSpec

Array = NDArray[Any]


@dataclass(frozen=True)
class BackendInfo:
    """What executes a graph: shown to users and part of every cache key."""

    name: str
    """Name on the command line, e.g. ``onnxruntime-cpu``."""
    version: str
    device: str
    """The device in words, e.g. the processor's model name."""
    precision: str
    """The arithmetic that really runs: ``float32``, ``float16``, ``mixed``."""

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.precision}, {self.device})"


class Session(Protocol):
    """One graph, loaded and ready to run; a context manager."""

    info: BackendInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once.

        ``feeds``: every input by name, C-contiguous, of the declared dtype and shape.
        Gives every output by name. Raises ``BackendError`` where the run fails, and
        ``OutOfMemoryError`` where memory was the reason.
        """
        ...

    def close(self) -> None:
        """Release everything. A second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Backend(Protocol):
    """A way to execute graphs."""

    name: str

    def missing(self) -> str:
        """Why this backend cannot be used here, or an empty string where it can."""
        ...

    def open(self, bundle: Bundle, graph: Graph) -> Session:
        """Load one graph of a bundle. Raises ``BackendError`` where that fails."""
        ...
