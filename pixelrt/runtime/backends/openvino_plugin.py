"""OpenVINO as a plugin of onnxruntime: its library, its device, its settings."""

from __future__ import annotations

import importlib
import importlib.util
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pixelrt.errors import BackendError
from pixelrt.runtime.backends.onnxruntime import INSTALL_HINT

if TYPE_CHECKING:
    import onnxruntime

PACKAGE = "onnxruntime_ep_openvino"
PROVIDER = "OpenVINOExecutionProvider"
REGISTERED_AS = "pixelrt-openvino"
NEEDED = (1, 24)
"""The first onnxruntime that tells which provider was given which nodes."""

HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""Our names of precisions to OpenVINO's."""

_registering = threading.Lock()


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
    compute; ``shape``: the fixed shape of the only input, empty for any."""

    precision: str
    threads: int
    shape: tuple[int, ...] = ()

    def load_config(self) -> str:
        """OpenVINO's properties, as the plugin takes them.

        Threads are not pinned: on a machine that others use too, a pinned thread waits for
        its processor while another one idles.
        """
        properties = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "INFERENCE_NUM_THREADS": str(self.threads),
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": "NO",
        }
        return json.dumps({"CPU": properties}, sort_keys=True)


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

    A plugin that the program has registered itself is used as it is: registered a second
    time, onnxruntime would list its devices twice. Raises ``BackendError`` where the
    library does not load or sees no CPU.
    """
    import onnxruntime as ort

    _check_version(ort.__version__)
    with _registering:
        device = _cpu_device()
        if device is None:
            _register()
            device = _cpu_device()
    if device is None:
        seen = ", ".join(sorted({one.ep_name for one in ort.get_ep_devices()}))
        raise BackendError(
            "OpenVINO's plugin was loaded but offers no CPU", found=seen, hint=INSTALL_HINT
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
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_provider_for_devices([plugin.device], {"load_config": settings.load_config()})
    return options


def check_assignment(session: onnxruntime.InferenceSession) -> None:
    """Raise ``BackendError`` unless OpenVINO was given all nodes of a session's graph."""
    counts: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    if set(counts) != {PROVIDER}:
        told = ", ".join(f"{count} nodes: {name}" for name, count in sorted(counts.items()))
        raise BackendError(
            "OpenVINO did not take the whole graph",
            found=told or "no node was given to any provider",
            expected=f"all nodes: {PROVIDER}",
            hint="use --backend onnxruntime-cpu",
        )


def _check_version(version: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < NEEDED:
        raise BackendError(
            "this onnxruntime is too old for the OpenVINO plugin",
            found=f"onnxruntime {version}",
            expected="1.24 or later",
            hint=INSTALL_HINT,
        )


def _cpu_device() -> Any:
    import onnxruntime as ort

    for device in ort.get_ep_devices():
        if device.ep_name == PROVIDER and device.ep_metadata.get("ov_device") == "CPU":
            return device
    return None


def _register() -> None:
    import onnxruntime as ort

    try:
        path = importlib.import_module(PACKAGE).get_library_path()
        ort.register_execution_provider_library(REGISTERED_AS, path)
    # a missing file, a loader's message in onnxruntime's own exception, a broken package
    except Exception as exc:
        raise BackendError(
            "OpenVINO's plugin for onnxruntime does not load",
            found=str(exc) or type(exc).__name__,
            hint=f"install it again: {INSTALL_HINT}",
        ) from exc
