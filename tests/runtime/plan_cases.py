"""Plans of the fake TensorRT, as ``pixelrt build`` would leave them, and machines to run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pixelrt.bundle import Bundle, encode_reference
from pixelrt.manifest import FileEntry, GraphRole
from pixelrt.plans.facts import (
    FORMAT,
    PlanFacts,
    PlanGraph,
    PlanPrecision,
    PlanSample,
    PlanTarget,
)
from pixelrt.plans.profiles import parse_profile
from pixelrt.plans.store import StoredPlan, plan_at, write_plan
from pixelrt.plans.target import Capability, Flavour, Target
from pixelrt.runtime.backends.base import BackendInfo
from pixelrt.runtime.backends.tensorrt import Machine, TensorRTBackend
from pixelrt.runtime.backends.trt_engine import TensorRTEngine
from pixelrt.runtime.backends.trt_loading import load_plan
from pixelrt.runtime.device.session import DeviceSession
from pixelrt.spec import TensorSpec
from tests.bundles import nearest
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_tensorrt import WEIGHTS, Array, FakeTensorRT, Net, digest

GPU = "NVIDIA Fake 100"
VERSION = "11.4.0"
INFO = BackendInfo("tensorrt", VERSION, GPU, "float16", "0123456789ab")


TARGET = Target("tensorrt", VERSION, (Capability(9, 0),), GPU, "13.0", "linux-x86_64")


def blurred(images: Array) -> Array:
    """A network of halo 1 on uint8 (N, H, W, C), x2: different at every place of a tile that is
    cut wrongly."""
    padded = np.pad(images.astype(np.uint16), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    total = sum(padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3))
    return nearest(2)((total // 9).astype(np.uint8))


def core(values: Array) -> Array:
    """``nearest(2)`` on float32 (N, C, H, W)."""
    return np.ascontiguousarray(nearest(2)(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))


FUNCTIONS = {"blurred": blurred, "image": nearest(2), "core": core}


def image_net(function: str, *profiles: str, **more: Any) -> Net:
    return Net(
        function,
        TensorSpec("image", "uint8", ("N", "H", "W", 3)),
        TensorSpec("result", "uint8", ("N", "2*H", "2*W", 3)),
        tuple(map(parse_profile, profiles)),
        **more,
    )


def core_net(function: str, *profiles: str, **more: Any) -> Net:
    return Net(
        function,
        TensorSpec("pixels", "float32", ("N", 3, "H", "W")),
        TensorSpec("output", "float32", ("N", 3, "2*H", "2*W")),
        tuple(map(parse_profile, profiles)),
        **more,
    )


def facts_of(net: Net, files: Mapping[str, bytes], **changes: Any) -> PlanFacts:
    facts = PlanFacts(
        format=FORMAT,
        plan="net.plan",
        key="0" * 64,
        target=PlanTarget("tensorrt", VERSION, ["sm90"], GPU, "13.0", "linux-x86_64"),
        graph=PlanGraph("image", "0" * 64, [], [net.source], [net.result]),
        profiles=[str(profile) for profile in net.profiles],
        precision="float16",
        target_db=60.0,
        options={"strip_plan": net.stripped},
        conversion={},
        bundle="0" * 64,
        samples=[],
        seconds=1.0,
        warnings=[],
        report={},
        made_by={},
        files={name: FileEntry(digest(data), len(data)) for name, data in files.items()},
    )
    return msgspec.structs.replace(facts, **changes)


def stored(net: Net, **changes: Any) -> StoredPlan:
    """A plan that lies nowhere."""
    files = {"net.plan": net.plan(), **changes.pop("beside", {})}
    facts = facts_of(net, files, **changes)
    return StoredPlan(facts, "memory", lambda: {n: memoryview(d) for n, d in files.items()})


def engine_of(world: FakeTensorRT, net: Net, **changes: Any) -> TensorRTEngine:
    return load_plan(world.trt, world.cuda, stored(net, **changes), INFO)


def session_of(
    cuda: FakeCuda, net: Net, *, graphs: bool = True, **world: Any
) -> tuple[DeviceSession, FakeTensorRT]:
    made = FakeTensorRT(cuda, FUNCTIONS, **world)
    return DeviceSession(cuda, engine_of(made, net), graphs=graphs), made


def machine_of(world: Callable[[], FakeTensorRT], here: Target = TARGET) -> Machine:
    """A machine with the GPU and the TensorRT of ``world``, which a test may change later."""

    def target(flavour: Flavour, version: str) -> Target:
        return replace(here, flavour=flavour, version=version)

    return Machine(
        installed=lambda flavour: flavour == here.flavour,
        load=lambda flavour: world().trt,
        cuda=lambda: world().cuda,
        target=target,
    )


@dataclass
class Desk:
    """A machine with a fake GPU, and plans of a bundle in it."""

    bundle: Bundle
    cuda: FakeCuda = field(default_factory=FakeCuda)
    functions: Mapping[str, Any] = field(default_factory=lambda: dict(FUNCTIONS))
    here: Target = TARGET

    def __post_init__(self) -> None:
        self.world = FakeTensorRT(self.cuda, self.functions)

    @property
    def machine(self) -> Machine:
        return machine_of(lambda: self.world, self.here)

    def backend(self, plan: StoredPlan | None = None, **more: Any) -> TensorRTBackend:
        return TensorRTBackend(self.here.flavour, plan=plan, machine=self.machine, **more)

    def build(
        self,
        net: Net,
        role: GraphRole = "image",
        *,
        name: str = "net",
        precision: PlanPrecision = "float16",
        sample: int = 24,
        **changes: Any,
    ) -> Path:
        """Write a plan of ``net`` into the bundle, with a sample of that side."""
        bundle, graph = self.bundle, self.bundle.component.graph(role)
        files = {f"{name}.plan": net.plan(), "sample.npz": sample_file(sample)}
        options: dict[str, Any] = {"strip_plan": net.stripped}
        if net.stripped:
            files |= {"graph.onnx": b"onnx external graph.bin", "graph.bin": WEIGHTS}
        digests = bundle.manifest.files
        facts = facts_of(
            net,
            files,
            plan=f"{name}.plan",
            graph=PlanGraph(
                role,
                digests[graph.file].sha256,
                [digests[one].sha256 for one in graph.data],
                list(graph.inputs),
                list(graph.outputs),
            ),
            bundle=bundle.sha256,
            precision=precision,
            options=options,
            samples=[PlanSample("photo-plan", "sample.npz", sample, sample)],
        )
        facts = msgspec.structs.replace(facts, **changes)
        path = bundle.root / "engines" / f"desk-{name}" / f"{name}.plan"
        write_plan(path, facts, files)
        return path

    def plan(self, path: Path) -> StoredPlan:
        return plan_at(path)


def sample_file(side: int) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 256, (1, side, side, 3), np.uint8)
    high = nearest(2)(pixels.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)
    return encode_reference(pixels, np.ascontiguousarray(high))
