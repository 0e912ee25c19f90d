"""Plans of the networks of diffusion pipelines, over TensorRT's real builder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pixelrt.cli.build import command
from pixelrt.cli.inspect import describe_pipeline
from pixelrt.engines.build import BuildOptions, TensorRT, build_plan
from pixelrt.engines.calibrate import Runner, measure_shapes
from pixelrt.engines.islands import DEFAULT_ISLANDS, island_nodes
from pixelrt.engines.passes.clean import clean
from pixelrt.engines.passes.emulate import emulate
from pixelrt.engines.passes.fold_constants import fold_constants
from pixelrt.engines.passes.fp16 import normalised, to_low
from pixelrt.engines.passes.instance_norm import write_out_instance_norms
from pixelrt.engines.precision import Policy, convert
from pixelrt.engines.prepare import load_graph
from pixelrt.engines.report import check_precision
from pixelrt.errors import PixelrtError, UsageError
from pixelrt.fidelity import compare_relative
from pixelrt.pipeline_bundle import PipelineBundle, PipelineNetwork, open_pipeline
from pixelrt.plans.axis_profiles import parse_axes
from pixelrt.plans.facts import PlanFacts
from pixelrt.plans.store import find_plans
from tests.diffusion.conftest import Exported
from tests.engines.support import required_tensorrt

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def rtx() -> TensorRT:
    """TensorRT for RTX builds without a GPU."""
    return required_tensorrt("tensorrt-rtx")


def build(bundle: Path, *arguments: Any) -> None:
    words = [str(bundle), "--backend", "tensorrt-rtx", *map(str, arguments)]
    command.main(words, prog_name="pixelrt build", standalone_mode=False)


def built(bundle: PipelineBundle, name: str) -> PlanFacts:
    network = bundle.network(name)
    plans = find_plans(network, network.component.graph("network")).plans
    assert len({plan.facts.key for plan in plans}) == 1, "in the bundle and in the cache"
    return plans[0].facts


@pytest.fixture(scope="module")
def copy(sd: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with plans of all its networks; its cache is its own, so that it is asked for
    once for all tests."""
    root = tmp_path_factory.mktemp("plans") / "small.pixelrt"
    shutil.copytree(sd.bundle, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXELRT_CACHE", str(root.parent / "cache"))
        build(root, "-q")
    return root


ATTENTIONS = {"text_encoder": 3, "unet": 8, "vae_encoder": 1, "vae_decoder": 1}
PROFILES = {
    "text_encoder": "B=1,2,8",
    "unet": "B=1,2,8 h=3,16,24 w=3,16,24 T=77,77,231",
    "vae_encoder": "B=1,1,2 h=3,16,24 w=3,16,24",
    "vae_decoder": "B=1,1,2 h=3,16,24 w=3,16,24",
}


def test_every_network_becomes_a_float16_plan(copy: Path) -> None:
    """All products in float16, all attentions fused; found where a run looks for them."""
    bundle = open_pipeline(copy)
    assert set(bundle.names()) == set(ATTENTIONS)
    for name, attentions in ATTENTIONS.items():
        facts = built(bundle, name)
        assert (facts.graph.role, facts.graph.network) == ("network", name)
        assert facts.profiles == [PROFILES[name]]
        # what is of constants alone is in no layer
        assert set(facts.report["multiply_adds"]) - {"unplaced"} == {"float16"}
        assert facts.report["fused_attentions"] == attentions
        assert facts.target_db == bundle.network(name).network.low_psnr
        assert facts.conversion["worst_db"] >= 60
        text = describe_pipeline(bundle)
        assert f"float16 {name}, tensorrt-rtx" in text


def test_plans_bring_samples_of_their_size(copy: Path) -> None:
    """At the optimum, answered by the float32 graph."""
    bundle = open_pipeline(copy)
    network = bundle.network("unet")
    (plan,) = find_plans(network, network.component.graph("network")).plans
    (sample,) = plan.facts.samples
    assert sample.name == "unet at B=2 h=16 w=16 T=77"
    path = copy.parent / "sample.npz"
    path.write_bytes(plan.read()[sample.file])
    with np.load(path) as arrays:
        shapes = {name: arrays[name].shape for name in arrays.files}
        feed = {n.removeprefix("in."): arrays[n] for n in arrays.files if n.startswith("in.")}
        wanted = arrays["out.noise"]
    assert shapes["in.latents"] == shapes["out.noise"] == (2, 4, 16, 16)
    assert shapes["in.text"] == (2, 77, 32)
    run = Runner(load_graph(network, network.component.graph("network")), ["noise"])
    np.testing.assert_array_equal(run(feed)["noise"], wanted)


def test_plans_of_another_network_are_no_fault(copy: Path) -> None:
    bundle = open_pipeline(copy)
    network = bundle.network("vae_encoder")
    found = find_plans(network, network.component.graph("network"))
    assert (len(found.plans), found.problems) == (1, ())


def test_sdxl(sdxl: Exported, tmp_path: Path) -> None:
    """The UNet with added conditioning and the second text encoder, at shapes of the user's."""
    names = ["--network", "unet", "--network", "text_encoder_2"]
    axes = ["--axis", "B=2", "--axis", "T=77", "--shapes", "64x64,128x128,128x192"]
    root = tmp_path / "xl.pixelrt"
    shutil.copytree(sdxl.bundle, root)
    build(root, "-q", *names, *axes)
    bundle = open_pipeline(root)
    unet, text = built(bundle, "unet"), built(bundle, "text_encoder_2")
    assert unet.profiles == ["B=2 h=8,16,16 w=8,16,24 T=77"]
    assert text.profiles == ["B=2"]
    assert [tensor.name for tensor in unet.graph.inputs][3:] == ["pooled", "time_ids"]
    assert [tensor.name for tensor in text.graph.outputs] == ["hidden", "pooled"]
    assert unet.report["fused_attentions"] == 8
    assert set(unet.report["multiply_adds"]) - {"unplaced"} == {"float16"}
    kept = {op: reason for _, op, reason in unet.conversion["kept"]}
    assert "radian" in kept["Sin"]
    with pytest.raises(IndexError):
        _ = find_plans(
            bundle.network("text_encoder"), bundle.network("text_encoder").component.graphs[0]
        ).plans[0]


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["--network", "prior"], PixelrtError, "text_encoder, unet, vae_encoder, vae_decoder"),
        (["--axis", "q=8"], UsageError, "no network has an axis q"),
        (["--network", "unet", "--axis", "h=2"], UsageError, "at least 3"),
        (["--shapes", "60x60"], UsageError, "60 in steps of 8"),
        (["--shapes", "2x64x64"], UsageError, "--axis B=2 sets it"),
        (["--axis", "B=2", "--axis", "B=3"], UsageError, "given twice"),
        (["--graph", "core"], UsageError, "leave --graph out"),
        (["-o", "x.plan"], UsageError, "cannot hold several plans"),
        (["--json", "x.json"], UsageError, "--json writes one report"),
    ],
)
def test_mistakes(
    arguments: list[str],
    kind: type[PixelrtError],
    said: str,
    sd: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as caught:
        build(sd.bundle, *arguments)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- a VAE whose activations are beyond float16 --------------------------------------------


def planted(network: PipelineNetwork) -> ir.Model:
    """The decoder with the stream that its blocks add to at 1e6 from its first convolution on.

    Group norms divide by it, in every block and before the picture; SDXL's VAE is such a one.
    """
    model = load_graph(network, network.component.graph("network"))
    model = clean(fold_constants(model))
    for name in ("decoder.conv_in.weight", "decoder.conv_in.bias"):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1e6), name=name)
    return model


def decoded(model: ir.Model, latents: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(Runner(model, ["pixels"])({"latents": latents})["pixels"])


def test_a_vae_beyond_float16_comes_out_right(sd: Exported, tmp_path: Path) -> None:
    """Islands around what overflows, float16 elsewhere; without calibration it is no picture."""
    network = open_pipeline(sd.bundle).network("vae_decoder")
    feeds = [{**inputs} for _, inputs, _ in network.samples()]
    model = planted(network)
    model = normalised(write_out_instance_norms(model, measure_shapes(model, feeds[0])))
    latents = np.random.default_rng(5).normal(0, 2, (1, 4, 13, 9)).astype(np.float32)
    wanted = decoded(model, latents)
    assert wanted.std() > 0.05

    known = to_low(model, island_nodes(model.graph, DEFAULT_ISLANDS))
    assert compare_relative(wanted, decoded(emulate(known), latents)).non_finite == wanted.size

    converted = convert(model, feeds, Policy(target_db=network.network.low_psnr, relative=True))
    result = compare_relative(wanted, decoded(emulate(converted.model), latents))
    assert result.psnr >= 60
    assert 0.5 < converted.fp16_share < 1.0
    reasons = {kept.op for kept in converted.kept if kept.reason.startswith("range: ")}
    assert {"Conv", "Add"} <= reasons

    file = tmp_path / "planted.onnx"
    ir.save(converted.model, file, external_data="planted.data")
    profile = parse_axes("B=1 h=16 w=16")
    options = BuildOptions((profile,), precision="float16")
    inputs = network.component.graph("network").inputs
    report = build_plan(file, inputs, options, trt=required_tensorrt()).report
    check_precision(report, "float16", least_share=0.5)
    assert report.share("float32") > 0.05
