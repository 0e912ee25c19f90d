"""onnxruntime's CUDA provider: that of ``onnxruntime-gpu``, or of its plugin wheels.

The options are those of cuda_provider_options.h. Where float32 is asked for, products are made
in float32: TF32, which onnxruntime allows by default on Ampere and later, is off.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from pixelrt.bundle import Bundle
from pixelrt.plans.profiles import Profile
from pixelrt.runtime.backends.onnxruntime_device import (
    OrtDeviceBackend,
    OrtMachine,
    Setting,
    load_onnxruntime,
)
from pixelrt.runtime.backends.ort_plugins import device_for, register
from pixelrt.runtime.device.cuda import Cuda

PROVIDER = "CUDAExecutionProvider"
PLUGIN = "onnxruntime_ep_cuda"
"""The module of the wheels onnxruntime-ep-cuda12 and onnxruntime-ep-cuda13."""
HINT = "pip uninstall onnxruntime; pip install 'pixelrt[cuda]'"


class CudaProvider:
    """See ``Provider``."""

    name = "onnxruntime-cuda"
    provider = PROVIDER
    shapes_on_host = True
    graph_option = ""

    def missing(self, machine: OrtMachine) -> str:
        if not machine.installed("onnxruntime"):
            return "onnxruntime is not installed; pip install 'pixelrt[cuda]'"
        if not machine.installed("cuda.bindings"):
            return "cuda-bindings is not installed; pip install 'pixelrt[cuda]'"
        if machine.installed(PLUGIN):
            return ""
        there = load_onnxruntime(machine).get_available_providers()
        if PROVIDER not in there:
            return f"the onnxruntime that is installed has no CUDA provider; {HINT}"
        return ""

    def prepare(self, machine: OrtMachine, ort: Any, cuda: Cuda) -> None:
        if PROVIDER in ort.get_available_providers():
            # From NVIDIA's wheels, where they are installed; what it says is no result.
            with contextlib.redirect_stdout(sys.stderr):
                ort.preload_dlls()
        else:
            plugin = machine.load(PLUGIN)
            register(ort, plugin.get_ep_name(), plugin.get_library_path)
            device_for(ort, PROVIDER, cuda)

    def version(self, machine: OrtMachine, ort: Any) -> str:
        return str(ort.__version__)

    def precision(self) -> str:
        return "float32"

    def profiles(self, bundle: Bundle) -> tuple[Profile, ...]:
        return ()

    def add(self, ort: Any, options: Any, setting: Setting) -> list[Any] | None:
        chosen = {
            "user_compute_stream": str(setting.stream.handle),
            "use_tf32": "0",
            # Algorithms by rule instead of by race: what was verified is what runs next time.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Its arena then holds what is needed and not the next power of two.
            "arena_extend_strategy": "kSameAsRequested",
        }
        if PROVIDER in ort.get_available_providers():
            return [(PROVIDER, {"device_id": str(setting.cuda.device), **chosen})]
        device = device_for(ort, PROVIDER, setting.cuda)
        options.add_provider_for_devices([device], {"has_user_compute_stream": "1", **chosen})
        return None


ONNXRUNTIME_CUDA = OrtDeviceBackend(CudaProvider())
