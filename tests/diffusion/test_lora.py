"""LoRA files merged at export, against the literal formula."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pixelrt.cli.export import _lora
from pixelrt.errors import CheckpointError, UsageError
from pixelrt.export.diffusion.lora import LoraFile, merge, read_loras
from pixelrt.export.diffusion.recipes import plan_of
from pixelrt.export.diffusion.source import DiffusersFolder, open_diffusers
from tests.diffusion import models

RANK = 3


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, DiffusersFolder]:
    root = tmp_path_factory.mktemp("sd-lora")
    return models.stable_diffusion(root), open_diffusers(root / "pipe")


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, DiffusersFolder]:
    root = tmp_path_factory.mktemp("xl-lora")
    return models.stable_diffusion_xl(root), open_diffusers(root / "pipe")


def layer_of(model: Any, name: str) -> Any:
    names = dict(model.named_modules())
    return names.get(name) or names[f"text_model.{name}"]


def pair(weight: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Down and up for a weight, of rank 3."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn((RANK, *weight.shape[1:]), generator=generator)
    ones = (1,) * (weight.ndim - 2)
    return down, torch.randn((weight.shape[0], RANK, *ones), generator=generator)


def literal(weight: Tensor, down: Tensor, up: Tensor, factor: float) -> Tensor:
    """The convolution with ``down``, then the one with ``up``, as one; ``ihw`` of a kernel."""
    if weight.ndim == 2:
        return weight + factor * torch.einsum("or,ri->oi", up, down)
    return weight + factor * torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)


UNET = {
    "a linear layer": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "the output of attention": "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "a convolution of 1 x 1": "down_blocks.1.attentions.0.proj_in",
    "a convolution of 3 x 3": "up_blocks.0.resnets.1.conv1",
    "a halving": "down_blocks.0.downsamplers.0.conv",
    "the time": "time_embedding.linear_1",
}
TEXT = {
    "a text layer": "encoder.layers.1.self_attn.q_proj",
    "a wide one": "encoder.layers.0.mlp.fc1",
}
TARGETS = [
    *(("unet", one) for one in UNET.values()),
    *(("text_encoder", one) for one in TEXT.values()),
]


def kohya(part: str, layer: str) -> tuple[str, str, str]:
    name = layer.replace(".", "_")
    stem = f"lora_unet_{name}" if part == "unet" else f"lora_te_text_model_{name}"
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


def peft(part: str, layer: str) -> tuple[str, str, str]:
    stem = f"unet.{layer}" if part == "unet" else f"text_encoder.text_model.{layer}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"


def diffusers(part: str, layer: str) -> tuple[str, str, str]:
    stem = f"unet.{layer}" if part == "unet" else f"text_encoder.text_model.{layer}"
    kind = "lora" if part == "unet" else "lora_linear_layer"
    return f"{stem}.{kind}.down.weight", f"{stem}.{kind}.up.weight", f"{stem}.alpha"


def processors(part: str, layer: str) -> tuple[str, str, str]:
    """As diffusers wrote them until 2023; attention of the UNet and of the text encoder only."""
    head, _, last = layer.removesuffix(".0").rpartition(".")
    last = last if part == "unet" else f"to_{last.removesuffix('_proj')}"
    middle = ".processor." if part == "unet" else "."
    stem = f"{'unet' if part == 'unet' else 'text_encoder.text_model'}.{head}{middle}{last}_lora"
    return f"{stem}.down.weight", f"{stem}.up.weight", ""


LAYOUTS = {"kohya": kohya, "peft": peft, "diffusers": diffusers, "processors": processors}


def models_of(pipe: Any) -> dict[str, Any]:
    return {"unet": pipe.unet, "text_encoder": pipe.text_encoder}


@pytest.mark.parametrize("alpha", [None, 1.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_adds_what_the_formula_says(
    layout: str, alpha: float | None, sd: tuple[Any, DiffusersFolder], tmp_path: Path
) -> None:
    pipe, folder = sd
    targets = TARGETS
    if layout == "processors":
        targets = [(part, one) for part, one in TARGETS if ".to_" in one or "self_attn" in one]
    state: dict[str, Tensor] = {}
    expected: dict[tuple[str, str], Tensor] = {}
    with_alpha = alpha is not None and layout != "processors"
    for seed, (part, name) in enumerate(targets):
        weight = layer_of(models_of(pipe)[part], name).weight.detach()
        down, up = pair(weight, seed)
        names = LAYOUTS[layout](part, name)
        state |= {names[0]: down, names[1]: up}
        if with_alpha:
            state[names[2]] = torch.tensor(alpha)
        strength = alpha / RANK if with_alpha and alpha is not None else 1.0
        expected[part, name] = literal(weight, down, up, 0.7 * strength)
    save_file(state, tmp_path / "style.safetensors")
    updates = read_loras([LoraFile(tmp_path / "style.safetensors", 0.7)], folder)
    for part, model in models_of(pipe).items():
        merged = copy.deepcopy(model)
        merge(merged, updates[part])
        changed = {name for where, name in targets if where == part}
        for name, module in merged.named_modules():
            if not hasattr(module, "weight"):
                continue
            bare = name.removeprefix("text_model.")
            before = layer_of(model, bare).weight
            after = expected[part, bare] if bare in changed else before
            torch.testing.assert_close(module.weight, after, rtol=1e-5, atol=1e-5)
            assert (bare in changed) != torch.equal(module.weight, before)


def test_sdxl_layers_named_as_in_the_original(
    xl: tuple[Any, DiffusersFolder], tmp_path: Path
) -> None:
    pipe, folder = xl
    names = {
        "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q": (
            "unet",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        "lora_unet_middle_block_1_proj_in": ("unet", "mid_block.attentions.0.proj_in"),
        "lora_unet_output_blocks_1_2_conv": ("unet", "up_blocks.0.upsamplers.0.conv"),
        "lora_unet_input_blocks_1_0_emb_layers_1": (
            "unet",
            "down_blocks.0.resnets.0.time_emb_proj",
        ),
        "lora_unet_label_emb_0_2": ("unet", "add_embedding.linear_2"),
        "lora_te1_text_model_encoder_layers_0_mlp_fc2": (
            "text_encoder",
            "encoder.layers.0.mlp.fc2",
        ),
        "lora_te2_text_model_encoder_layers_2_self_attn_v_proj": (
            "text_encoder_2",
            "encoder.layers.2.self_attn.v_proj",
        ),
    }
    for seed, (key, (part, name)) in enumerate(names.items()):
        weight = layer_of(getattr(pipe, part), name).weight.detach()
        down, up = pair(weight, seed)
        path = tmp_path / f"{seed}.safetensors"
        save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, path)
        updates = read_loras([LoraFile(path)], folder)
        assert {where for where, found in updates.items() if found} == {part}
        merged = copy.deepcopy(getattr(pipe, part))
        merge(merged, updates[part])
        found = layer_of(merged, name).weight
        torch.testing.assert_close(found, literal(weight, down, up, 1.0), rtol=1e-5, atol=1e-5)


def test_several_files_add_up_in_the_plan(sd: tuple[Any, DiffusersFolder], tmp_path: Path) -> None:
    pipe, folder = sd
    name = "encoder.layers.1.self_attn.q_proj"
    weight = layer_of(pipe.text_encoder, name).weight.detach()
    expected, files = weight, []
    for seed, scale in ((1, 0.5), (2, -1.0)):
        down, up = pair(weight, seed)
        path = tmp_path / f"{seed}.safetensors"
        keys = kohya("text_encoder", name)
        save_file(dict(zip(keys, (down.half(), up.half()), strict=False)), path)
        expected = literal(expected, down.half().float(), up.half().float(), scale)
        files.append(LoraFile(path, scale))
    plan, plain = plan_of(folder, loras=files), plan_of(folder)
    first = next(plan.parts())
    found = layer_of(first.module.model, name).weight
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert plan.source.name == "pipe + 1.safetensors:0.5 + 2.safetensors:-1"
    assert plan.source.sha256 != plain.source.sha256
    again = plan_of(folder, loras=[files[0], LoraFile(files[1].path, 1.0)])
    assert again.choices != plan.choices


def test_alpha_of_peft_in_the_metadata(sd: tuple[Any, DiffusersFolder], tmp_path: Path) -> None:
    pipe, folder = sd
    layer = UNET["a linear layer"]
    weight = layer_of(pipe.unet, layer).weight.detach()
    down, up = pair(weight, 0)
    state = dict(zip(peft("unet", layer), (down, up), strict=False))
    path = tmp_path / "a.safetensors"
    for settings, alpha in (
        ({"unet.lora_alpha": 6, "unet.r": RANK}, 6.0),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 9}}, 9.0),
        ({}, float(RANK)),
    ):
        save_file(state, path, metadata={"lora_adapter_metadata": json.dumps(settings)})
        ((_, update),) = read_loras([LoraFile(path)], folder)["unet"]
        assert update.factor == alpha / RANK
    save_file(state, path, metadata={"lora_adapter_metadata": '{"unet.use_rslora": true}'})
    with pytest.raises(CheckpointError, match="not merged"):
        read_loras([LoraFile(path)], folder)


KEY = "lora_unet_mid_block_attentions_0_proj_in"
DOWN, UP = f"{KEY}.lora_down.weight", f"{KEY}.lora_up.weight"
GOOD = {DOWN: torch.zeros(3, 32, 1, 1), UP: torch.zeros(32, 3, 1, 1)}
REFUSED = {
    "a layer that is not there": (
        {**GOOD, "lora_unet_nothing.lora_up.weight": torch.zeros(2, 2)},
        "1 keys that fit no layer: lora_unet_nothing.lora_up.weight",
    ),
    "another kind of adapter": (
        {**GOOD, f"{KEY}.dora_scale": torch.zeros(32)},
        f"keys that fit no layer: {KEY}.dora_scale",
    ),
    "half of a pair": ({DOWN: GOOD[DOWN]}, f"{KEY}: down (3, 32, 1, 1) for a weight"),
    "other inputs": ({**GOOD, DOWN: torch.zeros(3, 31, 1, 1)}, "down (3, 31, 1, 1)"),
    "other outputs": ({**GOOD, UP: torch.zeros(64, 3, 1, 1)}, "up (64, 3, 1, 1)"),
    "another rank": ({**GOOD, UP: torch.zeros(32, 2, 1, 1)}, "up (32, 2, 1, 1)"),
    "another kernel": ({**GOOD, DOWN: torch.zeros(3, 32, 3, 3)}, "down (3, 32, 3, 3)"),
    "no number": (
        {**GOOD, f"{KEY}.alpha": torch.tensor(float("nan"))},
        "alpha ()",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_listed(
    case: str, sd: tuple[Any, DiffusersFolder], tmp_path: Path
) -> None:
    state, said = REFUSED[case]
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        plan_of(sd[1], loras=[LoraFile(tmp_path / "a.safetensors")])
    assert said in str(caught.value)


def test_the_scale_is_after_the_last_colon(tmp_path: Path) -> None:
    assert _lora("a.safetensors") == LoraFile(Path("a.safetensors"), 1.0)
    assert _lora("a.safetensors:-0.5") == LoraFile(Path("a.safetensors"), -0.5)
    odd = tmp_path / "a:2"
    odd.write_bytes(b"")
    assert _lora(str(odd)) == LoraFile(odd, 1.0)
    for text in ("a.safetensors:much", "a.safetensors:nan", "a.safetensors:"):
        with pytest.raises(UsageError, match="no number"):
            _lora(text)
