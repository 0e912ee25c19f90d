"""Weights in half precision: what is stored, how it computes, and what lets go of memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from pixelrt.engines.bfloat16 import to_bfloat16
from pixelrt.engines.passes.fold_constants import fold_constants
from pixelrt.errors import ExportError
from pixelrt.export import part as module
from pixelrt.export.assemble import Plan, assemble
from pixelrt.export.part import Axis, Part, noise
from pixelrt.export.weights import Weights, round_weights
from pixelrt.manifest import Source
from pixelrt.pipeline_bundle import PipelineBundle, open_pipeline
from pixelrt.pipeline_settings import StyleGan2Settings
from pixelrt.runtime.backends.onnxruntime import OnnxRuntimeCpu
from pixelrt.runtime.backends.select import BACKENDS, FRUGAL_BACKENDS, Choice, open_session
from pixelrt.runtime.networks import Networks
from tests.exports import traced

KINDS = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
KINDS["bfloat16"] = ir.DataType.BFLOAT16
SETTINGS = StyleGan2Settings(
    z_dim=1, w_dim=1, num_ws=1, label_dim=0, resolution=4, sampled=False, config={}
)


class Net(nn.Module):
    """A convolution, two layers, a table that no half precision holds, and a sine."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.layer = nn.Linear(24, 96)
        self.last = nn.Linear(96, 3)
        self.register_buffer("table", torch.linspace(0, 1, 96) / 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x)).movedim(1, -1)
        y = torch.relu(self.layer(y) + self.table)
        made: Tensor = self.last(y).movedim(-1, 1)
        return made + torch.sin(x[:, :1] * 100)


class Looking(Net):
    """Looks at its sides in a way that only the strict mode of ``torch.export`` traces (2.13)."""

    def forward(self, x: Tensor) -> Tensor:
        half = x[:, :, ::2, ::2]
        scale = max(a / b for a, b in zip(x.shape[2:], half.shape[2:], strict=True))
        return super().forward(x.contiguous() if x.numel() * scale > 2**31 else x)


def part(net: nn.Module) -> Part:
    axes = {0: Axis("B"), 2: Axis("h"), 3: Axis("w")}
    samples = [(noise((2, 3, height, 8), 1),) for height in (5, 12)]
    return Part("net", net.eval().requires_grad_(False), {"x": axes}, {"y": axes}, samples)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PipelineBundle]:
    folder = tmp_path_factory.mktemp("weights")

    def write(weights: Weights) -> PipelineBundle:
        def parts() -> Iterator[Part]:
            yield part(Net())

        source = Source("random", "seed 0", seed=0)
        plan = Plan("test", "net", source, SETTINGS, {}, parts, weights=weights)
        plan = replace(plan, to_bfloat16=to_bfloat16)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PIXELRT_CACHE", str(folder / "cache"))
            path = folder / f"{weights}.pixelrt"
            assemble(plan, path, overwrite=False, report=lambda name: None)
        return open_pipeline(path)

    return {name: write(name) for name in ("float32", "float16", "bfloat16")}  # type: ignore[arg-type]


def graph_of(bundle: PipelineBundle) -> ir.Model:
    return ir.load(bundle.root / "graphs" / "net.onnx")


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_weights_are_stored_in_half_and_the_table_is_not(
    made: dict[str, PipelineBundle], name: str
) -> None:
    tensors = {
        key: value.const_value for key, value in graph_of(made[name]).graph.initializers.items()
    }
    large = {key: one for key, one in tensors.items() if one is not None and one.nbytes > 200}
    kinds = {key: one.dtype for key, one in large.items()}
    assert sum(kind == KINDS[name] for kind in kinds.values()) >= 3, kinds
    floats = [key for key, kind in kinds.items() if kind == ir.DataType.FLOAT]
    assert len(floats) == 1, kinds  # the table
    sizes = [made[one].manifest.files["graphs/net.bin"].bytes for one in ("float32", name)]
    assert sizes[1] < 0.6 * sizes[0]
    net = Net()
    round_weights(net, name, "net")  # type: ignore[arg-type]
    stored = next(one for key, one in large.items() if "first.weight" in key)
    assert np.array_equal(stored.numpy().astype(np.float32), net.first.weight.detach().numpy())


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "frugal", "openvino"])
def test_backends_reproduce_pytorch_with_the_stored_weights(
    made: dict[str, PipelineBundle], name: str, backend: str
) -> None:
    """In float32: what is left are sums in another order, far less than the rounding itself."""
    network = made[name].network("net")
    if backend == "frugal":
        opened = open_session(network, "network", None, (OnnxRuntimeCpu(frugal=True),))
    else:
        known = next((one for one in BACKENDS if one.name == backend), None)
        if known is None or known.missing():
            pytest.skip(f"no {backend} here")
        opened = open_session(network, "network", Choice(backend, "float32"))
    with opened.session as session:
        for _, feeds, expected in network.samples():
            found = session.infer(feeds)["y"]
            np.testing.assert_allclose(found, expected["y"], atol=2e-5)
    other = made["float32"].network("net")
    gap = max(
        float(np.abs(a[2]["y"] - b[2]["y"]).max())
        for a, b in zip(network.samples(), other.samples(), strict=True)
    )
    assert gap > 1e-4


def test_the_form_in_bfloat16_reads_the_same_weights(made: dict[str, PipelineBundle]) -> None:
    bundle = made["bfloat16"]
    component = bundle.network("net").component
    ((plain,), (variant,)) = component.graphs, component.variants
    (graph,) = variant.graphs
    assert set(plain.data) <= set(graph.data)
    files = bundle.manifest.files
    assert sum(files[one].bytes for one in graph.data if one not in plain.data) < 1000
    assert (graph.inputs, graph.outputs, graph.opset) == (plain.inputs, plain.outputs, 22)
    nodes = {node.op_type: node for node in ir.load(bundle.root / graph.file).graph}
    assert nodes["Conv"].outputs[0].dtype == ir.DataType.BFLOAT16
    assert nodes["Sin"].outputs[0].dtype == ir.DataType.FLOAT  # of what may be large
    assert all(not made[one].network("net").component.variants for one in ("float32", "float16"))


def test_openvino_computes_in_bfloat16_on_it(made: dict[str, PipelineBundle]) -> None:
    backend = next(one for one in BACKENDS if one.name == "openvino")
    network = made["bfloat16"].network("net")
    if backend.missing():
        pytest.skip("no openvino here")
    offers = {one.info.precision: one for one in backend.offers(network, "network")}
    if "bfloat16" not in offers:
        pytest.skip("this processor does not multiply in bfloat16")
    source = offers["bfloat16"].open.args[0]  # type: ignore[attr-defined]
    assert Path(source.graph.file).name == "openvino-bfloat16-net.onnx"
    with open_session(network, "network", Choice("openvino", "bfloat16")).session as session:
        for _, feeds, expected in network.samples():
            gap = np.abs(session.infer(feeds)["y"] - expected["y"]).max()
            assert 1e-5 < gap < 0.02 * np.abs(expected["y"]).max()


def test_low_memory_takes_the_frugal_kernels(made: dict[str, PipelineBundle]) -> None:
    """Which leave weights as they are stored until they are needed."""
    levels = {}
    for low in (False, True):
        with Networks(made["float16"], Choice("onnxruntime-cpu"), low_memory=low) as networks:
            session: Any = networks.session("net")
            options = session._session.get_session_options()
            levels[low] = options.graph_optimization_level
    assert levels[True] == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert levels[False] == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert [one.name for one in FRUGAL_BACKENDS] == [one.name for one in BACKENDS]


def test_tensorrt_is_given_float32_again(made: dict[str, PipelineBundle]) -> None:
    """Also of weights that are too large for other constants to be folded."""
    model = fold_constants(graph_of(made["float16"]), max_result=8)
    kinds = [v.dtype for v in model.graph.initializers.values()]
    assert ir.DataType.FLOAT16 not in kinds
    assert not [node for node in model.graph if node.op_type == "Cast"]


def test_auto_takes_half_precision_where_it_loses_nothing() -> None:
    net = Net()
    assert round_weights(net, "auto", "net") == torch.float32
    for kind, size in ((torch.float16, 1.0), (torch.bfloat16, 2.0**-30)):
        net = Net()
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(size)
        net.to(kind).float()
        before = net.first.weight.clone()
        assert round_weights(net, "auto", "net") == kind
        assert torch.equal(net.first.weight, before)


def test_weights_that_do_not_fit_are_named() -> None:
    net = Net()
    with torch.no_grad():
        net.last.bias[1] = 1e5
    with pytest.raises(ExportError, match="do not fit into float16") as found:
        round_weights(net, "float16", "net")
    assert "last.bias reaches 1e+05" in str(found.value)
    assert round_weights(net, "bfloat16", "net") == torch.bfloat16


@pytest.mark.parametrize(("net", "modes"), [(Net, [False]), (Looking, [False, True])])
def test_the_weights_are_let_go_before_the_graph_is_checked(
    net: type[nn.Module], modes: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies of SDXL's UNet would not fit into 24 GB."""
    alive: list[int] = []
    check = module._check
    strict = traced(monkeypatch)

    def look(*arguments: Any) -> Any:
        found = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
        # The exporter turns small matrices round and keeps what they were; this is another one.
        kernels = [o for o in found if o.shape == (24, 3, 3, 3) and o.device.type == "cpu"]
        alive.append(len(kernels))
        return check(*arguments)

    monkeypatch.setattr(module, "_check", look)
    for folder in ("graphs", "reference"):
        (tmp_path / folder).mkdir()
    module.export_part(part(net()), tmp_path / "graphs", tmp_path / "reference")
    assert alive == [0]
    assert strict == modes
