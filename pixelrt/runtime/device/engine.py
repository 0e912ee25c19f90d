"""The seam between a device session and what runs a network on a device.

A ``DeviceSession`` owns streams, buffers, tiles and CUDA graphs; an ``Engine`` knows one
library (TensorRT, onnxruntime with CUDA). Three levels::

    Engine   the network with its weights, loaded once
    └─ Lane      what runs on one stream; lanes run at the same time
       └─ Bound      one shape and one set of addresses, ready to be queued again and again

All three are closed by their owner in the opposite order, after the work that uses them is
known to be done.
"""

from __future__ import annotations

from typing import Protocol

from pixelrt.errors import BackendError, UsageError
from pixelrt.plans.profiles import Profile, Shape, tensor_shape
from pixelrt.runtime.backends.base import BackendInfo, Sample
from pixelrt.runtime.device.resources import DeviceBuffer, Stream
from pixelrt.spec import TensorSpec


class Bound(Protocol):
    """A network bound to one shape and to the memory that it reads, writes and works in."""

    def launch(self) -> None:
        """Queue the network once on the lane's stream, and return without waiting.

        Queues the same work every time, on that stream or ordered with it, so that it can be
        recorded into a CUDA graph where the engine is ``recordable``. The first call is never
        recorded. Raises ``BackendError`` in the library's words.
        """
        ...

    def close(self) -> None:
        """Release everything. Called once, when none of its work is queued any more."""
        ...


class Lane(Protocol):
    """One execution of a network at a time, on the stream it was made for."""

    def bind(
        self,
        shape: Shape,
        source: DeviceBuffer,
        result: DeviceBuffer,
        work: DeviceBuffer | None,
    ) -> Bound:
        """Get ready to read ``source`` and write ``result``.

        ``source`` holds the input and ``result`` takes the output, contiguous, in the types
        of ``Engine.inputs`` and ``Engine.outputs``, at dimensions ``tensor_shape(inputs[0],
        shape)`` and ``Engine.result_shape(shape)``; either may be larger. ``work``: at least
        ``Engine.work_bytes(shape)`` bytes, aligned to 256, ``None`` where that is ``None`` or
        0; its contents are lost between launches, and other lanes may use it in between.
        May queue work on the lane's stream. Raises ``BackendError``, ``OutOfMemoryError``.
        """
        ...

    def close(self) -> None:
        """Release everything. Called once, after all that was bound is closed."""
        ...


class Engine(Protocol):
    """A network of one image input and one image output, on a device.

    ``inputs`` and ``outputs``: one tensor each, as the bundle's manifest names them, axes
    N, H, W. ``profiles``: the shapes that it takes; empty where it takes every shape.
    ``samples``: what it brings along to be held against. ``recordable``: whether CUDA graphs
    may record ``Bound.launch``. ``max_lanes``: how many lanes may be open at once; 0: any number.
    Used by one thread at a time.
    """

    info: BackendInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    samples: tuple[Sample, ...]
    recordable: bool
    max_lanes: int

    def work_bytes(self, shape: Shape) -> int | None:
        """Bytes of device memory that ``Lane.bind`` wants to work in for ``shape``.

        ``None`` where the library allocates by itself and cannot tell beforehand. Raises
        ``UsageError`` for a shape outside every profile, ``BackendError`` otherwise.
        """
        ...

    def result_shape(self, shape: Shape) -> tuple[int, ...]:
        """Dimensions of the output for an input of ``shape``; raises as ``work_bytes``."""
        ...

    def lane(self, stream: Stream) -> Lane:
        """What runs on ``stream``, which outlives it. Raises ``BackendError``."""
        ...

    def close(self) -> None:
        """Release everything. Called once, after all lanes are closed."""
        ...


def image_shape(tensor: TensorSpec, dims: tuple[int, ...]) -> Shape:
    """The batch, height and width in the dimensions of an image input."""
    found = dict(zip(tensor.shape, dims, strict=True))
    return Shape(found["N"], found["H"], found["W"])


def output_shape(output: TensorSpec, shape: Shape) -> tuple[int, ...]:
    """Dimensions of an output whose axes are numbers, ``N``, ``H``, ``W``, or ``2*H``.

    Raises ``BackendError`` for an axis of another form.
    """
    try:
        return tensor_shape(output, shape)
    except UsageError as exc:
        raise BackendError(
            f"the size of the output {output} cannot be told",
            found=exc.found or exc.message,
            expected="numbers, N, H, W and multiples such as 2*H",
        ) from exc
