"""A builder that embeds the graph in a plan of the fake TensorRT, which runs it: for refits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest

from pixelrt.bundle import BundledNetwork
from pixelrt.cli.build import command
from pixelrt.engines.build import BuildOptions, BuiltPlan, TensorRT
from pixelrt.engines.make import Request, make_plan
from pixelrt.engines.report import EngineReport
from pixelrt.manifest import GraphRole
from pixelrt.plans.store import ENGINES, write_plan
from pixelrt.runtime.backends.tensorrt import Machine, TensorRTBackend
from tests.runtime.fake_tensorrt import Net
from tests.runtime.plan_cases import TARGET


def build(
    network: BundledNetwork, role: GraphRole, options: BuildOptions, trt: TensorRT, target_db: float
) -> Path:
    """A plan of the network beside it, converted and described as a real one is."""
    request = Request(network, role, options, TARGET, target_db)
    graph = request.graph

    def embed(file: Path, *_: Any, **__: Any) -> BuiltPlan:
        net = Net(
            "",
            graph.inputs[0],
            graph.outputs[0],
            options.profiles,  # type: ignore[arg-type]
            static=options.static,
            more=(tuple(graph.inputs[1:]), tuple(graph.outputs[1:])),
            graph=onnx.load(file).SerializeToString(),
            refit=options.refit,
        )
        return BuiltPlan(net.plan(), b"", EngineReport(()), 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pixelrt.engines.make.build_plan", embed)
        facts, files, _ = make_plan(request, trt)
    path = network.root / ENGINES / "desk" / f"{network.component.name}-{facts.key[:8]}.plan"
    write_plan(path, facts, files)
    return path


def as_this_machine(patch: pytest.MonkeyPatch, machine: Machine) -> None:
    """The command finds ``machine``'s TensorRT and GPU."""
    patch.setattr("pixelrt.engines.build.load_tensorrt", machine.load)
    patch.setattr("pixelrt.engines.options.detect_target", lambda *_: TARGET)
    backend = partial(TensorRTBackend, machine=machine)
    patch.setattr("pixelrt.runtime.backends.tensorrt.TensorRTBackend", backend)


def run(new: Path, old: Path, *arguments: str) -> None:
    """``pixelrt build NEW --refit-from OLD``."""
    words = [str(new), "--refit-from", str(old), *arguments]
    command.main(words, prog_name="pixelrt build", standalone_mode=False)
