"""Everything that is compared, each with the best settings that its users could reasonably take.

A contender opens in a process of its own and then runs one image as often as it is asked.
All take and give pictures, (H, W, C) uint8, except those called bare: they run a graph on
a batch that is ready, and leave the result where it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import SEED, Network
from pixelrt.bundle import open_bundle
from pixelrt.errors import BackendError
from pixelrt.geometry import Size
from pixelrt.grid import grid_size, pad_image
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.pipelines.one_shape import ways_to_run
from pixelrt.runtime.planning import RunOptions
from pixelrt.spec import ImageSpec

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """What a contender is given. ``image``: a .npy file with (H, W, C) uint8.
    ``part``: one tile of it, where it is cut into tiles."""

    network: Network
    bundle: Path
    image: Path
    threads: int
    part: Path | None = None

    def load(self) -> Pixels:
        pixels: Pixels = np.load(self.image)
        return pixels

    def load_part(self) -> Pixels:
        """What is enough to warm up: the tile, or the image where there are no tiles."""
        pixels: Pixels = np.load(self.part or self.image)
        return pixels


@dataclass(frozen=True)
class Opened:
    """``run`` is what is timed; ``picture`` turns what it gave into (H', W', C) uint8.
    ``kept``: what stays in float32 beside ``precision``; ``warm``: what is run to warm up,
    where ``run`` takes minutes."""

    run: Callable[[], Any]
    picture: Callable[[Any], Pixels]
    precision: str
    note: str = ""
    kept: str = ""
    warm: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Contender:
    """``open`` raises ``PixelrtError`` where it cannot be done here. ``families``: whose
    networks it runs, all without any. ``whole``: it runs an image of any size; the others
    are given one tile of it. ``pad``: how it extends images; borders depend on it."""

    name: str
    settings: str
    open: Callable[[Job], Opened]
    families: tuple[str, ...] = ()
    whole: bool = False
    pad: Literal["grid", "library"] = "grid"


# --- pixelrt --------------------------------------------------------------------------


def _model(job: Job, precision: str) -> ImageModel:
    return ImageModel(open_bundle(job.bundle), precision=precision)


def open_pixelrt(job: Job, precision: str) -> Opened:
    """What users call: picture in, picture out."""
    model = _model(job, precision)
    image, part, options = job.load(), job.load_part(), RunOptions()
    info = model.session().info
    return Opened(
        lambda: model.run_array(image, options),
        _same,
        info.precision,
        str(info),
        info.kept,
        warm=lambda: model.run_array(part, options),
    )


def open_session_alone(job: Job, precision: str) -> Opened:
    """The same session and tile, with the batch ready and the result left where it is."""
    model = _model(job, precision)
    session, image = model.session(), job.load()
    size = Size(*image.shape[:2])
    plan, infer = ways_to_run(size, "image", model.manifest, session, RunOptions())[0]
    padded = pad_image(image[None], plan.image, model.manifest.image.pad_mode)
    read = next(iter(plan)).read
    feed = {session.inputs[0].name: np.ascontiguousarray(padded[:, *read.slices])}
    name, count = session.outputs[0].name, len(plan)

    def run() -> Any:
        for _ in range(count):
            result = infer(feed)[name]
        return result

    high = size.scaled(model.scale)
    note = f"{session.info}; {plan}"
    info = session.info
    return Opened(run, partial(_cropped, high=high), info.precision, note, info.kept)


# --- PyTorch --------------------------------------------------------------------------


def open_torch(job: Job, *, compiled: bool, precision: str) -> Opened:
    """The published network, as the recipe that the bundle was exported from builds it."""
    import torch

    from pixelrt.export import registry

    torch.set_num_threads(job.threads)
    config = dict(job.network.config) if job.network.config else None
    network = registry.get(job.network.family).random(config, SEED)
    convolutional = job.network.family != "swin2sr"
    layout = torch.channels_last if convolutional else torch.contiguous_format
    module: Any = network.reference
    module = module.to(memory_format=layout)
    module = torch.compile(module) if compiled else module
    image = job.load()
    high = Size(*image.shape[:2]).scaled(network.image.scale)

    def run() -> Pixels:
        low = precision == "bfloat16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            values = _to_tensor(torch, image, network.image).contiguous(memory_format=layout)
            out = module(values).float().clamp(0, 1).mul(255).round().to(torch.uint8)
        return _cropped(out.permute(0, 2, 3, 1).numpy(), high)

    if compiled:
        _first_compile(run)
    note = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    return Opened(run, _same, precision, note)


def _to_tensor(torch: Any, image: Pixels, spec: ImageSpec) -> Any:
    padded = pad_image(image[None], grid_size(Size(*image.shape[:2]), spec), spec.pad_mode)
    return torch.from_numpy(np.ascontiguousarray(padded)).permute(0, 3, 1, 2).float().div(255)


def _first_compile(run: Callable[[], object]) -> None:
    try:
        run()
    except Exception as exc:  # the compiler's own errors share no base class
        words = " ".join(str(exc).split())[:300]
        raise BackendError("torch.compile does not work here", found=words) from exc


def open_transformers(job: Job) -> Opened:
    """The library's route: its processor, its model, its way back to a picture."""
    import torch
    from transformers import Swin2SRImageProcessor

    from pixelrt.export import registry

    torch.set_num_threads(job.threads)
    config = dict(job.network.config) if job.network.config else None
    network = registry.get("swin2sr").random(config, SEED)
    model: Any = network.reference.get_submodule("model")
    processor = Swin2SRImageProcessor()
    image = job.load()
    high = Size(*image.shape[:2]).scaled(network.image.scale)

    def run() -> Pixels:
        values = processor(image, return_tensors="pt").pixel_values
        with torch.inference_mode():
            out = model(values).reconstruction
        levels = out.clamp(0, 1).mul(255).round().to(torch.uint8)
        return _cropped(levels.permute(0, 2, 3, 1).numpy(), high)

    note = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    return Opened(run, _same, "float32", note)


# --- bare engines ---------------------------------------------------------------------


def open_onnxruntime(job: Job) -> Opened:
    """onnxruntime's CPU kernels on the exported uint8 graph."""
    import onnxruntime as ort

    bundle = open_bundle(job.bundle)
    graph = bundle.component.graph("image")
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    path = str(bundle.path(graph.file))
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed, high = _batch(job, bundle.manifest.image)
    names, feeds = [graph.outputs[0].name], {graph.inputs[0].name: feed}
    picture = partial(_cropped, high=high)
    note = f"onnxruntime {ort.__version__}"
    return Opened(lambda: session.run(names, feeds)[0], picture, "float32", note)


HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def open_openvino(job: Job, precision: str) -> Opened:
    """OpenVINO on the exported uint8 graph, with the shape fixed: its best case."""
    bundle = open_bundle(job.bundle)
    graph = bundle.component.graph("image")
    feed, high = _batch(job, bundle.manifest.image)
    opened = _open_openvino(bundle.path(graph.file), feed, precision, job.threads)
    return replace(opened, picture=lambda out: _cropped(out, high).copy())


def open_library_export(job: Job, precision: str) -> Opened:
    """OpenVINO on what ``torch.onnx.export`` makes of transformers' own model, shape fixed."""
    import torch

    from pixelrt.export import registry

    config = dict(job.network.config) if job.network.config else None
    network = registry.get("swin2sr").random(config, SEED)
    batch, high = _batch(job, network.image)
    feed = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)
    with tempfile.TemporaryDirectory(prefix="pixelrt-library-export-") as folder:
        path = Path(folder) / "model.onnx"
        example = (torch.from_numpy(feed),)
        torch.onnx.export(network.reference, example, path, dynamo=True, verbose=False)
        opened = _open_openvino(path, feed, precision, job.threads)

    def picture(out: Any) -> Pixels:
        levels = np.clip(out, 0, 1) * np.float32(255)
        return _cropped(np.rint(levels).astype(np.uint8).transpose(0, 2, 3, 1), high)

    return replace(opened, picture=picture, note=f"{opened.note}, torch {torch.__version__}")


def _open_openvino(path: Path, feed: NDArray[Any], precision: str, threads: int) -> Opened:
    """A graph of one input and one output with the shape of ``feed``."""
    try:
        import openvino as ov
    except ImportError as exc:
        hint = "pip install 'pixelrt[benchmarks]'"
        raise BackendError("openvino is not installed", found=str(exc), hint=hint) from exc
    core = ov.Core()
    model = core.read_model(str(path))
    model.reshape(list(feed.shape))
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run() -> Any:
        request.infer([feed], share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data

    return Opened(run, np.copy, precision, f"openvino {ov.__version__}")


def _batch(job: Job, spec: ImageSpec) -> tuple[Pixels, Size]:
    """The padded batch, and the size of the picture that comes out."""
    image = job.load()
    size = Size(*image.shape[:2])
    padded = pad_image(image[None], grid_size(size, spec), spec.pad_mode)
    return np.ascontiguousarray(padded), size.scaled(spec.scale)


def _cropped(batch: Pixels, high: Size) -> Pixels:
    return batch[0, : high.height, : high.width]


def _same(picture: Pixels) -> Pixels:
    return picture


OURS = "pixelrt"
_ALL_THREADS = "all usable processors"
_TORCH = f"eval, inference_mode, {_ALL_THREADS}, channels_last for convolutional networks"
_OPENVINO = f"shape fixed, LATENCY hint, shared tensors, {_ALL_THREADS}"

PEERS: tuple[Contender, ...] = (
    Contender(
        "torch eager float32", _TORCH, partial(open_torch, compiled=False, precision="float32")
    ),
    Contender(
        "torch eager bfloat16",
        f"{_TORCH}, bfloat16 autocast",
        partial(open_torch, compiled=False, precision="bfloat16"),
    ),
    Contender(
        "torch.compile float32",
        f"{_TORCH}, inductor, compiled before",
        partial(open_torch, compiled=True, precision="float32"),
    ),
    Contender(
        "torch.compile bfloat16",
        f"{_TORCH}, inductor, compiled before, bfloat16 autocast",
        partial(open_torch, compiled=True, precision="bfloat16"),
    ),
    Contender(
        "transformers processor + model",
        f"Swin2SRImageProcessor and model, float32, inference_mode, {_ALL_THREADS}",
        open_transformers,
        families=("swin2sr",),
        pad="library",
    ),
    Contender(
        "onnxruntime bare", f"session.run of the plain export, {_ALL_THREADS}", open_onnxruntime
    ),
    *(
        Contender(
            f"openvino {name} bare",
            f"pixelrt's plain graph, {_OPENVINO}",
            partial(open_openvino, precision=name),
        )
        for name in HINTS
    ),
    *(
        Contender(
            f"openvino {name}, library's export",
            f"torch.onnx.export of transformers' model, float32 pixels in and out, {_OPENVINO}",
            partial(open_library_export, precision=name),
            families=("swin2sr",),
        )
        for name in HINTS
    ),
    Contender(
        "pixelrt session bare",
        "the session that pixelrt chose, the same tile, batch ready",
        partial(open_session_alone, precision="auto"),
        whole=True,
    ),
)

PIXELRT: tuple[Contender, ...] = tuple(
    Contender(
        OURS if precision == "auto" else f"{OURS} {precision}",
        "picture in, picture out; backend, precision and tile chosen by itself"
        if precision == "auto"
        else f"picture in, picture out, --precision {precision}",
        partial(open_pixelrt, precision=precision),
        whole=True,
    )
    for precision in ("auto", *HINTS)
)


def ours_for(peer: Contender) -> Contender:
    """Who of pixelrt it is held against: bare OpenVINO against the same precision."""
    precision = peer.name.split()[1].rstrip(",") if peer.name.startswith("openvino") else ""
    name = f"{OURS} {precision}" if precision else OURS
    return next(one for one in PIXELRT if one.name == name)


def peers_for(network: Network) -> tuple[Contender, ...]:
    return tuple(one for one in PEERS if not one.families or network.family in one.families)
