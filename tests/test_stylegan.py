"""StyleGAN2 from a checkpoint to pictures: bundle, runtime, command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixelrt import load, load_pipeline
from pixelrt.bundle_files import MANIFEST
from pixelrt.cli.main import run
from pixelrt.errors import BundleError, UsageError
from pixelrt.export.families.stylegan2 import random
from pixelrt.export.stylegan import export_stylegan
from pixelrt.fidelity import compare
from pixelrt.files import sha256_file
from pixelrt.plans.store import plan_at
from pixelrt.runtime.stylegan.latents import edit, mix, seeded_z
from pixelrt.runtime.stylegan.model import StyleGan2, load_stylegan
from tests.engines.support import required_tensorrt

CONFIG = {"resolution": 32, "channel_base": 512, "channel_max": 32, "z_dim": 16, "w_dim": 16}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with NVIDIA's names, exported."""
    folder = tmp_path_factory.mktemp("stylegan")
    made = random({**CONFIG, "mapping_layers": 2}, 3)
    weights = {name: tensor.contiguous() for name, tensor in made.reference.state_dict().items()}
    save_file(weights, folder / "faces.safetensors")
    return export_stylegan(folder / "faces.safetensors", folder / "faces.pixelrt")


@pytest.fixture
def model(bundle: Path) -> StyleGan2:
    return load_stylegan(bundle, backend="onnxruntime-cpu")


def test_pictures_are_those_of_the_published_network(model: StyleGan2) -> None:
    reference = random({**CONFIG, "mapping_layers": 2}, 3).reference
    with model:
        ws = model.latents([1, 2, 3], psi=0.7, kind="randomstate")
        images = model.images(ws)
    z = torch.from_numpy(seeded_z([1, 2, 3], 16, "randomstate"))
    with torch.no_grad():
        w = reference.mapping(z)
        centre = reference.mapping.w_avg
        truncated = centre + 0.7 * (w - centre)
        rows = truncated[:, None].repeat(1, model.settings.num_ws, 1)
        picture = reference.synthesis(rows, reference.synthesis.constant_noise())
        wanted = (picture / 2 + 0.5).clamp(0, 1) * 255
    levels = np.rint(wanted.permute(0, 2, 3, 1).numpy())
    assert levels.std() > 10
    assert compare(levels, images, peak=255).psnr >= 60
    assert np.abs(ws[:, 0] - truncated.numpy()).max() < 1e-5


def test_mixing_and_editing_change_what_they_should(model: StyleGan2) -> None:
    with model:
        ws = model.latents([1])
        other = mix(ws, model.latents([2]), range(4, model.settings.num_ws))
        edited = edit(ws, np.eye(16, dtype=np.float32)[0], [2.0])
        plain, mixed, moved = (model.images(one) for one in (ws, other, edited))
    assert np.array_equal(ws[:, :4], other[:, :4])
    for changed in (mixed, moved):
        assert np.abs(plain.astype(int) - changed).mean() > 1


def test_the_command_line(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, kept = tmp_path / "face.png", tmp_path / "ws.npz"
    common = ["--backend", "onnxruntime-cpu"]
    words = ["stylegan", str(bundle), "--seeds", "4-5", "--psi", "0.5", *common]
    assert run([*words, "-o", str(out), "--save-latents", str(kept)]) == 0
    first = np.asarray(Image.open(tmp_path / "face-1.png"))
    assert first.shape == (32, 32, 3)
    again = tmp_path / "again.png"
    assert run(["stylegan", str(bundle), "--latents", str(kept), "-o", str(again), *common]) == 0
    assert np.array_equal(first, np.asarray(Image.open(tmp_path / "again-1.png")))
    assert run([*words, "-o", str(out)]) == 5  # they exist
    assert run(["stylegan", str(bundle), "-o", str(out)]) == 2
    assert run(["inspect", str(bundle)]) == 0
    assert "pixelrt stylegan" in capsys.readouterr().out
    assert run(["verify", str(bundle), *common]) == 0
    assert "5 of 5 checks passed" in capsys.readouterr().out


def test_another_centre_of_truncation_fails_the_whole(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each network passes: the centre is in none of them."""
    path = Path(shutil.copytree(bundle, tmp_path / "a.pixelrt"))
    centre = path / "assets" / "w_avg.npy"
    np.save(centre, np.load(centre) + np.float32(0.1))
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"]["assets/w_avg.npy"]["sha256"] = sha256_file(centre)
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert run(["verify", str(path), "--backend", "onnxruntime-cpu"]) == 1
    told = capsys.readouterr()
    assert "4 of 5 checks passed" in told.out
    assert "seed: latents after step 1" in told.err


def test_what_does_not_fit_is_refused(bundle: Path, model: StyleGan2) -> None:
    with pytest.raises(UsageError, match="no classes"):
        model.latents([1], labels=[0])
    with pytest.raises(BundleError, match="several networks"):
        load(bundle)
    with pytest.raises(BundleError, match="load_stylegan"):
        load_pipeline(bundle)


def test_plans_of_mapping_and_synthesis(bundle: Path, tmp_path: Path) -> None:
    """Built for real, in float16; the runs of float32 are the sums of squares and their roots."""
    required_tensorrt("tensorrt-rtx")
    words = ["build", str(bundle), "--backend", "tensorrt-rtx", "-q", "--axis", "N=1,2,4"]
    assert run([*words, "-o", str(tmp_path)]) == 0
    plans = {path.name.split("-")[1]: plan_at(path).facts for path in tmp_path.glob("*.plan")}
    assert set(plans) == {"mapping", "synthesis"}
    for name, facts in plans.items():
        assert facts.graph.network == name
        assert facts.profiles == ["N=1,2,4"]
        assert set(facts.report["multiply_adds"]) - {"unplaced"} == {"float16"}
        assert facts.conversion["worst_db"] >= 60
    assert run([*words, "--network", "synthesis", "--shapes", "32x32"]) == 2  # one size alone
