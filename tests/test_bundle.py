"""Every way in which a bundle can be wrong gets its own words; golden form stays readable."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixelrt.bundle import new_bundle, open_bundle
from pixelrt.bundle_files import MANIFEST
from pixelrt.errors import BundleError, OutputError
from pixelrt.manifest import encode_manifest
from tests.bundles import write_bundle


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "a.pixelrt")
    return tmp_path / "a.pixelrt"


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_round_trip(path: Path) -> None:
    bundle = open_bundle(path)
    assert (path / MANIFEST).read_bytes() == encode_manifest(bundle.manifest)
    inputs, outputs = bundle.reference(bundle.manifest.references[0])
    assert inputs.shape == (1, 9, 9, 3)
    assert outputs.shape == (1, 3, 18, 18)


def test_the_manifest_is_flat_json_that_others_can_read(path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["format"] == 1
    assert manifest["image"]["scale"] == 2
    assert manifest["receptive_field"] == {"alignment": 1, "halo": 0, "curve": {"60dB": 0}}
    graph = manifest["components"][0]["graphs"][1]
    assert graph["inputs"] == [{"name": "image", "dtype": "uint8", "shape": ["N", "H", "W", 3]}]
    assert set(manifest["files"]) == {
        "graphs/core.onnx",
        "graphs/image.onnx",
        "reference/photo-small.npz",
    }


def with_variant(manifest: Any) -> Any:
    """Add the plain graphs once more as a variant; gives the variant."""
    component = manifest["components"][0]
    variant = {"backend": "openvino", "graphs": copy.deepcopy(component["graphs"])}
    component["variants"] = [variant]
    return variant


def test_a_backend_gets_its_variant(path: Path) -> None:
    def change(manifest: Any) -> None:
        with_variant(manifest)["graphs"][0]["opset"] = 21

    edit(path, change)
    component = open_bundle(path).component
    assert component.graph("core", "openvino").opset == 21
    assert component.graph("core", "tensorrt") == component.graph("core")
    assert component.graph("core").opset == 18
    assert len(component.all_graphs()) == 4


def test_manifests_without_variants_stay_valid(path: Path) -> None:
    edit(path, lambda m: m["components"][0].pop("variants"))
    component = open_bundle(path).component
    assert component.variants == []
    assert component.graph("image", "openvino") == component.graph("image")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v, c: v["graphs"].pop(), "one image and one core"),
        (lambda v, c: v.update(backend=""), "a backend of their own"),
        (lambda v, c: c["variants"].append(v), "a backend of their own"),
        (lambda v, c: v["graphs"][0]["inputs"][0].update(name="x"), "other inputs or outputs"),
        (lambda v, c: v["graphs"][1].update(outputs=[]), "other inputs or outputs"),
        (lambda v, c: v["graphs"][1].update(data=["graphs/x.bin"]), "graphs/x.bin"),
    ],
)
def test_malformed_variants_are_named(path: Path, change: Any, words: str) -> None:
    edit(path, lambda m: change(with_variant(m), m["components"][0]))
    assert words in refused(path)


def test_absent_and_foreign_places(tmp_path: Path) -> None:
    assert "there is no bundle" in refused(tmp_path / "none.pixelrt")
    file = tmp_path / "photo.pixelrt"
    file.write_bytes(b"x")
    assert "a file" in refused(file)
    (tmp_path / "empty.pixelrt").mkdir()
    assert "no manifest.json" in refused(tmp_path / "empty.pixelrt")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"a": 1}', "[" * 100_000, "\0"])
def test_manifests_that_are_none(path: Path, text: str) -> None:
    (path / MANIFEST).write_text(text)
    assert "no manifest" in refused(path)


def test_unknown_version(path: Path) -> None:
    edit(path, lambda m: m.update(format=3))
    words = refused(path)
    assert "format 3" in words
    assert "format 1" in words


def test_a_pipeline_is_no_image_bundle(path: Path) -> None:
    edit(path, lambda m: m.update(format=2))
    assert "pipeline of several networks" in refused(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("image"), "image"),
        (lambda m: m["image"].update(scale="2"), "scale"),
        (lambda m: m["image"].update(scale=0), "scale"),
        (lambda m: m["image"].update(channels_in=4), "channels"),
        (lambda m: m["image"].update(multiple=8, minimum=4), "minimum"),
        (lambda m: m["image"].update(pad_mode="wrap"), "pad_mode"),
        (lambda m: m["receptive_field"].update(halo=-1), "receptive_field"),
        (lambda m: m.update(components=[]), "component"),
        (lambda m: m["components"][0]["graphs"].pop(), "one image and one core"),
        (lambda m: m["files"].pop("graphs/core.onnx"), "graphs/core.onnx"),
        (lambda m: m["components"][0]["graphs"][0].update(file="graphs/x.onnx"), "graphs/x.onnx"),
    ],
)
def test_malformed_facts_are_named(path: Path, change: Any, words: str) -> None:
    edit(path, change)
    text = refused(path)
    assert "malformed" in text
    assert words in text


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "graphs/../../secret",
        "graphs\\..\\secret",
        "C:/secret",
        "secret",
        "engines/x.plan",
        "graphs//core2.onnx",
        "./graphs/x",
        "graphs/\0",
        "",
    ],
)
def test_paths_that_leave_the_bundle(path: Path, name: str) -> None:
    edit(path, lambda m: m["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    assert "may not be in a bundle" in refused(path)


def test_missing_graph(path: Path) -> None:
    (path / "graphs/core.onnx").unlink()
    assert "no graphs/core.onnx" in refused(path)


def test_altered_files(path: Path) -> None:
    graph = path / "graphs/core.onnx"
    graph.write_bytes(b"corf")
    assert "sha256" in refused(path)
    graph.write_bytes(b"cor")
    assert "3 bytes" in refused(path)


def test_links_are_refused(path: Path, tmp_path: Path) -> None:
    graph = path / "graphs/core.onnx"
    graph.rename(tmp_path / "outside")
    graph.symlink_to(tmp_path / "outside")
    assert "holds a link" in refused(path)


def test_linked_folders_and_manifests_are_refused(path: Path, tmp_path: Path) -> None:
    (path / "graphs").rename(tmp_path / "outside")
    (path / "graphs").symlink_to(tmp_path / "outside")
    assert "holds a link" in refused(path)
    (path / MANIFEST).rename(tmp_path / "m.json")
    (path / MANIFEST).symlink_to(tmp_path / "m.json")
    assert "a link" in refused(path)


def test_unlisted_files_are_refused(path: Path) -> None:
    (path / "graphs/other.bin").write_bytes(b"x")
    assert "does not list" in refused(path)


def test_special_files_are_refused(path: Path) -> None:
    graph = path / "graphs/core.onnx"
    graph.unlink()
    os.mkfifo(graph)
    assert "no graphs/core.onnx" in refused(path)


def test_pickled_references_are_not_loaded(path: Path) -> None:
    import numpy as np

    np.savez(path / "reference/photo-small.npz", input=np.array([print], dtype=object))
    bundle = open_bundle(path, check_files=False)
    with pytest.raises(BundleError, match="no reference sample"):
        bundle.reference(bundle.manifest.references[0])


def test_nothing_is_left_of_a_failed_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError), new_bundle(tmp_path / "b.pixelrt", overwrite=False):
        pass  # no manifest was written
    assert list(tmp_path.iterdir()) == []


def test_an_old_bundle_survives_a_failed_new_one(path: Path) -> None:
    with pytest.raises(OutputError), new_bundle(path, overwrite=False):
        pass
    with pytest.raises(KeyboardInterrupt), new_bundle(path, overwrite=True):
        raise KeyboardInterrupt
    open_bundle(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
