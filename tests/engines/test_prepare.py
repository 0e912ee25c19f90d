"""The whole build side: a bundle's graph rewritten, converted, checked, and built for real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pixelrt.bundle import Bundle, open_bundle
from pixelrt.engines.build import BuildOptions, BuiltPlan, TensorRT, build_plan
from pixelrt.engines.calibrate import measure_shapes
from pixelrt.engines.islands import DEFAULT_ISLANDS, island_nodes
from pixelrt.engines.passes.clean import clean
from pixelrt.engines.passes.fold_constants import fold_constants
from pixelrt.engines.passes.fp16 import normalised, to_low
from pixelrt.engines.passes.instance_norm import write_out_instance_norms
from pixelrt.engines.precision import Policy
from pixelrt.engines.prepare import prepare_graph
from pixelrt.engines.report import check_precision
from pixelrt.errors import FidelityError
from pixelrt.export.registry import get
from pixelrt.export.to_onnx import export_core
from pixelrt.manifest import Graph
from pixelrt.plans.profiles import Profile, Shape
from tests.engines.support import required_tensorrt
from tests.test_families import CASES

FAMILIES = (
    "swin2sr-pixelshuffle-x2",
    "swin2sr-nearest-x4",
    "swin2sr-jpeg",
    "pix2pix-chapter",
    "pix2pix-unet-256",
    "cyclegan-resnet-9",
    "srgan-x2",
)


@pytest.fixture(scope="session")
def trt() -> TensorRT:
    return required_tensorrt()


def grid(value: int, step: int) -> int:
    return max(step, value - value % step)


def build(file: Path, graph: Graph, profile: Profile, trt: TensorRT) -> BuiltPlan:
    options = BuildOptions((profile,), precision="float16")
    return build_plan(file, graph.inputs, options, trt=trt)


@pytest.mark.slow
@pytest.mark.parametrize("case", FAMILIES)
def test_every_family_becomes_a_float16_plan(
    case: str, make_bundle: Callable[..., Bundle], trt: TensorRT, tmp_path: Path
) -> None:
    """At least 60 dB and 90 % of multiply-adds in float16, dynamic and static, uint8 images."""
    bundle = make_bundle(*CASES[case])
    step = bundle.manifest.image.multiple
    small, large = Shape(1, step, step), Shape(2, grid(256, step), grid(256, step))
    best = Shape(1, grid(128, step), grid(128, step))
    graph = bundle.component.graph("image")
    file = tmp_path / "graph.onnx"
    converted = prepare_graph(bundle, graph, best, Policy(), file)
    assert converted is not None
    assert min(one.psnr for one in converted.fidelity) >= 60
    assert converted.fp16_share >= 0.9
    onnx.checker.check_model(str(file), full_check=True)
    for profile in (Profile.between(small, best, large), Profile.between(best, best, best)):
        built = build(file, graph, profile, trt)
        check_precision(built.report, "float16")
        assert built.report.share("float16") >= 0.9


@dataclass(frozen=True)
class Limit:
    """What TensorRT may make of a full-size network in float16 at a fixed size."""

    family: str
    side: int
    layers: int
    megabytes: float
    attentions: int = 0


LIMITS = (
    Limit("srgan", 128, 45, 196),
    Limit("cyclegan", 256, 75, 336),
    Limit("pix2pix", 256, 50, 42),
    Limit("swin2sr", 128, 400, 1181, attentions=24),
)


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.family)
def test_layers_and_traffic_of_full_size_networks(
    limit: Limit, trt: TensorRT, tmp_path: Path
) -> None:
    """The engine's launches and the bytes it writes stand in for time on a GPU."""
    network = get(limit.family).random(None, 0)
    graph = export_core(network, tmp_path)
    shape = Shape(1, limit.side, limit.side)
    model = ir.load(tmp_path / "core.onnx")
    ir.external_data.load_to_model(model)
    model = clean(fold_constants(model))
    blank = np.zeros((1, network.image.channels_in, limit.side, limit.side), np.float32)
    shapes = measure_shapes(model, {graph.inputs[0].name: blank})
    model = normalised(write_out_instance_norms(model, shapes))
    model = to_low(model, island_nodes(model.graph, DEFAULT_ISLANDS), dtype="float16", io="keep")
    ir.save(model, tmp_path / "low.onnx", external_data="low.data")
    report = build(tmp_path / "low.onnx", graph, Profile.between(shape, shape, shape), trt).report
    check_precision(report, "float16")
    assert len(report.layers) <= limit.layers, report.text()
    assert report.bytes_written is not None
    assert report.bytes_written < limit.megabytes * 1e6, report.text()
    assert report.fused_attentions == limit.attentions


def test_a_wrong_rewrite_is_not_built(srgan_bundle: Bundle, tmp_path: Path) -> None:
    """Weights that a pass would have spoilt are found by the reference outputs."""
    import shutil

    root = tmp_path / "spoilt.pixelrt"
    shutil.copytree(srgan_bundle.root, root)
    weights = root / "graphs/weights.bin"
    data = bytearray(weights.read_bytes())
    data[1000:1400] = bytes(400)
    weights.write_bytes(data)
    bundle = open_bundle(root, check_files=False)
    for role in ("core", "image"):
        graph = bundle.component.graph(role)  # type: ignore[arg-type]
        with pytest.raises(FidelityError, match=r"graph of .* rewritten for TensorRT is wrong"):
            prepare_graph(bundle, graph, Shape(1, 64, 64), None, tmp_path / "graph.onnx")
    assert not (tmp_path / "graph.onnx").exists()
