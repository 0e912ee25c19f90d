"""Pipelines of random weights: sizes of the published ones, seeds, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.diffusion_parts import TINY
from pixelrt.cli.main import run
from pixelrt.errors import CheckpointError, UsageError
from pixelrt.export.diffusion.recipes import plan_of
from pixelrt.export.diffusion.source import build, check_options
from pixelrt.export.diffusion.untrained import open_untrained
from tests.diffusion import models

SIZES = {
    ("stable-diffusion-1.5", "unet"): 859_520_964,
    ("stable-diffusion-1.5", "vae"): 83_653_863,
    ("stable-diffusion-1.5", "text_encoder"): 123_060_480,
    ("stable-diffusion-2.1", "unet"): 865_910_724,
    ("stable-diffusion-2.1", "text_encoder"): 340_387_840,
    ("stable-diffusion-xl", "unet"): 2_567_463_684,
    ("stable-diffusion-xl", "text_encoder"): 123_060_480,
    ("stable-diffusion-xl", "text_encoder_2"): 694_659_840,
}
"""Numbers of weights of the published networks."""


def opened(config: Any, folder: Path, seed: int = 0, tokenizers: tuple[str, ...] = ()) -> Any:
    return open_untrained(config, seed, tokenizers, folder)


@pytest.mark.parametrize(("name", "part"), SIZES, ids=str)
def test_they_are_as_large_as_the_published_ones(name: str, part: str, tmp_path: Path) -> None:
    found = opened(name, tmp_path)
    check_options(found.class_of(part), set(found.config(part)))
    model = build(found.class_of(part), found.config(part), meta=True)
    assert sum(weight.numel() for weight in model.parameters()) == SIZES[name, part]


def test_a_seed_decides_the_weights(tmp_path: Path) -> None:
    one, same, other = (
        opened(TINY, tmp_path / str(n), seed).load("unet") for n, seed in enumerate((5, 5, 6))
    )
    torch.rand(1)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert not torch.equal(one.conv_in.weight, other.conv_in.weight)


def test_the_byte_tokenizer_has_the_ids_of_begin_and_end_and_is_named(tmp_path: Path) -> None:
    found = opened(TINY, tmp_path)
    plan = plan_of(found)
    (text,) = plan.settings.text  # type: ignore[attr-defined]
    assert (text.tokenizer.bos_token_id, text.tokenizer.eos_token_id) == (598, 599)
    assert found.source.name == "stable-diffusion-1.5, changed, byte tokenizer"
    assert (found.source.kind, found.source.seed) == ("random", 0)
    from tokenizers import Tokenizer

    ids = Tokenizer.from_str(plan.assets["tokenizer.json"].decode()).encode("aé").ids
    assert len([one for one in ids if one < 512]) == 3  # a letter for every byte


def test_a_tokenizer_that_is_given_is_taken(tmp_path: Path) -> None:
    models.tokenizer(tmp_path / "clip").save_pretrained(tmp_path / "clip")
    found = opened("stable-diffusion-1.5", tmp_path, tokenizers=(str(tmp_path / "clip"),))
    assert found.tokenizer("tokenizer") == tmp_path / "clip"
    assert "byte" not in found.source.name


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({}, UsageError, "stable-diffusion-1.5"),
        ("stable-diffusion-9", UsageError, "stable-diffusion-9"),
        ({"like": "stable-diffusion-1.5", "text_encoder_2": {}}, UsageError, "text_encoder_2"),
        ({"like": "stable-diffusion-1.5", "unet": {"nix": 1}}, CheckpointError, "nix"),
        ({"like": "stable-diffusion-1.5", "net": {}}, CheckpointError, "net"),
    ],
)
def test_what_is_refused(config: Any, error: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(error) as found:
        opened(config, tmp_path)
    assert words in str(found.value)


def test_a_vae_of_sdxl_that_moves_its_latents_is_refused(tmp_path: Path) -> None:
    vae = {"latents_mean": [0.1] * 4, "latents_std": [2.0] * 4}
    with pytest.raises(CheckpointError, match="latents_mean"):
        plan_of(opened({"like": "stable-diffusion-xl", "vae": vae}, tmp_path))


def test_the_verb_refuses_what_does_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", str(tmp_path / "x.pixelrt")]
    (tmp_path / "c.json").write_text(json.dumps({"like": "nix"}))
    start = ["export", "--family", "diffusion", "--random-init", "1", *out]
    assert run([*start]) == 2
    assert run([*start, "--config", "nix"]) == 2
    assert run([*start, "--config", str(tmp_path / "c.json")]) == 2
    assert run([*start, "--config", "stable-diffusion-1.5", str(tmp_path)]) == 2
    srgan = ["export", "--family", "srgan", "--random-init", "1", *out]
    assert run([*srgan, "--weights", "float16"]) == 2
    assert run([*srgan, "--config", "stable-diffusion-1.5"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "x.pixelrt").exists()
