"""The VAE in tiles is the VAE at once; diffusers' own tiles are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pixelrt.bundle_files import MANIFEST
from pixelrt.cli import generate
from pixelrt.cli.main import run
from pixelrt.errors import FidelityError, UsageError
from pixelrt.export.diffusion.vae_segments import vae_segments
from pixelrt.geometry import Size
from pixelrt.runtime.diffusion.load import load_pipeline
from pixelrt.runtime.images.read import read_picture
from pixelrt.segments import whole_need
from tests.diffusion import models
from tests.diffusion.conftest import Exported

pytestmark = pytest.mark.slow

Values = NDArray[np.float32]
EXACT = 1e-4
"""Of the largest value; what comes out is around 1e-6."""


def given(half: str, batch: int, height: int, width: int) -> Values:
    """Latents, or the picture for so many latents."""
    generator = np.random.default_rng(3)
    if half == "vae_decoder":
        return generator.standard_normal((batch, 4, height, width), np.float32)
    return generator.random((batch, 3, 8 * height, 8 * width), np.float32) * 2 - 1


def by_torch(made: Exported, half: str, values: Values) -> Values:
    vae, source = made.pipe.vae, torch.from_numpy(values)
    with torch.inference_mode():
        found = vae.decode(source).sample if half == "vae_decoder" else vae.encode(source)
    if half == "vae_encoder":
        return found.latent_dist.parameters.numpy()
    return found.numpy()


def in_tiles(made: Exported, half: str, values: Values, **options: Any) -> Values:
    with made.load(verify=False, **options) as pipeline:
        (found,) = pipeline.networks.run(half, {input_of(half): values}).values()
        assert list(pipeline.networks.used) == [f"{half} in tiles"]
    return found


def input_of(half: str) -> str:
    return "latents" if half == "vae_decoder" else "pixels"


def error(wanted: Values, found: Values) -> float:
    assert wanted.shape == found.shape
    return float(np.abs(wanted - found).max() / np.abs(wanted).max())


@pytest.mark.parametrize("half", ["vae_decoder", "vae_encoder"])
@pytest.mark.parametrize(
    ("batch", "height", "width", "tile"),
    [(2, 9, 13, 48), (1, 16, 7, 40), (1, 7, 5, 8), (1, 3, 11, 1)],
)
def test_tiles_give_what_pytorch_gives_at_once(
    sd: Exported, half: str, batch: int, height: int, width: int, tile: int
) -> None:
    values = given(half, batch, height, width)
    found = in_tiles(sd, half, values, vae_tile=tile)
    assert error(by_torch(sd, half, values), found) <= EXACT


def test_tiles_of_diffusers_give_something_else(sd: Exported) -> None:
    """What the numbers of docs/diffusion.md were measured like."""
    values = given("vae_decoder", 1, 16, 16)
    wanted = by_torch(sd, "vae_decoder", values)
    sd.pipe.vae.enable_tiling()  # 64 pixels a side, its sample_size
    try:
        theirs = by_torch(sd, "vae_decoder", values)
    finally:
        sd.pipe.vae.disable_tiling()
    ours = in_tiles(sd, "vae_decoder", values, vae_tile=64)
    assert error(wanted, theirs) > 0.05
    assert error(wanted, ours) <= EXACT


def test_what_does_not_fit_is_cut_and_what_fits_is_not(sd: Exported) -> None:
    values = given("vae_decoder", 1, 16, 16)
    with sd.load() as pipeline:
        need = whole_need(pipeline.bundle.network("vae_decoder").network, Size(16, 16))
        pipeline.networks.run("vae_decoder", {"latents": values})
        assert list(pipeline.networks.used) == ["vae_decoder"]
    found = in_tiles(sd, "vae_decoder", values, max_memory=need // 8)
    assert error(by_torch(sd, "vae_decoder", values), found) <= EXACT
    with sd.load(max_memory=need // 8, vae_tile="off", verify=False) as pipeline:
        pipeline.networks.run("vae_decoder", {"latents": values})
        assert list(pipeline.networks.used) == ["vae_decoder"]


def test_a_picture_is_the_same_in_tiles(
    sd: Exported, photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the verbs: encoder and decoder, and the bar tells of both."""
    told: list[tuple[str, int, int, str]] = []

    @contextmanager
    def stage_bar(*_: object, **__: object) -> Iterator[Any]:
        told.clear()
        yield lambda *stage: told.append(stage)

    monkeypatch.setattr(generate, "stage_bar", stage_bar)
    source = tmp_path / "photo.png"
    photo.save(source)
    words = ["img2img", str(sd.bundle), "-p", "a cat", "-i", str(source), "--steps", "2"]
    words += ["--seed", "1", "--backend", "onnxruntime-cpu", "-q"]
    for name, more in (("whole", []), ("tiles", ["--vae-tile", "32", "--max-memory", "64MB"])):
        assert run([*words, "-o", str(tmp_path / f"{name}.png"), *more]) == 0
    whole, tiles = (
        read_picture(tmp_path / f"{name}.png").pixels.astype(int) for name in ("whole", "tiles")
    )
    assert np.abs(whole - tiles).max() <= 1
    assert whole.std() > 10
    kinds = {(title, counts): (done, total) for title, done, total, counts in told}
    assert list(kinds) == [
        ("denoising", "steps"),
        ("encoding in tiles", "tiles"),
        ("decoding in tiles", "tiles"),
    ]
    assert all(done == total for done, total in kinds.values())
    assert min(total for (_, counts), (_, total) in kinds.items() if counts == "tiles") > 10
    assert told[0] == ("denoising", 0, 2, "steps")
    assert [title for title, *_ in told].index("encoding in tiles") == 1


@pytest.mark.parametrize("halo", [0, 1])
def test_segments_that_are_wrong_are_found_before_they_are_used(
    sd: Exported, tmp_path: Path, halo: int
) -> None:
    """A halo too small in the manifest, everywhere or where two convolutions stand between cuts:
    the samples are cut, so that it shows."""
    bundle = Path(shutil.copytree(sd.bundle, tmp_path / "wrong.pixelrt"))
    manifest = json.loads((bundle / MANIFEST).read_text())
    decoder = next(n for n in manifest["networks"] if n["component"]["name"] == "vae_decoder")
    changed = 0
    for segment in decoder["segments"]:
        for name, units in segment["halo"].items():
            segment["halo"][name] = min(units, halo)
            changed += units > halo
    assert changed
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    values = given("vae_decoder", 1, 8, 8)
    pipeline = load_pipeline(bundle, backend="onnxruntime-cpu", vae_tile=32)
    with pipeline, pytest.raises(FidelityError, match="does not reproduce the reference"):
        pipeline.networks.run("vae_decoder", {"latents": values})


def test_segments_share_the_weights_of_their_network(sd: Exported) -> None:
    with sd.load() as pipeline:
        files = pipeline.bundle.manifest.files
        for half in ("vae_decoder", "vae_encoder"):
            own = [f for f in files if f.startswith(f"graphs/{half}-") and f.endswith(".bin")]
            # keys, values and queries of attention, which the plain graph holds turned over
            assert len(own) == 3
            assert sum(files[f].bytes for f in own) < files[f"graphs/{half}.bin"].bytes / 20


def test_a_vae_of_other_parts_has_no_segments() -> None:
    model = models.vae()
    assert all(vae_segments(model))
    model.decoder.up_blocks[1].resnets[0].nonlinearity = torch.nn.GELU()
    assert vae_segments(model) == ([], [])


def test_tiles_that_a_bundle_has_not(sd: Exported, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(sd.bundle, tmp_path / "plain.pixelrt"))
    manifest = json.loads((bundle / MANIFEST).read_text())
    gone = []
    for network in manifest["networks"]:
        for segment in network.pop("segments"):
            gone += [segment["graph"]["file"], *segment["graph"]["data"]]
    for file in {f for f in gone if "-" in f}:
        del manifest["files"][file]
        (bundle / file).unlink()
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="no networks that run in tiles"):
        load_pipeline(bundle, vae_tile=64)
    with pytest.raises(UsageError, match="a tile of 0"):
        load_pipeline(bundle, vae_tile=0)
    values = given("vae_decoder", 1, 8, 8)
    with load_pipeline(bundle, backend="onnxruntime-cpu", max_memory=1) as pipeline:
        pipeline.networks.run("vae_decoder", {"latents": values})
