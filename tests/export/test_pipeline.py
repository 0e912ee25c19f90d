"""Export as a whole: what it writes, when it refuses, how it resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from pixelrt.bundle import Bundle, open_bundle
from pixelrt.errors import (
    CheckpointError,
    ExportError,
    OutputError,
    UnknownNetworkError,
    UsageError,
)
from pixelrt.export import memory, pipeline, registry, to_onnx
from pixelrt.export.checkpoint import Checkpoint
from pixelrt.export.pipeline import export_bundle
from pixelrt.export.registry import RECIPES
from tests.conftest import SMALL_SRGAN


def small(path: Path, **options: Any) -> Path:
    return export_bundle(
        None, path, **{"family": "srgan", "config": SMALL_SRGAN, "random_seed": 0, **options}
    )


def test_weights_are_stored_once(srgan_bundle: Bundle) -> None:
    root = srgan_bundle.root
    names = sorted(p.name for p in (root / "graphs").iterdir())
    assert names == ["core.onnx", "image.onnx", "weights.bin"]
    for graph in ("core", "image"):
        model = onnx.load(root / f"graphs/{graph}.onnx", load_external_data=False)
        assert model.opset_import[0].version >= 18
        inline = sum(len(t.raw_data) for t in model.graph.initializer)
        assert inline < 4096
        onnx.checker.check_model(str(root / f"graphs/{graph}.onnx"), full_check=True)


TINY_SWIN = {"embed_dim": 12, "depths": [2], "num_heads": [2]}


def test_variants_are_exported_beside_the_plain_graphs(make_bundle: Any) -> None:
    bundle = make_bundle("swin2sr", TINY_SWIN)
    files = bundle.manifest.files
    for role in ("core", "image"):
        plain, variant = (bundle.component.graph(role, b) for b in ("", "openvino"))
        assert variant.file == f"graphs/openvino-{role}.onnx"
        assert variant.data == ["graphs/openvino-weights.bin", "graphs/weights.bin"]
        assert (variant.inputs, variant.outputs) == (plain.inputs, plain.outputs)
        onnx.checker.check_model(str(bundle.path(variant.file)), full_check=True)
    own, shared = (files[f"graphs/{name}weights.bin"].bytes for name in ("openvino-", ""))
    assert own < shared / 4


def test_variants_give_what_the_plain_graph_gives(make_bundle: Any) -> None:
    bundle = make_bundle("swin2sr", TINY_SWIN)
    x = np.random.default_rng(0).random((2, 3, 24, 40), np.float32)
    plain, variant = (
        ort.InferenceSession(
            str(bundle.path(bundle.component.graph("core", b).file)),
            providers=["CPUExecutionProvider"],
        ).run(None, {"pixels": x})[0]
        for b in ("", "openvino")
    )
    assert np.abs(plain - variant).max() <= 1e-5


def test_a_wrong_variant_writes_no_bundle(tmp_path: Path, monkeypatch: Any) -> None:
    network = registry.get("swin2sr").random(TINY_SWIN, 0)
    network.variants["openvino"].get_submodule("head.last").get_buffer("bias").add_(0.01)
    recipe = registry.get("swin2sr")
    wrong = dataclasses.replace(recipe, random=lambda config, seed: network)
    monkeypatch.setattr(registry, "get", lambda name: wrong)
    with pytest.raises(ExportError, match=r"graphs/openvino-core\.onnx does not reproduce"):
        small(tmp_path / "b.pixelrt", family="swin2sr", config=TINY_SWIN)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_the_machine_is_in_a_bundle(srgan_bundle: Bundle) -> None:
    here = [str(Path(torch.__file__).parent), str(Path.home()), str(Path(__file__).parents[2])]
    for path in srgan_bundle.root.rglob("*"):
        if path.is_file() and path.suffix in (".onnx", ".json"):
            content = path.read_bytes()
            assert not any(place.encode() in content for place in here), path


def test_samples_are_three_sizes_of_photo_and_noise(srgan_bundle: Bundle) -> None:
    samples = srgan_bundle.manifest.references
    assert {s.kind for s in samples} == {"photo", "noise"}
    assert len({(s.height, s.width) for s in samples}) == 3
    measured = {m.sample: m for m in srgan_bundle.manifest.fidelity}
    assert set(measured) == {s.name for s in samples}
    assert all(m.max_abs <= 1e-5 for m in measured.values())


def test_references_are_what_pytorch_gives(srgan_bundle: Bundle) -> None:
    network = registry.get("srgan").random(SMALL_SRGAN, 0)
    for sample in srgan_bundle.manifest.references:
        pixels, expected = srgan_bundle.reference(sample)
        values = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
        with torch.inference_mode():
            actual = network.reference(values).numpy()
        np.testing.assert_allclose(actual, expected, atol=1e-6)


class Wrong(nn.Module):
    def __init__(self, right: nn.Module) -> None:
        super().__init__()
        self.right = right

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.right(x) * 1.001
        return y


def test_a_wrong_graph_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = registry.get("srgan")

    def wrong(config: Any, seed: int) -> Any:
        network = recipe.random(config, seed)
        return dataclasses.replace(network, graph=Wrong(network.graph))

    changed = dataclasses.replace(recipe, random=wrong)
    monkeypatch.setattr(registry, "RECIPES", (changed,))
    with pytest.raises(ExportError) as caught:
        small(tmp_path / "a.pixelrt")
    words = str(caught.value)
    assert "does not reproduce PyTorch" in words
    assert "on sample" in words
    assert "%" in words
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(memory, "measure_memory", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path / "a.pixelrt")
    assert list(tmp_path.iterdir()) == []

    def never(*_: Any) -> Any:
        raise AssertionError("a finished stage was done again")

    monkeypatch.setattr(to_onnx, "export_core", never)
    monkeypatch.setattr(pipeline, "reference_output", never)
    small(tmp_path / "a.pixelrt")
    open_bundle(tmp_path / "a.pixelrt")


def test_existing_bundles_are_kept(tmp_path: Path) -> None:
    old = tmp_path / "a.pixelrt"
    old.mkdir()
    with pytest.raises(OutputError, match="exists"):
        small(old)
    with pytest.raises(UsageError, match="no name"):
        small(tmp_path / "a.onnx")


def test_sources_that_do_not_fit_together(tmp_path: Path) -> None:
    target = tmp_path / "a.pixelrt"
    with pytest.raises(UsageError, match="nothing to export"):
        export_bundle(None, target)
    with pytest.raises(UsageError, match="what to build"):
        export_bundle(None, target, random_seed=0)
    with pytest.raises(UsageError, match="takes no checkpoint"):
        export_bundle("x.pth", target, random_seed=0, family="srgan")
    with pytest.raises(UsageError, match="esrgan"):
        export_bundle(None, target, random_seed=0, family="esrgan")
    with pytest.raises(CheckpointError):
        export_bundle(tmp_path / "none.pth", target)


def test_a_checkpoint_file_becomes_a_bundle(tmp_path: Path) -> None:
    network = registry.get("srgan").random(SMALL_SRGAN, 3)
    state = {f"net.{k}": v for k, v in network.reference.net.state_dict().items()}  # type: ignore[union-attr]
    torch.save({"epoch": 3, "generator": state}, tmp_path / "gan.pth.tar")
    export_bundle(tmp_path / "gan.pth.tar", tmp_path / "gan.pixelrt")
    manifest = open_bundle(tmp_path / "gan.pixelrt").manifest
    assert (manifest.family, manifest.variant) == ("srgan", "generator")
    assert manifest.config == network.config
    assert manifest.source.name == "gan.pth.tar"
    assert len(manifest.source.sha256) == 64


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_recipes_state_what_they_are(recipe: Any) -> None:
    assert recipe.summary
    assert recipe.variants
    network = recipe.random(None, 0)
    json.dumps(network.config)
    assert not network.reference.training
    assert not network.graph.training


def checkpoint(**groups: dict[str, torch.Tensor]) -> Checkpoint:
    return Checkpoint("x.pth", "0" * 64, groups, None)


def test_unknown_weights_name_the_nearest_family() -> None:
    tensors = {"net.conv_block1.conv_block.0.weight": torch.zeros(1), "other": torch.zeros(1)}
    with pytest.raises(UnknownNetworkError) as caught:
        registry.detect(checkpoint(model=tensors))
    words = str(caught.value)
    assert "nearest is srgan" in words
    assert "net.conv_block1.conv_block.0.weight" in words
    for recipe in RECIPES:
        assert f"{recipe.name}/" in words


def test_nothing_near_at_all() -> None:
    with pytest.raises(UnknownNetworkError, match="no family recognises"):
        registry.detect(checkpoint(a={"x": torch.zeros(1)}))


def test_averaged_weights_are_preferred() -> None:
    network = registry.get("srgan").random(SMALL_SRGAN, 0)
    state = dict(network.reference.net.state_dict())  # type: ignore[union-attr]
    assert registry.detect(checkpoint(params=state, params_ema=state)).group == "params_ema"
