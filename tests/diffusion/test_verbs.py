"""``pixelrt txt2img``, ``img2img``, ``inpaint``, ``inspect`` and ``verify`` on a pipeline."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelrt.cli.main import run
from tests.diffusion.conftest import Exported

pytestmark = pytest.mark.slow

FEW = ["--steps", "2", "--seed", "1", "--backend", "onnxruntime-cpu"]

WITHOUT_TORCH = """
import sys
from pixelrt.cli.main import run
assert run(sys.argv[1:]) == 0
heavy = {"torch", "diffusers", "transformers", "onnx", "onnx_ir"} & set(sys.modules)
assert not heavy, heavy
"""


def test_pictures_from_words_need_no_torch(sd: Exported, tmp_path: Path) -> None:
    words = ["txt2img", str(sd.bundle), "-p", "a cat", "--size", "64x72", *FEW]
    target = tmp_path / "cat.png"
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words, "-o", str(target)], check=True)
    with Image.open(target) as image:
        assert image.size == (64, 72)
        said = json.loads(image.info["pixelrt"])
    assert said["prompt"] == "a cat"
    assert said["seed"] == 1
    assert said["guidance_scale"] == 7.5  # what was taken, though nothing was given


def test_from_picture_to_picture(
    sd: Exported, photo: Any, mask: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")
    start = [str(sd.bundle), "-p", "a dog", "-i", str(tmp_path / "photo.png"), *FEW]
    assert run(["img2img", *start, "--count", "2", "-o", str(tmp_path / "dog.png")]) == 0
    where = ["-m", str(tmp_path / "mask.png")]
    assert run(["inpaint", *start, *where, "-o", str(tmp_path / "in.jpg")]) == 0
    for name in ("dog-1.png", "dog-2.png", "in.jpg"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (96, 64)
    assert "seed" in capsys.readouterr().err
    assert run(["inpaint", *start, *where, "-o", str(tmp_path / "in.jpg")]) == 5
    assert run(["img2img", *start, "--strength", "2", "-o", str(tmp_path / "x.png")]) == 2
    assert run(["img2img", *start, "-o", str(tmp_path / "x.gif")]) == 2
    capsys.readouterr()
    assert run(["img2img", *start, "--prior-steps", "5", "-o", str(tmp_path / "x.png")]) == 2
    assert "no option prior_num_inference_steps" in capsys.readouterr().err
    assert not list(tmp_path.glob("x.*"))


def test_latents_are_handed_over_as_files(sd: Exported, tmp_path: Path) -> None:
    latents = tmp_path / "cat.npy"
    words = [str(sd.bundle), "-p", "a cat", "--size", "64", *FEW]
    assert run(["txt2img", *words, "-o", str(latents)]) == 0
    assert np.load(latents).shape == (1, 4, 8, 8)
    rest = [*words[:3], "-i", str(latents), *FEW, "-o", str(tmp_path / "cat.png")]
    assert run(["img2img", *rest]) == 0
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (64, 64)
    (tmp_path / "bad.npy").write_bytes(b"no latents")
    assert run(["img2img", *words[:3], "-i", str(tmp_path / "bad.npy"), *rest[5:]]) == 3


def test_a_pipeline_is_described_and_verified(
    sd: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(sd.bundle)]) == 0
    said = capsys.readouterr().out
    assert "pixelrt txt2img" in said
    assert "latents float32 (B, 4, h, w)" in said
    assert "text-to-image, image-to-image" in said
    assert run(["inspect", str(sd.bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "stable-diffusion"
    assert run(["verify", str(sd.bundle), "--backend", "onnxruntime-cpu"]) == 0
    assert "14 of 14 checks passed" in capsys.readouterr().out
    assert run(["run", str(sd.bundle), str(tmp_path / "a.png")]) == 3
    assert "pipeline of several networks" in capsys.readouterr().err


def test_what_cannot_be_exported_has_its_message(
    sd: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(name: str, change: Any) -> str:
        folder = Path(shutil.copytree(sd.folder, tmp_path / name))
        change(folder)
        target = tmp_path / f"{name}.pixelrt"
        assert run(["export", str(folder), "-o", str(target), "-q"]) == 3
        assert not target.exists()
        return capsys.readouterr().err

    def index(folder: Path, **values: Any) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    def narrow(folder: Path) -> None:
        path = folder / "text_encoder" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 64}))

    def cut(folder: Path) -> None:
        (weights,) = (folder / "vae").glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:-100])

    unknown = refused("unknown", lambda folder: index(folder, _class_name="FluxPipeline"))
    assert "FluxPipeline" in unknown
    assert "no text encoder" in refused(
        "encoder", lambda folder: index(folder, text_encoder=[None, None])
    )
    assert "do not belong to this UNet" in refused("narrow", narrow)
    assert "unet" in refused("unet", lambda folder: (folder / "unet" / "config.json").unlink())
    assert "vae" in refused("cut", cut)
    assert "not valid JSON" in refused(
        "json", lambda folder: (folder / "model_index.json").write_text("{")
    )
