"""The seam between pixelrt and whatever executes a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pixelrt.bundle import BundledNetwork
from pixelrt.manifest import GraphRole
from pixelrt.plans.profiles import Profile, Shape
from pixelrt.spec import ImageSpec, TensorSpec

if TYPE_CHECKING:
    from types import TracebackType

    from pixelrt.runtime.device.fitting import DevicePlan
    from pixelrt.runtime.device.flow_plan import Maps
    from pixelrt.runtime.device.interop import DeviceArray

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
    """The arithmetic of the products: ``float32``, ``float16``, ``bfloat16``, or ``tf32``, float32
    rounded to 10 bits of mantissa before it is multiplied."""
    engine: str = ""
    """What is executed in place of the graph itself: a plan's digest, a compiled variant."""
    memory_share: float = 1.0
    """Of the manifest's estimate, which was measured with plain onnxruntime: what a run takes."""
    kept: str = ""
    """What stays in float32 where only a part is computed in ``precision``, in words."""

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.arithmetic}, {self.device})"

    @property
    def arithmetic(self) -> str:
        return f"{self.precision} with float32 {self.kept}" if self.kept else self.precision


@dataclass(frozen=True)
class Sample:
    """A picture with the right answer.

    ``pixels`` uint8 (N, H, W, C), not padded; ``expected`` float32 (N, C', scale*H, scale*W),
    what the float32 graph gives.
    """

    name: str
    pixels: NDArray[np.uint8]
    expected: NDArray[np.float32]
    kind: str = "photo"

    @property
    def height(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[2])


@dataclass(frozen=True)
class TensorSample:
    """Inputs of a pipeline's network by name, with fp32 outputs by name."""

    name: str
    feeds: Mapping[str, Array]
    expected: Mapping[str, Array]

    @property
    def size(self) -> int:
        return sum(value.size for value in self.feeds.values())


class Session(Protocol):
    """One graph, loaded and ready to run; a context manager.

    ``profiles``: the shapes that it takes; empty where it takes every shape of the graph.
    ``samples``: what it brings along to be held against, beside the bundle's samples.
    """

    info: BackendInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    samples: tuple[Sample, ...]

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class ShapedSession(Session, Protocol):
    """A session that takes less memory for one shape than for any.

    ``one_shape_share``: as ``BackendInfo.memory_share``, once the graph is compiled for the one
    shape of all runs; as much as that where nothing is saved.
    """

    one_shape_share: float

    def infer_one_shape(
        self, feeds: Mapping[str, Array], corner: Mapping[str, Array], same: tuple[slice, ...]
    ) -> dict[str, Array]:
        """``infer``, by a graph that is compiled for the shape of ``feeds`` and stays for more.

        It is only taken if it gives what the verified one gives for ``corner``, smaller inputs
        whose results have to be those of ``feeds`` within ``same``. Raises ``BackendError``
        where it does not, and the session is as before.
        """
        ...


@runtime_checkable
class DeviceMemory(Protocol):
    """A session, or a backend, whose networks work in the memory of a device, not of the host."""

    def free_memory(self) -> int:
        """Bytes of device memory that a run could have."""
        ...


@runtime_checkable
class PlannedSession(Session, Protocol):
    """A session of a pipeline's network that does not take every shape of the graph.

    ``tensor_samples``: what it brings along to be held against, beside the bundle's samples.
    """

    @property
    def tensor_samples(self) -> tuple[TensorSample, ...]: ...

    def takes(self, feeds: Mapping[str, Array]) -> bool:
        """Whether ``infer`` takes inputs of these dimensions."""
        ...


@runtime_checkable
class TileSession(Session, DeviceMemory, Protocol):
    """A session that takes whole images and moves their tiles itself, on a device.

    ``notes``: what does not work as it should, in words.
    """

    @property
    def notes(self) -> tuple[str, ...]: ...

    def run_tiles(
        self,
        images: Array,
        plan: DevicePlan,
        out: Array,
        *,
        scale: int,
        maps: Maps | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Fill ``out`` (B, H', W', C') from ``images`` (B, H, W, C), as ``run_plan`` would."""
        ...

    def work_bytes(self, shape: Shape) -> int | None:
        """Bytes of device memory for the network at ``shape``; ``None`` where nobody can tell."""
        ...

    def buffer_bytes(self, shape: Shape, streams: int) -> int:
        """Bytes of device memory for the tiles in flight."""
        ...

    def trim(self) -> None:
        """Give back what is kept between images."""
        ...


@runtime_checkable
class ArraySession(TileSession, Protocol):
    """A session whose device is one that other libraries keep arrays on: CUDA."""

    def view(self, value: Any, stream: int | None) -> DeviceArray:
        """An array of another library, in place, ready for ``run_device`` from now on.

        ``stream``: the handle of the caller's stream, which counts before what the array
        says. Raises ``ImageError`` for what is not on the device, or not contiguous.
        """
        ...

    def run_device(
        self, images: DeviceArray, plan: DevicePlan, out: DeviceArray | None, spec: ImageSpec
    ) -> DeviceArray:
        """Queue the network over (N, H, W, C) uint8 and return; see ``DeviceFlow.run``."""
        ...


@dataclass(frozen=True)
class Offer:
    """One way in which a backend can run a graph, such as a precision or a plan.

    ``open`` loads it, and raises ``BackendError`` or ``InputError`` where that fails.
    ``refused``: it is only here to say so, whatever precision is asked for.
    """

    info: BackendInfo
    open: Callable[[], Session]
    refused: bool = False


class Backend(Protocol):
    """A way to execute graphs."""

    name: str

    def missing(self) -> str:
        """Why this backend cannot be used here, or an empty string where it can."""
        ...

    def offers(self, bundle: BundledNetwork, role: GraphRole) -> tuple[Offer, ...]:
        """The ways to run a graph of ``bundle``, best first; nothing large is loaded yet.

        Asked only where nothing is ``missing``. Raises ``BackendError`` with the reasons
        where there is no way.
        """
        ...
