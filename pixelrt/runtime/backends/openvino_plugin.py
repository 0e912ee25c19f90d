"""OpenVINO as a plugin of onnxruntime: its library, its device, its settings."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pixelrt.errors import BackendError
from pixelrt.runtime.backends.onnxruntime import INSTALL_HINT
from pixelrt.runtime.backends.ort_assignment import NO_FALLBACK, RECORD, require_version
from pixelrt.runtime.backends.ort_plugins import register
from pixelrt.runtime.machine import processor_name

if TYPE_CHECKING:
    import onnxruntime

PACKAGE = "onnxruntime_ep_openvino"
PROVIDER = "OpenVINOExecutionProvider"

HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""Our names of precisions to OpenVINO's."""


@dataclass(frozen=True)
class Plugin:
    """The plugin, loaded. ``device``: onnxruntime's handle of the CPU as OpenVINO sees it;
    ``capabilities``: OpenVINO's ``OPTIMIZATION_CAPABILITIES``, e.g. ``FP32``, ``BF16``."""

    device: Any
    version: str
    capabilities: frozenset[str]


@dataclass(frozen=True)
class Settings:
    """How a graph is compiled. ``precision``: a key of ``HINTS``; ``threads``: how many
    compute; ``shape``: the fixed shape of the only input, empty for any; ``kept``: what
    stays in float32, in words; only OpenVINO's own package can be told."""

    precision: str
    threads: int
    shape: tuple[int, ...] = ()
    kept: str = ""

    def properties(self) -> dict[str, str]:
        """OpenVINO's properties.

        Threads are not pinned: on a machine that others use too, a pinned thread waits for
        its processor while another one idles.
        """
        return {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "INFERENCE_NUM_THREADS": str(self.threads),
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": "NO",
        }

    def load_config(self) -> str:
        """The properties as the plugin takes them."""
        return json.dumps({"CPU": self.properties()}, sort_keys=True)


def missing_packages() -> str:
    """Why the plugin cannot be loaded, as far as that shows without loading it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return f"onnxruntime is not installed; {INSTALL_HINT}"
    if importlib.util.find_spec(PACKAGE) is None:
        return (
            f"onnxruntime-ep-openvino is not installed; {INSTALL_HINT} "
            "(there are wheels for Linux and Windows on x86-64)"
        )
    return ""


def load_plugin() -> Plugin:
    """Load the plugin into onnxruntime, once per process; thread-safe.

    Raises ``BackendError`` where the library does not load or sees no CPU.
    """
    import onnxruntime as ort

    require_version(ort.__version__, INSTALL_HINT)
    register(ort, PROVIDER, _library, hint=f"install it again: {INSTALL_HINT}")
    device = _cpu_device()
    if device is None:
        # It takes Intel's processors alone (microsoft/onnxruntime#31981).
        raise BackendError(
            "OpenVINO's plugin was loaded but does not take this processor",
            found=f"{processor_name()}, which OpenVINO's plugin does not take",
            hint="the backend openvino does: pip install openvino",
        )
    facts = device.ep_metadata
    capabilities = frozenset(facts.get("OPTIMIZATION_CAPABILITIES", "FP32").split())
    return Plugin(device, facts.get("version", "unknown"), capabilities)


def session_options(plugin: Plugin, settings: Settings) -> onnxruntime.SessionOptions:
    """Options under which OpenVINO takes every node or the session is refused."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.intra_op_num_threads = 1  # OpenVINO has its own threads
    options.add_session_config_entry(NO_FALLBACK, "1")
    options.add_session_config_entry(RECORD, "1")
    options.add_provider_for_devices([plugin.device], {"load_config": settings.load_config()})
    return options


def _cpu_device() -> Any:
    import onnxruntime as ort

    for device in ort.get_ep_devices():
        if device.ep_name == PROVIDER and device.ep_metadata.get("ov_device") == "CPU":
            return device
    return None


def _library() -> str:
    return str(importlib.import_module(PACKAGE).get_library_path())
