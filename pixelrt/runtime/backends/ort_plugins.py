"""Providers that onnxruntime loads from libraries of their own wheels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pixelrt.errors import BackendError
from pixelrt.runtime.device.cuda import Cuda

_lock = threading.Lock()


def register(ort: Any, name: str, library: Callable[[], str], hint: str = "") -> None:
    """Have onnxruntime load the provider ``name``, once per process; thread-safe.

    ``library`` gives the path; ``hint``: what to do where it does not load. It stays loaded:
    sessions of others may use it. One that the program has registered itself is used as it
    is: registered a second time, onnxruntime would list its devices twice. Raises
    ``BackendError`` in onnxruntime's words.
    """
    with _lock:
        if any(device.ep_name == name for device in ort.get_ep_devices()):
            return
        try:
            ort.register_execution_provider_library(name, library())
        # a broken package, a missing file, a loader's message in onnxruntime's own exception
        except Exception as exc:
            if "already registered" in str(exc).lower():
                return
            raise BackendError(
                f"onnxruntime could not load {name}",
                found=str(exc) or type(exc).__name__,
                hint="libcuda.so.1 comes with NVIDIA's driver: install it, or use another backend"
                if "libcuda.so" in str(exc)
                else hint,
            ) from exc


def device_for(ort: Any, name: str, cuda: Cuda) -> Any:
    """onnxruntime's device of provider ``name`` that is the GPU of ``cuda``.

    Raises ``BackendError`` where the provider takes no GPU here.
    """
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if len(devices) == 1 and cuda.device_count() == 1:
        return devices[0]
    number = str(cuda.device)
    for device in devices:
        if dict(device.ep_options).get("device_id") == number:
            return device
    major, minor = cuda.compute_capability()
    raise BackendError(
        f"{name} does not take the GPU",
        found=f"{cuda.device_name()}, compute capability {major}.{minor}",
        expected=f"one of the {len(devices)} that it offers" if devices else "",
        hint="CUDA_VISIBLE_DEVICES chooses one GPU of several; use another backend otherwise",
    )
