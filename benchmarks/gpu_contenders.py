"""What runs on a GPU, each with its best reasonable settings. All take and give pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cases import SEED
from benchmarks.contenders import Contender, Job, Opened, Pixels
from benchmarks.timeline import PageableCuda, as_cuda
from pixelrt.bundle import open_bundle
from pixelrt.errors import BackendError
from pixelrt.geometry import Size
from pixelrt.grid import grid_size, pad_image
from pixelrt.plans.target import Flavour
from pixelrt.runtime.backends.tensorrt import HERE, TensorRTBackend
from pixelrt.runtime.device.cuda import Cuda, RealCuda
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.planning import RunOptions


def open_plan(
    job: Job, flavour: Flavour, *, graphs: bool = True, pinned: bool = True, streams: int = 1
) -> Opened:
    """pixelrt on a plan of the bundle, picture in and picture out."""

    def pageable() -> Cuda:
        return as_cuda(PageableCuda(RealCuda()))

    machine = HERE if pinned else replace(HERE, cuda=pageable)
    backend = TensorRTBackend(flavour, graphs=graphs, machine=machine)
    model = ImageModel(open_bundle(job.bundle), backends=(backend,))
    image, options = job.load(), RunOptions(streams=streams)
    info = model.session().info
    notes = [str(info), *model.notes]
    return Opened(
        lambda: model.run_array(image, options), lambda out: out, info.precision, "; ".join(notes)
    )


def open_torch_cuda(job: Job, *, compiled: bool) -> Opened:
    """The published network in float16: pixels are converted on the GPU, copies are pinned."""
    import torch

    from pixelrt.export import registry

    if not torch.cuda.is_available():
        raise BackendError("this torch has no CUDA device", found=f"torch {torch.__version__}")
    torch.backends.cudnn.benchmark = True
    config = dict(job.network.config) if job.network.config else None
    network = registry.get(job.network.family).random(config, SEED)
    convolutional = job.network.family != "swin2sr"
    layout = torch.channels_last if convolutional else torch.contiguous_format
    module: Any = network.reference
    module = module.half().cuda().to(memory_format=layout)
    module = torch.compile(module, mode="max-autotune") if compiled else module
    image = job.load()
    size = Size(*image.shape[:2])
    high = size.scaled(network.image.scale)
    padded = pad_image(image[None], grid_size(size, network.image), network.image.pad_mode)
    host = torch.from_numpy(np.ascontiguousarray(padded)).pin_memory()

    def run() -> Pixels:
        with torch.inference_mode():
            values = host.cuda(non_blocking=True).permute(0, 3, 1, 2).half().div(255)
            out = module(values.contiguous(memory_format=layout))
            levels = out.float().clamp(0, 1).mul(255).round().to(torch.uint8)
            picture: Pixels = levels.permute(0, 2, 3, 1)[0].contiguous().cpu().numpy()
        return picture[: high.height, : high.width]

    note = f"torch {torch.__version__} on {torch.cuda.get_device_name()}"
    return Opened(run, lambda out: out, "float16", note)


def open_onnxruntime_cuda(job: Job) -> Opened:
    """onnxruntime's CUDA kernels on the exported uint8 graph, TF32 allowed."""
    import onnxruntime as ort

    name = "CUDAExecutionProvider"
    if name not in ort.get_available_providers():
        found = ", ".join(ort.get_available_providers())
        raise BackendError("this onnxruntime has no CUDA provider", found=found)
    bundle = open_bundle(job.bundle)
    graph = bundle.component.graph("image")
    providers = [(name, {"use_tf32": "1", "cudnn_conv_algo_search": "EXHAUSTIVE"})]
    session = ort.InferenceSession(str(bundle.path(graph.file)), providers=providers)
    if session.get_providers()[0] != name:
        raise BackendError("onnxruntime went back to the CPU", found=str(session.get_providers()))
    image, spec = job.load(), bundle.manifest.image
    size = Size(*image.shape[:2])
    high = size.scaled(spec.scale)
    padded = np.ascontiguousarray(pad_image(image[None], grid_size(size, spec), spec.pad_mode))
    names, feeds = [graph.outputs[0].name], {graph.inputs[0].name: padded}

    def run() -> Pixels:
        result: Pixels = session.run(names, feeds)[0]
        return result[0, : high.height, : high.width]

    return Opened(run, lambda out: out, "float32", f"onnxruntime {ort.__version__}")


_TORCH = "float16, eval, inference_mode, pinned input, conversions on the GPU, channels_last"


def gpu_contenders(flavour: Flavour) -> tuple[Contender, ...]:
    """pixelrt first: the others are held against it."""
    plan = partial(open_plan, flavour=flavour)
    return (
        Contender(f"pixelrt {flavour}", "CUDA graphs, pinned memory", plan, whole=True),
        Contender("pixelrt, graphs off", "pinned memory", partial(plan, graphs=False), whole=True),
        Contender("pixelrt, pageable memory", "graphs", partial(plan, pinned=False), whole=True),
        Contender("pixelrt, two streams", "graphs, pinned", partial(plan, streams=2), whole=True),
        Contender("torch float16 eager", _TORCH, partial(open_torch_cuda, compiled=False)),
        Contender(
            "torch.compile float16",
            f"{_TORCH}, max-autotune, compiled before",
            partial(open_torch_cuda, compiled=True),
        ),
        Contender(
            "onnxruntime CUDA",
            "plain export, float32 with TF32, exhaustive search",
            open_onnxruntime_cuda,
        ),
    )
