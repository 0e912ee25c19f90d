"""Networks of Stable Diffusion 1.5 at full size with random weights, exported and built in float16.

Asked for by ``-m full_size`` alone: together they take about ten minutes, 12 GB of memory and 15 GB
of disk on two cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from pixelrt.cli.build_requests import Wishes, requests_of
from pixelrt.engines.build import BuildOptions
from pixelrt.engines.make import make_plan
from pixelrt.export.assemble import Plan, assemble
from pixelrt.export.diffusion.parts import text_part, unet_part, vae_parts
from pixelrt.export.part import Part
from pixelrt.manifest import Source
from pixelrt.pipeline_settings import DiffusionSettings, TextSettings
from pixelrt.spec import TokenizerSettings
from tests.engines.support import required_tensorrt

pytestmark = [pytest.mark.slow, pytest.mark.full_size, pytest.mark.timeout(7200)]

SETTINGS = DiffusionSettings(
    scheduler={},
    latent_channels=4,
    latent_scale=8,
    scaling=0.18215,
    sample_size=64,
    multiple=8,
    minimum=72,
    unet_channels=4,
    text=[
        TextSettings(
            network="text_encoder",
            asset="",
            tokenizer=TokenizerSettings(77, 49406, 49407, 49407),
        )
    ],
)


def text_encoder() -> Part:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    model = CLIPTextModel(config).eval()
    return text_part("text_encoder", model, length=77, layer=0, normed=True, pooled=False)


def vae_decoder() -> Part:
    model = AutoencoderKL(
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=512,
    )
    return vae_parts(model.eval(), 8)[1]


def unet() -> Part:
    model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return unet_part(model.eval(), [], 8)


@dataclass(frozen=True)
class Case:
    """A network, the parameters that it has to have, and its attentions."""

    make: Callable[[], Part]
    parameters: int
    attentions: int


CASES = {
    "text_encoder": Case(text_encoder, 123_060_480, 12),
    "vae_decoder": Case(vae_decoder, 49_490_199, 1),
    "unet": Case(unet, 859_520_964, 32),
}


@pytest.mark.parametrize("name", CASES)
def test_becomes_a_float16_plan(name: str, tmp_path: Path) -> None:
    """At least nine tenths of the products in float16, every attention fused, target met."""
    required_tensorrt("tensorrt-rtx")
    case = CASES[name]

    def parts() -> Iterator[Part]:
        torch.manual_seed(0)
        part = case.make()
        assert sum(value.numel() for value in part.module.parameters()) == case.parameters
        yield part

    plan = Plan("stable-diffusion", "full size", Source("random", "0", seed=0), SETTINGS, {}, parts)
    path = assemble(plan, tmp_path / "full.pixelrt", overwrite=False, report=lambda _: None)
    options = BuildOptions((), precision="float16")
    trt, (request,) = requests_of(path, Wishes(), options, "tensorrt-rtx")
    facts, files, _ = make_plan(request, trt)
    assert len(files[facts.plan]) > 2 * case.parameters
    assert facts.conversion["share"] >= 0.9
    assert facts.conversion["worst_db"] >= request.target_db
    assert facts.report["fused_attentions"] == case.attentions
    work: dict[str, Any] = facts.report["multiply_adds"]
    assert work["float16"] >= 0.9 * sum(work.values())
