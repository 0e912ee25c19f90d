"""``manifest.json``: what a bundle says of itself. ``docs/bundle-format.md`` is normative."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pixelrt.spec import ImageSpec, ReceptiveField, TensorSpec, Tolerance

FORMAT = 1
PIPELINE_FORMAT = 2

GraphRole = Literal["image", "core", "network"]
"""``image``: uint8 NHWC in and out. ``core``: float32 NCHW in [0, 1] in, unclamped out.
``network``: one of the networks of a pipeline, or a segment of it, with inputs and outputs of its
own."""

OPENVINO, OPENVINO_LOW, OPENVINO_BFLOAT16 = "openvino", "openvino-low", "openvino-bfloat16"
"""Backends of graph variants. The second pays below float32 only; the third has bfloat16 as its own
type, which takes little memory, and is read by OpenVINO's own package."""


class FileEntry(msgspec.Struct, frozen=True):
    """What a file of the bundle must be, bit for bit."""

    sha256: str
    bytes: int


class Source(msgspec.Struct, frozen=True):
    """Where the weights came from: a checkpoint's digest, or the seed of random ones."""

    kind: Literal["checkpoint", "random"]
    name: str
    sha256: str = ""
    seed: int | None = None


class Graph(msgspec.Struct, frozen=True):
    """One ONNX graph. ``data`` lists its external weight files."""

    role: GraphRole
    file: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    data: list[str] = []
    opset: int = 18


class GraphVariant(msgspec.Struct, frozen=True):
    """The same function in the form that one backend (``openvino``) runs fastest."""

    backend: str
    graphs: list[Graph]


class Component(msgspec.Struct, frozen=True):
    """A network of the bundle and its graphs, which share their weights."""

    name: str
    precision: str
    graphs: list[Graph]
    variants: list[GraphVariant] = []

    def graph(self, role: GraphRole, backend: str = "") -> Graph:
        """The graph for ``backend``: its variant's where there is one, else the plain one."""
        graphs = next((v.graphs for v in self.variants if v.backend == backend), self.graphs)
        return next(g for g in graphs if g.role == role)

    def all_graphs(self) -> list[Graph]:
        """The plain graphs, then those of the variants."""
        return [*self.graphs, *(graph for v in self.variants for graph in v.graphs)]


class Reference(msgspec.Struct, frozen=True):
    """A sample: ``input`` uint8 (1, H, W, C) and PyTorch's fp32 ``output``.

    ``output`` is float32 (1, C, scale*H, scale*W) of the ``core`` graph, cropped where
    H and W are off the grid. Both are in the file ``file`` (npz).
    """

    name: str
    kind: Literal["photo", "noise"]
    file: str
    height: int
    width: int


class Measured(msgspec.Struct, frozen=True):
    """Fidelity of one sample on one backend, as measured when the bundle was made."""

    backend: str
    sample: str
    max_abs: float
    psnr: float


class MemoryNeed(msgspec.Struct, frozen=True):
    """Estimate of what a run of the ``core`` graph holds at its peak, in bytes."""

    fixed: int
    per_pixel: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``manifest.json``."""

    format: int
    name: str
    family: str
    variant: str
    config: dict[str, Any]
    source: Source
    image: ImageSpec
    receptive_field: ReceptiveField
    tolerance: Tolerance
    memory: MemoryNeed
    components: list[Component]
    references: list[Reference]
    fidelity: list[Measured]
    made_by: dict[str, str]
    files: dict[str, FileEntry]


class NetworkSample(msgspec.Struct, frozen=True):
    """Tensors of a network with PyTorch's answer, both in ``file`` (npz): the arrays are called
    ``in.NAME`` and ``out.NAME`` after the graph's inputs and outputs."""

    name: str
    file: str


class GroupNorm(msgspec.Struct, frozen=True):
    """A segment's input ``value`` is normalised with statistics of the whole picture: its inputs
    ``mean`` and ``inverse``, float32 (B, C, 1, 1), hold for every channel the mean of its group
    and ``1 / sqrt(variance + epsilon)``."""

    value: str
    groups: int
    epsilon: float


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a network, small enough to be run over tiles: values in, one value out.

    A value is a tensor (B, C, H, W): the network's input, or what an earlier segment gives, under
    the name that the graphs use. ``pixels``: of the values that are read in tiles, and of the
    output, so many pixels a side are one unit. ``halo``: for every input that is read in tiles,
    how many units beyond the core of a tile the core depends on; the others are read whole.
    ``memory``: bytes that a run holds for each unit of a tile; ``memory_pair``: and for each unit
    with each pixel of an input read whole.
    """

    graph: Graph
    pixels: tuple[int, int]
    halo: dict[str, int]
    memory: int
    memory_pair: int = 0
    norm: GroupNorm | None = None


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One network of a pipeline.

    ``tolerance``: largest error against PyTorch in fp32, of the largest magnitude of the
    expected tensor; ``low_psnr``: what lower precision has to reach, in dB of that magnitude.
    ``segments``: the same function in pieces, in order, for pictures that do not fit into memory
    at once; the last one gives the network's output.
    """

    component: Component
    tolerance: Tolerance
    low_psnr: float
    samples: list[NetworkSample]
    segments: list[Segment] = []


class PipelineReference(msgspec.Struct, frozen=True):
    """The whole pipeline, run once by the original library in fp32.

    ``mode``: what the family's runtime calls this way of running it; ``options``: of the call,
    but for its arrays, which are in ``file`` (npz, see ``whole_run``).
    """

    name: str
    mode: str
    options: dict[str, Any]
    file: str


class PipelineManifest(msgspec.Struct, frozen=True, kw_only=True):
    """``manifest.json`` of several networks that make a picture together.

    ``family`` names what runs them, ``settings`` is that one's business. ``files`` holds
    ``assets/`` too, such as the tokenizer. ``references``: what the whole has to reproduce.
    """

    format: int
    name: str
    family: str
    variant: str
    settings: dict[str, Any]
    source: Source
    networks: list[Network]
    fidelity: list[Measured]
    made_by: dict[str, str]
    files: dict[str, FileEntry]
    references: list[PipelineReference] = []


def encode_manifest(manifest: Manifest | PipelineManifest) -> bytes:
    """Manifest as indented JSON, stable for equal manifests."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
