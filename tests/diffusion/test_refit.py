"""Plans of a pipeline given the weights of the same one with a LoRA merged in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from pixelrt.engines.build import BuildOptions
from pixelrt.errors import InputError
from pixelrt.export.diffusion.lora import LoraFile
from pixelrt.export.diffusion.pipeline import export_diffusion
from pixelrt.pipeline_bundle import open_pipeline
from pixelrt.plans.axis_profiles import parse_axes
from pixelrt.plans.store import ENGINES, find_plans
from tests.diffusion.conftest import Exported
from tests.diffusion.test_lora import UNET, kohya, layer_of, pair
from tests.engines.refits import as_this_machine, build, run
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_tensorrt import FakeTensorRT
from tests.runtime.plan_cases import machine_of

pytestmark = pytest.mark.slow

PROFILES = {"unet": "B=1,2,2 h=3,8,13 w=3,8,13 T=77", "text_encoder": "B=1,1,2"}


def test_a_lora_without_a_build(
    sd: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The UNet's plan is refitted and reproduces the references of the merged one; the text
    encoder's, whose weights the file does not touch, is taken; the VAE has none."""
    old, new = tmp_path / "old.pixelrt", tmp_path / "new.pixelrt"
    shutil.copytree(sd.bundle, old)
    cuda = FakeCuda()
    world = FakeTensorRT(cuda, {})
    as_this_machine(monkeypatch, machine_of(lambda: world))
    for name, profile in PROFILES.items():
        network = open_pipeline(old).network(name)
        options = BuildOptions((parse_axes(profile),), precision="float16", refit=True)
        build(network, "network", options, world.trt, network.network.low_psnr)

    state = {}
    for seed, layer in enumerate(UNET.values()):
        names = kohya("unet", layer)
        down, up = pair(layer_of(sd.pipe.unet, layer).weight.detach(), seed)
        state |= {names[0]: down / 4, names[1]: up / 4}
    save_file(state, tmp_path / "ink.safetensors")
    ink = LoraFile(tmp_path / "ink.safetensors")
    export_diffusion(sd.folder, new, loras=[ink], whole=False)

    run(new, old)
    told = capsys.readouterr()
    assert "refitted in" in told.out
    assert "built before" in told.out
    assert "text_encoder) has the weights of the plan" in told.err
    assert told.err.count("left out") == 2
    assert "verified" in told.err
    assert "not executed here" not in told.err
    for name in PROFILES:
        network = open_pipeline(new).network(name)
        plans = find_plans(network, network.component.graph("network")).plans
        assert plans[0].place.startswith(str(new / ENGINES))
        assert ("refitted_from" in plans[0].facts.options) == (name == "unet")
    with pytest.raises(InputError, match="no plan that can be given") as caught:
        run(new, old, "--network", "vae_decoder")
    assert "(vae_decoder): no plan" in caught.value.found
    cuda.assert_clean()
