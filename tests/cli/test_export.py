"""``pixelrt export`` as a user meets it: sources, overrides, refusals."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pixelrt.bundle import open_bundle
from pixelrt.cli.main import run
from pixelrt.export.registry import get
from tests.conftest import SMALL_SRGAN, resized

TINY_SWIN = {
    "embed_dim": 8,
    "depths": [2],
    "num_heads": [2],
    "upsampler": "pixelshuffledirect",
    "upscale": 2,
}


def pixelrt(*arguments: Any) -> int:
    return run([str(argument) for argument in arguments])


def run_photo(bundle: Path, photo: Any, tmp_path: Path) -> tuple[int, int]:
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    Image.fromarray(resized(photo, 50, 37)).save(source)
    assert pixelrt("run", bundle, source, "-o", target) == 0
    with Image.open(target) as image:
        return image.size


def test_random_weights_with_a_configuration(tmp_path: Path, photo: Any, capsys: Any) -> None:
    config, bundle = tmp_path / "c.json", tmp_path / "a.pixelrt"
    config.write_text(json.dumps(SMALL_SRGAN))
    arguments = ("export", "--family", "srgan", "--config", config, "--random-init", 7)
    assert pixelrt(*arguments, "-o", bundle) == 0
    told = capsys.readouterr()
    assert "[1/7] reading the weights" in told.err
    assert "[7/7] writing the bundle" in told.err
    assert "random weights, seed 7" in told.out
    assert open_bundle(bundle).manifest.config["channels"] == 16
    assert run_photo(bundle, photo, tmp_path) == (100, 74)
    before = (bundle / "manifest.json").read_bytes()
    assert pixelrt(*arguments, "-o", bundle) == 5
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_a_transformers_folder(tmp_path: Path, photo: Any) -> None:
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    model = Swin2SRForImageSuperResolution(Swin2SRConfig(**TINY_SWIN))
    model.save_pretrained(tmp_path / "folder")
    bundle = tmp_path / "swin.pixelrt"
    assert pixelrt("export", tmp_path / "folder", "-o", bundle) == 0
    manifest = open_bundle(bundle).manifest
    assert (manifest.family, manifest.variant) == ("swin2sr", "transformers")
    assert manifest.config["embed_dim"] == 8
    assert run_photo(bundle, photo, tmp_path) == (100, 74)


def test_a_whole_module_pickle_of_the_tutorial(
    tmp_path: Path, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``{"generator": module}``, whose class is nowhere to be imported from."""
    import sys
    import types

    from pixelrt.export.networks import srgan

    class Generator(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = srgan.SRResNet(channels=8, blocks=1, upsamplers=1, large_kernel=5)

    Generator.__module__, Generator.__qualname__ = "models", "Generator"
    models = types.ModuleType("models")
    models.Generator = Generator  # type: ignore[attr-defined]
    path, bundle = tmp_path / "srgan.pth.tar", tmp_path / "srgan.pixelrt"
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the source of the made-up module
        patch.setitem(sys.modules, "models", models)
        torch.save(
            {"epoch": 1, "generator": Generator()}, path, _use_new_zipfile_serialization=False
        )
    assert pixelrt("export", path, "-o", bundle) == 0
    assert open_bundle(bundle).manifest.config["blocks"] == 1
    assert run_photo(bundle, photo, tmp_path) == (100, 74)


class Trap:
    """Creates a file if anything in it is run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def test_a_malicious_pickle_runs_nothing(tmp_path: Path, capsys: Any) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    state = get("srgan").random(SMALL_SRGAN, 0).reference.state_dict()
    torch.save({"generator": state, "extra": Trap(canary)}, path)
    assert pixelrt("export", path, "-o", tmp_path / "e.pixelrt") == 3
    told = capsys.readouterr().err
    assert "Path.touch" in told or "getattr" in told
    path.write_bytes(pickle.dumps(Trap(canary)))
    assert pixelrt("export", path, "-o", tmp_path / "e.pixelrt") == 3
    assert not canary.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pth"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "none.pth"), (b"", "empty"), (b"<html>", "HTML"), (b"\0" * 999, "")],
)
def test_bad_checkpoints(tmp_path: Path, capsys: Any, content: bytes | None, words: str) -> None:
    path = tmp_path / "none.pth"
    if content is not None:
        path.write_bytes(content)
    assert pixelrt("export", path, "-o", tmp_path / "a.pixelrt") == 3
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
    assert not (tmp_path / "a.pixelrt").exists()


def test_unknown_weights_and_wrong_families(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(3, 3, 3, 3)}, path)
    assert pixelrt("export", path, "-o", tmp_path / "a.pixelrt") == 3
    told = capsys.readouterr().err
    for family in ("swin2sr", "pix2pix", "cyclegan", "srgan"):
        assert family in told
    assert pixelrt("export", path, "-o", tmp_path / "a.pixelrt", "--family", "vae") == 2
    assert pixelrt("export", "-o", tmp_path / "a.pixelrt") == 2
    assert pixelrt("export", path, "-o", tmp_path / "a.onnx") == 2


def test_bad_configurations(tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "c.json"
    base = ("export", "--family", "srgan", "--random-init", 0, "-o", tmp_path / "a.pixelrt")
    for text, words in (("{", "not JSON"), ("[]", "JSON object"), ('{"scale": 5}', "scale")):
        config.write_text(text)
        assert pixelrt(*base, "--config", config) == 3
        assert words in capsys.readouterr().err
    assert pixelrt(*base, "--config", tmp_path / "none.json") == 2
