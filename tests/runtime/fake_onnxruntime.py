"""A fake of onnxruntime with CUDA providers: a network that repeats pixels, as kernels of the
fake of CUDA, on the stream and at the addresses that it was given."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.bundles import nearest
from tests.pipelines import mixing
from tests.runtime.fake_cuda import FakeCuda

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"
TINY_EVENT = {"op_name": "Gather", "types": [{"int64": [4]}, {"int64": []}]}


class Fail(Exception):  # noqa: N818 - it is what onnxruntime calls it
    """onnxruntime's exceptions share no base below ``Exception``."""


@dataclass(frozen=True)
class Node:
    """``types``: of its tensors, as the profile has them."""

    name: str
    op_type: str
    provider: str
    types: tuple[dict[str, list[int]], ...] = ({"float": [1, 3, 32, 32]},)


def network(provider: str) -> tuple[Node, ...]:
    return Node("conv_in", "Conv", provider), Node("conv_out", "Conv", provider)


SHAPES = (
    Node("shape", "Shape", CPU, ({"int64": [4]}, {"uint8": [1, 32, 32, 3]})),
    Node("height", "Gather", CPU, ({"int64": [1]}, {"int64": [4]}, {"int64": []})),
)
"""What onnxruntime puts on the host by design."""


@dataclass
class FakeOrt:
    """``onnxruntime`` the module. ``nodes``: the graph, and who got what."""

    cuda: FakeCuda
    nodes: tuple[Node, ...]
    builtin: tuple[str, ...] = (CUDA, CPU)
    offered: dict[str, int] = field(default_factory=dict)
    """Providers of plugins, and how many GPUs each takes, once registered."""
    given: tuple[str, ...] = ()
    """The providers that sessions have, other than those asked for."""
    load_error: str = ""
    register_error: str = ""
    run_error: str = ""
    wrong: int = 0
    asynchronous: bool = True
    function: Callable[[str, dict[str, Any]], tuple[Any, ...]] = lambda _, feeds: mixing(
        *feeds.values()
    )
    """Of a pipeline's network: the file of its graph and its inputs to its outputs."""
    takes: Callable[[str, dict[str, Any]], int] = lambda *_: 0
    """Bytes of device memory for a run of it, which the session keeps."""
    __version__: str = "1.31.1"
    registered: list[tuple[str, str]] = field(default_factory=list)
    sessions: list[FakeSessionState] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.SessionOptions = _SessionOptions
        self.RunOptions = _Options
        world = self
        self.InferenceSession = lambda *a, **k: _Session(world, *a, **k)

    def get_available_providers(self) -> list[str]:
        return list(self.builtin)

    def preload_dlls(self) -> None:
        print("libraries are loaded")  # noqa: T201 - onnxruntime does that

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if self.register_error:
            raise Fail(self.register_error)
        assert name not in dict(self.registered), "registered twice"
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[Any]:
        names = [name for name, _ in self.registered]
        return [
            SimpleNamespace(ep_name=name, ep_options={"device_id": str(number)})
            for name in names
            for number in range(self.offered.get(name, 0))
        ] + [SimpleNamespace(ep_name=CPU, ep_options={})]


@dataclass
class FakeSessionState:
    """What a session was opened with, and what became of it."""

    path: str
    entries: dict[str, str]
    provider: str
    options: dict[str, str]
    runs: list[dict[str, str]] = field(default_factory=list)
    stream_when_closed: bool | None = None


class _Options:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class _SessionOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.devices: list[tuple[list[Any], dict[str, str]]] = []
        self.enable_profiling = False
        self.profile_file_prefix = ""

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        assert len(devices) == 1, "EP only supports selection for one device."
        self.devices.append((devices, options))


class _Session:
    def __init__(
        self,
        world: FakeOrt,
        path: str,
        *,
        sess_options: _SessionOptions,
        providers: list[Any] | None,
        enable_fallback: int = 1,
    ) -> None:
        assert Path(path).is_file()
        self.arena = 0, 0
        if world.load_error and not enable_fallback:
            raise Fail(world.load_error)
        if providers:
            ((provider, options),) = providers
        else:
            (((device,), options),) = sess_options.devices
            provider = device.ep_name
        assert all(isinstance(value, str) for value in options.values())
        state = FakeSessionState(path, sess_options.entries, provider, options)
        world.sessions.append(state)
        self.world, self.state = world, state
        self.stream = int(options["user_compute_stream"])
        self.profile = sess_options.profile_file_prefix if sess_options.enable_profiling else ""
        refused = [node for node in world.nodes if node.provider == CPU]
        if sess_options.entries.get("session.disable_cpu_ep_fallback") == "1" and refused:
            raise Fail("graph nodes that are assigned to the default CPU EP")
        self.events: list[dict[str, Any]] = []

    def __del__(self) -> None:
        if hasattr(self, "state"):
            self._grow(0)
            self.state.stream_when_closed = self.stream in self.world.cuda.streams

    def get_providers(self) -> list[str]:
        return list(self.world.given or (self.state.provider, CPU))

    def get_provider_graph_assignment_info(self) -> list[Any]:
        assert self.state.entries["session.record_ep_graph_assignment_info"] == "1"
        return [
            SimpleNamespace(ep_name=node.provider, get_nodes=lambda node=node: [node])
            for node in self.world.nodes
        ]

    def io_binding(self) -> Any:
        bound: dict[str, Any] = {}
        return SimpleNamespace(
            bound=bound,
            bind_input=lambda *facts: bound.update(input=facts),
            bind_output=lambda *facts: bound.update(output=facts),
        )

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """Of pipelines that are written by hand, computed on the device and waited for."""
        world, cuda = self.world, self.world.cuda
        if world.run_error:
            raise Fail(world.run_error)
        self.state.runs.append({})
        if world.takes(self.state.path, feeds) > self.arena[1]:
            self._grow(world.takes(self.state.path, feeds))
        found = dict(zip(names, world.function(self.state.path, feeds), strict=True))
        cuda.kernel(self.stream, [], [], lambda: None)
        cuda.stream_synchronize(self.stream)
        self._tell()
        return [found[name] + found[name].dtype.type(world.wrong) for name in names]

    def run_with_iobinding(self, binding: Any, options: _Options) -> None:
        world, cuda = self.world, self.world.cuda
        if world.run_error:
            raise Fail(world.run_error)
        self.state.runs.append(options.entries)
        _, kind, number, dtype, dims, source = binding.bound["input"]
        _, _, _, out_type, out_dims, target = binding.bound["output"]
        assert (kind, number) == ("cuda", cuda.device)
        size = prod(dims) * np.dtype(dtype).itemsize
        out_size = prod(out_dims) * np.dtype(out_type).itemsize

        def run(given: Any, taken: Any) -> None:
            pixels = given.view(dtype).reshape(dims)
            first = dims[-1] not in (1, 3)
            high = nearest(2)(np.moveaxis(pixels, 1, 3) if first else pixels)
            high = np.moveaxis(high, 3, 1) if first else high
            values = (high + high.dtype.type(world.wrong)).astype(out_type)
            taken[:] = np.ascontiguousarray(values).view("u1").reshape(-1)

        cuda.kernel(self.stream, [(source, size)], [(target, out_size)], run)
        if options.entries.get("disable_synchronize_execution_providers") != "1":
            cuda.stream_synchronize(self.stream)
        self._tell()

    def _grow(self, size: int) -> None:
        address, held = self.arena
        if held:
            self.world.cuda.free(address)
        self.arena = (self.world.cuda.malloc(size), size) if size else (0, 0)

    def _tell(self) -> None:
        """What the profile says of a run."""
        self.events += [
            {
                "cat": "Node",
                "name": f"{node.name}_kernel_time",
                "args": {
                    "op_name": node.op_type,
                    "provider": node.provider,
                    "output_type_shape": list(node.types[:1]),
                    "input_type_shape": list(node.types[1:]),
                },
            }
            for node in self.world.nodes
        ]

    def end_profiling(self) -> str:
        assert self.profile, "profiling is off"
        path = Path(f"{self.profile}_1.json")
        path.write_text(json.dumps([{"cat": "Session", "name": "model_loading"}, *self.events]))
        return str(path)


def plugin(name: str) -> Any:
    """The module of a plugin's wheel."""
    return SimpleNamespace(
        get_ep_name=lambda: name,
        get_library_path=lambda: f"/plugins/lib{name}.so",
        __version__="0.5.0",
    )
