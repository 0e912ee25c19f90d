"""Every kind of pipeline, run whole by diffusers and by the runtime.

The runtime is given the modules that would be exported, so that no graph is made for this.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pixelrt.export.assemble import Plan
from pixelrt.export.diffusion.kandinsky import kandinsky_plan
from pixelrt.export.diffusion.lora import LoraFile
from pixelrt.export.diffusion.recipes import plan_of
from pixelrt.export.diffusion.source import open_diffusers
from pixelrt.export.diffusion.upscalers import upscaler_plan
from pixelrt.fidelity import compare_relative
from pixelrt.manifest import FileEntry, PipelineManifest, PipelineReference
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.runtime.backends.base import Array, BackendInfo
from pixelrt.runtime.networks import Networks
from pixelrt.runtime.whole import STEP_MAX_ABS, check_whole
from pixelrt.whole_run import encode_run
from tests.diffusion import kandinsky_models, models

pytestmark = [
    # diffusers' own, while the tests make and save its pipelines
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

KINDS = {
    "controlled": ("text_to_image", "image_to_image"),
    "controlled_xl": ("text_to_image", "image_to_image"),
    "inpainting": ("inpaint",),
    "inpainting_xl": ("inpaint",),
    "latent_consistency": ("text_to_image", "image_to_image"),
    "refiner": ("image_to_image",),
}


class InTorch:
    """Runs the networks of a plan as PyTorch does."""

    def __init__(self, plan: Plan, bundle: PipelineBundle) -> None:
        self.bundle = bundle
        self.used: dict[str, BackendInfo] = {}
        self._parts = {part.name: part for part in plan.parts()}

    def run(self, name: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.used[name] = BackendInfo("torch", torch.__version__, "cpu", "float32")
        part = self._parts[name]
        given = [torch.from_numpy(np.ascontiguousarray(feeds[one])) for one in part.inputs]
        with torch.inference_mode():
            found = part.module(*given)
        values = found if isinstance(found, tuple) else (found,)
        return {one: v.numpy() for one, v in zip(part.outputs, values, strict=True)}


def bundle_of(plan: Plan, root: Path) -> PipelineBundle:
    """Settings, assets and references, without networks."""
    (root / "assets").mkdir(parents=True)
    list(plan.parts())  # some assets come with them
    for name, data in plan.assets.items():
        (root / "assets" / name).write_bytes(data)
    assert plan.examples is not None
    references = []
    for one in plan.examples():
        (root / f"{one.name}.npz").write_bytes(encode_run(one.run))
        references.append(PipelineReference(one.name, one.mode, one.options, f"{one.name}.npz"))
    manifest = PipelineManifest(
        format=2,
        name="kind",
        family=plan.family,
        variant=plan.variant,
        settings=msgspec.to_builtins(plan.settings),
        source=plan.source,
        networks=[],
        fidelity=[],
        made_by={},
        files={f"assets/{name}": FileEntry("", 0) for name in plan.assets},
        references=references,
    )
    return PipelineBundle(root, manifest, "ab" * 32)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_is_that_of_diffusers(kind: str, tmp_path: Path) -> None:
    getattr(models, kind)(tmp_path)
    assert_whole(plan_of(open_diffusers(tmp_path / "pipe")), tmp_path / "bundle", KINDS[kind])


def test_guidance_that_is_left_out_is_that_of_diffusers(tmp_path: Path) -> None:
    """Of SDXL it is what the references were made with."""
    models.controlled_xl(tmp_path)
    plan = plan_of(open_diffusers(tmp_path / "pipe"))
    bundle = bundle_of(plan, tmp_path / "bundle")
    networks = cast("Networks", InTorch(plan, bundle))
    for one in bundle.manifest.references:
        assert one.options.pop("guidance_scale") == 5
        found = check_whole(bundle, networks, one)
        assert found.passed, found.reasons


def test_kandinsky_with_its_prior(tmp_path: Path) -> None:
    made = kandinsky_models.kandinsky(tmp_path)
    plan = kandinsky_plan(open_diffusers(made.decoder_folder), made.prior_folder)
    assert_whole(plan, tmp_path / "bundle", ("text_to_image", "image_to_image"))


def test_weights_are_rounded_for_the_whole_too(tmp_path: Path) -> None:
    """diffusers, the networks and what is embedded at export have the very same ones."""
    made = kandinsky_models.kandinsky(tmp_path)
    plan = kandinsky_plan(
        open_diffusers(made.decoder_folder), made.prior_folder, weights="bfloat16"
    )
    for part in plan.parts():
        for weight in part.module.parameters():
            assert torch.equal(weight, weight.bfloat16().float())
    exact = bundle_of(
        kandinsky_plan(open_diffusers(made.decoder_folder), made.prior_folder), tmp_path / "exact"
    )
    bundle = assert_whole(plan, tmp_path / "bundle", ("text_to_image", "image_to_image"))
    last, wanted = (one.reference(one.manifest.references[0]).steps[-1] for one in (bundle, exact))
    assert compare_relative(wanted, last).max_abs > 10 * STEP_MAX_ABS


def test_weights_are_rounded_once_all_is_merged_into_them(tmp_path: Path) -> None:
    models.controlled(tmp_path)
    key = "lora_unet_mid_block_resnets_0_conv1"
    file = tmp_path / "lora.safetensors"
    torch.manual_seed(3)
    save_file(
        {
            f"{key}.lora_down.weight": torch.randn(2, 32, 3, 3),
            f"{key}.lora_up.weight": torch.randn(32, 2, 1, 1),
        },
        file,
    )
    plan = plan_of(open_diffusers(tmp_path / "pipe"), loras=[LoraFile(file)], weights="float16")
    for part in plan.parts():
        for weight in part.module.parameters():
            assert torch.equal(weight, weight.half().float())
    assert_whole(plan, tmp_path / "bundle", KINDS["controlled"])


@pytest.mark.parametrize("kind", ["latent_upscaler", "upscaler"])
def test_upscalers(kind: str, tmp_path: Path) -> None:
    getattr(models, kind)(tmp_path)
    plan = upscaler_plan(open_diffusers(tmp_path / "pipe"))
    assert_whole(plan, tmp_path / "bundle", ("upscale",))


def assert_whole(plan: Plan, root: Path, modes: tuple[str, ...]) -> PipelineBundle:
    bundle = bundle_of(plan, root)
    networks = cast("Networks", InTorch(plan, bundle))
    found = [check_whole(bundle, networks, one) for one in bundle.manifest.references]
    assert tuple(one.mode for one in bundle.manifest.references) == modes
    for one in found:
        assert one.passed, one.reasons
        assert len(one.steps) in (3, 4)
        assert one.expected.images.std() > 10  # a picture, not a plain
    return bundle
