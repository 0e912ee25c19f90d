"""onnxruntime's TensorRT-RTX provider, from the wheel ``onnxruntime-ep-nv-tensorrt-rtx-cu13``.

It compiles the graph for the GPU at hand when the session is opened. The options are those of
``tensorrt_rtx_provider_options.h`` in that wheel.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from pixelrt.bundle import Bundle
from pixelrt.cache import cache_folder
from pixelrt.errors import BackendError
from pixelrt.plans.profiles import DEFAULT_TILE, Profile, default_profile, tensor_shape
from pixelrt.runtime.backends.onnxruntime_device import OrtDeviceBackend, OrtMachine, Setting
from pixelrt.runtime.backends.ort_plugins import device_for, register
from pixelrt.runtime.device.cuda import Cuda

PROVIDER = "NvTensorRTRTXExecutionProvider"
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
"""The module of the wheels for CUDA 12 and 13."""
HINT = "pip install 'pixelrt[rtx]'"
WHOLE_TILE = 512
"""What networks that cannot be tiled are tuned for; they take twice that."""


class RtxProvider:
    """See ``Provider``. ``graphs``: whether the provider records CUDA graphs.

    It records in CUDA's global mode, so that no other thread may allocate device memory
    meanwhile: off by default.
    """

    name = "onnxruntime-tensorrt-rtx"
    provider = PROVIDER
    shapes_on_host = False

    def __init__(self, *, graphs: bool = False) -> None:
        self.graph_option = "cuda_graph_annotation_id" if graphs else ""

    def missing(self, machine: OrtMachine) -> str:
        needed = (
            ("onnxruntime", "onnxruntime"),
            (PLUGIN, "TensorRT-RTX's plugin for onnxruntime"),
            ("cuda.bindings", "cuda-bindings"),
        )
        for module, name in needed:
            if not machine.installed(module):
                return f"{name} is not installed; {HINT}"
        return ""

    def prepare(self, machine: OrtMachine, ort: Any, cuda: Cuda) -> None:
        plugin = machine.load(PLUGIN)
        register(ort, plugin.get_ep_name(), plugin.get_library_path)
        device_for(ort, PROVIDER, cuda)

    def version(self, machine: OrtMachine, ort: Any) -> str:
        return f"{ort.__version__} with {machine.load(PLUGIN).__version__}"

    def precision(self) -> str:
        """The provider has no switch for TF32; NVIDIA's libraries have one for all of them."""
        return "float32" if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0" else "tf32"

    def profiles(self, bundle: Bundle) -> tuple[Profile, ...]:
        """Twice the tile at most: without profiles it would compile anew for every size."""
        whole = bundle.manifest.receptive_field.halo is None
        tile = WHOLE_TILE if whole else DEFAULT_TILE
        return (default_profile(bundle.manifest.image, tile=tile),)

    def add(self, ort: Any, options: Any, setting: Setting) -> list[Any] | None:
        device = device_for(ort, PROVIDER, setting.cuda)
        options.add_provider_for_devices([device], self.options(ort, setting))
        return None

    def options(self, ort: Any, setting: Setting) -> dict[str, str]:
        return {
            "has_user_compute_stream": "1",
            "user_compute_stream": str(setting.stream.handle),
            **_profile(setting),
            "nv_runtime_cache_path": str(runtime_cache(ort, setting)),
            "enable_cuda_graph": "1" if self.graph_option else "0",
        }


def _profile(setting: Setting) -> dict[str, str]:
    """For images; without one, for networks of pipelines, the provider makes its own."""
    if not setting.profiles:
        return {}
    spec = setting.graph.inputs[0]
    names = ("nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes")
    return {
        name: f"{spec.name}:{'x'.join(map(str, tensor_shape(spec, shape)))}"
        for name, shape in zip(names, setting.profiles[0].shapes, strict=True)
    }


def runtime_cache(ort: Any, setting: Setting) -> Path:
    """A folder of the user's for what was compiled of this graph, for this GPU, by these versions.

    Raises ``BackendError`` where it cannot be made, or where others may write to it: what
    lies there is run.
    """
    graph = [setting.bundle.sha256, setting.graph.role, setting.bundle.component.name]
    gpu = [setting.cuda.device_name(), setting.cuda.compute_capability()]
    what = [*graph, *gpu, ort.__version__, _version()]
    key = hashlib.sha256(json.dumps([*what, *map(str, setting.profiles)]).encode()).hexdigest()
    folder = cache_folder() / "tensorrt-rtx" / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.stat()
    except OSError as exc:
        raise BackendError("the cache for compiled kernels cannot be made", found=str(exc)) from exc
    if os.name == "posix" and (state.st_mode & 0o022 or state.st_uid != os.geteuid()):
        raise BackendError(
            "the cache for compiled kernels is open to others",
            found=f"{folder}, mode {state.st_mode & 0o777:o}",
            hint="remove it, or set PIXELRT_CACHE to a folder of your own",
        )
    return folder


def _version() -> str:
    for package in ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12"):
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


ONNXRUNTIME_RTX = OrtDeviceBackend(RtxProvider())
