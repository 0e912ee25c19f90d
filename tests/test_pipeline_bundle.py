"""Bundles of several networks: what is refused, and with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixelrt.bundle_files import MANIFEST
from pixelrt.errors import BundleError, FidelityError
from pixelrt.export.assemble import Plan, assemble
from pixelrt.export.part import Axis, Part
from pixelrt.manifest import Source
from pixelrt.pipeline_bundle import is_pipeline, open_pipeline
from pixelrt.pipeline_settings import StyleGan2Settings
from pixelrt.runtime.backends.fake import FakeBackend
from pixelrt.runtime.networks import Networks
from tests.segments import small

SEGMENTS = msgspec.to_builtins(small.segments())


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def settings() -> StyleGan2Settings:
    return StyleGan2Settings(
        z_dim=3, w_dim=3, num_ws=2, label_dim=0, resolution=8, sampled=False, config={}
    )


def parts() -> list[Part]:
    rows = {0: Axis("N")}
    values = [(torch.arange(6.0).reshape(2, 3),), (torch.ones(4, 3),)]
    return [Part(name, Twice(), {"x": rows}, {"y": rows}, values) for name in ("one", "two")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = Plan(
        "twice",
        "small",
        Source("random", "seed 0", seed=0),
        settings(),
        {"note.txt": b"hello"},
        lambda: iter(parts()),
    )
    path = tmp_path_factory.mktemp("pipeline") / "a.pixelrt"
    return assemble(plan, path, overwrite=False, report=lambda name: None)


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "a.pixelrt"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_round_trip(path: Path) -> None:
    bundle = open_pipeline(path)
    assert is_pipeline(path)
    assert bundle.names() == ("one", "two")
    assert bundle.asset("note.txt") == b"hello"
    assert bundle.settings(StyleGan2Settings) == settings()
    network = bundle.network("two")
    assert [str(spec) for spec in network.component.graphs[0].inputs] == ["x float32 (N, 3)"]
    for _, inputs, outputs in network.samples():
        assert np.array_equal(outputs["y"], inputs["x"] * 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format=1), "format 1"),
        (lambda m: m.update(networks=[]), "networks must be there"),
        (lambda m: m["networks"].append(m["networks"][0]), "a name of its own"),
        (lambda m: m["networks"][0].update(samples=[]), "no sample"),
        (lambda m: m["networks"][0]["component"].update(graphs=[]), "not one graph"),
        (lambda m: m["files"].pop("graphs/one.onnx"), "used but not listed"),
        (lambda m: m["files"].update({"../x": m["files"]["assets/note.txt"]}), "may not be"),
        (lambda m: m["networks"][0].pop("low_psnr"), "low_psnr"),
        (
            lambda m: m["networks"][0].update(segments=SEGMENTS[:1]),
            "graphs/a.onnx is used but not listed",
        ),
        (lambda m: m["networks"][0].update(segments=SEGMENTS), "graphs/a.onnx reads pixels"),
        (lambda m: m["networks"][0].update(segments=[{}]), "segments[0]"),
    ],
)
def test_malformed(path: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    edit(path, change)
    with pytest.raises(BundleError) as caught:
        open_pipeline(path)
    assert words in str(caught.value)


def test_altered_files_and_settings(path: Path) -> None:
    edit(path, lambda m: m["settings"].pop("z_dim"))
    with pytest.raises(BundleError, match="malformed"):
        open_pipeline(path).settings(StyleGan2Settings)
    (path / "assets" / "note.txt").write_bytes(b"hellO")
    with pytest.raises(BundleError, match="altered"):
        open_pipeline(path)
    with pytest.raises(BundleError, match="no network three"):
        open_pipeline(path, check_files=False).network("three")


def test_the_smallest_sample_alone_is_read_for_float32(path: Path) -> None:
    bundle = open_pipeline(path)
    right = FakeBackend({"network": lambda x: x * np.float32(2)}, name="right")
    for name, left_out in (("one", 0), ("two", -1)):
        files = [sample.file for sample in bundle.network(name).network.samples]
        files.sort(key=lambda file: bundle.manifest.files[file].bytes)
        (path / files[left_out]).unlink()
    with Networks(bundle, backends=(right,)) as networks:
        networks.session("two")
        with pytest.raises(BundleError, match="no reference sample"):
            networks.session("one")


def test_a_backend_that_is_wrong_is_not_used(path: Path) -> None:
    bundle = open_pipeline(path)
    wrong = FakeBackend({"network": lambda x: x * np.float32(2.01)}, name="wrong")
    right = FakeBackend({"network": lambda x: x * np.float32(2)}, name="right")
    with Networks(bundle, backends=(wrong, right)) as networks:
        found = networks.run("one", {"x": np.ones((1, 3), np.float32)})
        assert np.array_equal(found["y"], np.full((1, 3), 2, np.float32))
        assert networks.used["one"].name == "right"
    with Networks(bundle, backends=(wrong,)) as networks, pytest.raises(FidelityError):
        networks.session("one")
