"""Single-file checkpoints in the original layout against the folders they came from."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as reference
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pixelrt.errors import CheckpointError, PixelrtError, UsageError
from pixelrt.export.diffusion.layouts import configs_of, index_of, layout_of
from pixelrt.export.diffusion.pipeline import export_diffusion
from pixelrt.export.diffusion.prediction import prediction_of
from pixelrt.export.diffusion.recipes import plan_of
from pixelrt.export.diffusion.single_file import SingleFile, check_complete, open_single_file
from pixelrt.export.diffusion.source import open_diffusers
from tests.diffusion import models, original

HIDDEN = {
    "unet": {"attention_head_dim": 4, "norm_num_groups": 8, "sample_size": 16},
    "vae": {"norm_num_groups": 8},
    "text_encoder": {"num_attention_heads": 4},
}
"""What the weights of the small networks do not tell."""
HIDDEN_XL = {**HIDDEN, "text_encoder_2": {"num_attention_heads": 4}}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a single file asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return saved(tmp_path_factory.mktemp("sd-file"), models.stable_diffusion)


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return saved(tmp_path_factory.mktemp("xl-file"), models.stable_diffusion_xl)


def saved(root: Path, make: Callable[[Path], Any]) -> tuple[Any, Path]:
    pipe = make(root)
    save_file(original.pipeline_state(pipe), root / "model.safetensors")
    return pipe, root


def opened(root: Path, config: Any = None, name: str = "model.safetensors") -> SingleFile:
    return open_single_file(root / name, [str(root / "pipe")], HIDDEN if config is None else config)


def assert_same(file: SingleFile, folder: Path) -> None:
    """Every network gives exactly the same, and so does the plan beside the scheduler."""
    ours, theirs = plan_of(file), plan_of(open_diffusers(folder))
    assert (ours.family, ours.variant, ours.assets) == (
        theirs.family,
        theirs.variant,
        theirs.assets,
    )
    for one, other in zip(ours.parts(), theirs.parts(), strict=True):
        assert one.name == other.name
        assert (one.inputs, one.outputs) == (other.inputs, other.outputs)
        for sample, same in zip(one.samples, other.samples, strict=True):
            torch.testing.assert_close(sample, same, rtol=0, atol=0)
        with torch.no_grad():
            found, expected = one.module(*one.samples[0]), other.module(*other.samples[0])
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    names = set(theirs.settings.__struct_fields__) - {"scheduler", "scaling"}
    for name in names:
        assert getattr(ours.settings, name) == getattr(theirs.settings, name), name


def test_stable_diffusion_1_is_what_its_folder_is(sd: tuple[Any, Path]) -> None:
    file = opened(sd[1])
    assert_same(file, sd[1] / "pipe")
    scheduler = file.config("scheduler", "scheduler_config.json")
    assert scheduler["_class_name"] == "PNDMScheduler"
    assert scheduler["prediction_type"] == "epsilon"
    assert file.config("vae")["scaling_factor"] == 0.18215


def test_stable_diffusion_xl_is_what_its_folder_is(xl: tuple[Any, Path]) -> None:
    file = opened(xl[1], HIDDEN_XL)
    assert_same(file, xl[1] / "pipe")
    assert file.config("scheduler")["_class_name"] == "EulerDiscreteScheduler"
    assert file.config("vae")["scaling_factor"] == 0.13025


def test_the_test_writes_what_diffusers_reads(xl: tuple[Any, Path]) -> None:
    pipe, _ = xl
    state = original.pipeline_state(pipe)
    found = reference.convert_ldm_unet_checkpoint(dict(state), dict(pipe.unet.config))
    torch.testing.assert_close(found, dict(pipe.unet.state_dict()), rtol=0, atol=0)
    found = reference.convert_ldm_vae_checkpoint(dict(state), dict(pipe.vae.config))
    torch.testing.assert_close(found, dict(pipe.vae.state_dict()), rtol=0, atol=0)
    found = reference.convert_open_clip_checkpoint(
        pipe.text_encoder_2, dict(state), "conditioner.embedders.1.model."
    )
    torch.testing.assert_close(found, dict(pipe.text_encoder_2.state_dict()), rtol=0, atol=0)


def test_the_unused_last_layer_of_sd_2_is_left_out(sd: tuple[Any, Path], tmp_path: Path) -> None:
    pipe, root = sd
    state = {**original.unet_state(pipe.unet), **original.vae_state(pipe.vae)}
    state |= original.open_clip_state(pipe.text_encoder, "cond_stage_model", unused_layer=True)
    state["cond_stage_model.model.logit_scale"] = torch.tensor(1.0)
    copies = {name: tensor.detach().clone() for name, tensor in state.items()}
    save_file(copies, tmp_path / "two.safetensors")
    more = {"text_encoder": {"num_attention_heads": 4, "hidden_act": "quick_gelu"}}
    file = open_single_file(tmp_path / "two.safetensors", [str(root / "pipe")], {**HIDDEN, **more})
    assert_same(file, root / "pipe")
    # The small UNet has random weights: nothing of its input is in its output.
    assert file.config("scheduler")["prediction_type"] == "v_prediction"
    given = {**HIDDEN, **more, "scheduler": {"prediction_type": "epsilon"}}
    file = open_single_file(tmp_path / "two.safetensors", [str(root / "pipe")], given)
    assert file.config("scheduler")["_class_name"] == "PNDMScheduler"


def test_half_precision_in_a_pickle_beside_other_things(
    sd: tuple[Any, Path], tmp_path: Path
) -> None:
    pipe, root = sd
    state = {name: tensor.half() for name, tensor in original.pipeline_state(pipe).items()}
    ema = {"model_ema.decay": torch.tensor(0.9999), "betas": torch.linspace(0, 1, 10)}
    position = {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]
    }
    whole = {"state_dict": {**state, **ema, **position}, "global_step": 470000}
    torch.save(whole, tmp_path / "model.ckpt")
    file = open_single_file(tmp_path / "model.ckpt", [str(root / "pipe" / "tokenizer")], HIDDEN)
    for part in ("unet", "vae", "text_encoder"):
        found = file.load(part).state_dict()
        expected = getattr(pipe, part).state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, expected[name].half().float(), rtol=0, atol=0)


# -- the published networks, by shapes alone ------------------------------------------------

VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4}
SD1 = {
    "in_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD2 = {
    **SD1,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
XL = {
    "in_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER = {
    **XL,
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "attention_head_dim": [6, 12, 24, 24],
    "projection_class_embeddings_input_dim": 2560,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
CLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
PUBLISHED = {
    "SD 1.5": (SD1, {"text_encoder": CLIP_L}, "StableDiffusionPipeline"),
    "SD 1.5 inpainting": (
        {**SD1, "in_channels": 9},
        {"text_encoder": CLIP_L},
        "StableDiffusionInpaintPipeline",
    ),
    "SD 2.1": (SD2, {"text_encoder": CLIP_H}, "StableDiffusionPipeline"),
    "SDXL": (
        XL,
        {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
        "StableDiffusionXLPipeline",
    ),
    "SDXL inpainting": (
        {**XL, "in_channels": 9},
        {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
        "StableDiffusionXLInpaintPipeline",
    ),
    "SDXL refiner": (REFINER, {"text_encoder_2": CLIP_G}, "StableDiffusionXLImg2ImgPipeline"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_are_found_by_their_shapes(name: str) -> None:
    unet, texts, pipeline = PUBLISHED[name]
    with torch.device("meta"):
        state = original.unet_state(UNet2DConditionModel(**unet))
        state |= original.vae_state(
            AutoencoderKL(
                **VAE,
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
            )
        )
        for number, (part, config) in enumerate(texts.items()):
            prefix = f"conditioner.embedders.{number}" if "XL" in name else "cond_stage_model"
            if part == "text_encoder_2":
                model = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=49408, **config))
                state |= original.open_clip_state(model, prefix)
                continue
            model = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **config))
            if config is CLIP_L:
                state |= original.clip_state(model, prefix)
            else:
                state |= original.open_clip_state(model, prefix, unused_layer=True)
    layout = layout_of(state, name)
    configs = configs_of(state, layout, {})
    depth = unet.get("transformer_layers_per_block", 1)
    depths = depth if isinstance(depth, list) else [depth] * len(unet["block_out_channels"])
    plain = [kind == "DownBlock2D" for kind in unet["down_block_types"]]
    # The depth of a block without attention is of no effect, but for the last: the middle's.
    depths = [1 if p else d for p, d in zip(plain[:-1], depths[:-1], strict=True)] + depths[-1:]
    for key, value in {**unet, "transformer_layers_per_block": depths}.items():
        assert configs["unet"][key] == value, key
    for key, value in VAE.items():
        assert configs["vae"][key] == value, key
    for part, config in texts.items():
        for key, value in {**config, "vocab_size": 49408, "max_position_embeddings": 77}.items():
            assert configs[part][key] == value, (part, key)
        assert configs[part]["eos_token_id"] == 49407
    index = index_of(layout, configs["unet"], name)
    assert index["_class_name"] == pipeline
    # Every weight of the networks described is there, in the right shape.
    check_complete(SingleFile(Path(name), name, index, configs, state, layout, {}))


def test_what_is_predicted_is_told_from_the_last_step() -> None:
    """The best networks there are for data of deviation 0.7: linear ones."""
    alpha2, deviation = 0.0047, 0.7
    alpha, sigma = alpha2**0.5, (1 - alpha2) ** 0.5
    whole = alpha2 * deviation**2 + sigma**2

    def epsilon(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        assert time.tolist() == [999.0]
        return sigma / whole * x

    def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return alpha * epsilon(x, time) - sigma * (alpha * deviation**2 / whole * x + 0.3)

    assert prediction_of(epsilon, 4) == "epsilon"
    assert prediction_of(velocity, 4) == "v_prediction"


# -- refusals -------------------------------------------------------------------------------


def changed(root: Path, target: Path, change: Callable[[original.State], Any]) -> Path:
    from safetensors.torch import load_file

    state = load_file(root / "model.safetensors")
    change(state)
    save_file(state, target / "changed.safetensors")
    return target / "changed.safetensors"


OUT = "model.diffusion_model.out.2.bias"
CASES: dict[str, tuple[Callable[[original.State], Any], str]] = {
    "a weight is missing": (lambda s: s.pop(OUT), "no out.2.bias (1 in all)"),
    "a weight has another shape": (
        lambda s: s.update({OUT: torch.zeros(5)}),
        "out.2.bias (5,) for (4,)",
    ),
    "the first convolution is missing": (
        lambda s: s.pop("model.diffusion_model.input_blocks.0.0.weight"),
        "expected: input_blocks.0.0.weight",
    ),
    "the UNet has more": (
        lambda s: s.update({"model.diffusion_model.motion.weight": torch.zeros(2)}),
        "model.diffusion_model.motion.weight",
    ),
    "there is no VAE": (
        lambda s: [s.pop(n) for n in list(s) if n.startswith("first_stage_model.")],
        "expected: encoder.conv_in.weight",
    ),
    "there is no text encoder": (
        lambda s: [s.pop(n) for n in list(s) if n.startswith("cond_stage_model.")],
        "no text encoder of a known layout",
    ),
    "there is no UNet": (
        lambda s: [s.pop(n) for n in list(s) if n.startswith("model.")],
        "is no Stable Diffusion checkpoint",
    ),
    "a matrix is a vector": (
        lambda s: s.update(
            {
                "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (
                    torch.zeros(3)
                )
            }
        ),
        "found: shape (3,)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_whole_is_told(case: str, sd: tuple[Any, Path], tmp_path: Path) -> None:
    change, said = CASES[case]
    path = changed(sd[1], tmp_path, change)
    with pytest.raises(CheckpointError) as caught:
        open_single_file(path, [str(sd[1] / "pipe")], HIDDEN)
    assert said in str(caught.value)


def test_a_damaged_file(sd: tuple[Any, Path], tmp_path: Path) -> None:
    whole = (sd[1] / "model.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        open_single_file(tmp_path / "half.safetensors", [str(sd[1] / "pipe")], HIDDEN)


def test_what_shapes_do_not_tell_is_asked_for(sd: tuple[Any, Path]) -> None:
    with pytest.raises(CheckpointError) as caught:
        opened(sd[1], {})
    assert "--config FILE with attention_head_dim, norm_num_groups under 'unet'" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"unets": {}}, "found: unets"),
        ({"unet": 3}, "found: unet"),
        ({**HIDDEN, "vae": {"norm_num_groups": 8, "channels": 3}}, "found: channels"),
        ({**HIDDEN, "unet": {"attention_head_dim": 4, "norm_num_groups": 7}}, "describes no UNet"),
    ],
)
def test_a_wrong_configuration(config: Any, said: str, sd: tuple[Any, Path]) -> None:
    with pytest.raises(CheckpointError) as caught:
        opened(sd[1], config)
    assert said in str(caught.value)


def test_the_vocabulary_has_to_be_given(sd: tuple[Any, Path], xl: tuple[Any, Path]) -> None:
    with pytest.raises(UsageError, match="vocabulary") as caught:
        open_single_file(sd[1] / "model.safetensors", [], HIDDEN)
    assert "--tokenizer FOLDER" in str(caught.value)
    with pytest.raises(UsageError) as caught:
        open_single_file(xl[1] / "model.safetensors", [str(xl[1] / "pipe/tokenizer")], HIDDEN_XL)
    assert "2: tokenizer and tokenizer_2" in str(caught.value)


def test_options_of_files_are_refused_for_folders(sd: tuple[Any, Path], tmp_path: Path) -> None:
    for more in ({"tokenizers": ["x"]}, {"config": {}}):
        with pytest.raises(PixelrtError, match="single checkpoint file only"):
            export_diffusion(sd[1] / "pipe", tmp_path / "a.pixelrt", **more)


@pytest.mark.slow
def test_the_command_writes_a_bundle_that_draws_and_is_what_diffusers_is(
    sd: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference of the whole has the LoRA merged, too."""
    from pixelrt.cli.main import run

    layer = "lora_unet_up_blocks_0_resnets_1_conv1"
    lora = {"lora_down": torch.randn(4, 48, 3, 3), "lora_up": torch.randn(32, 4, 1, 1)}
    save_file({f"{layer}.{n}.weight": v for n, v in lora.items()}, tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(HIDDEN))
    arguments = ["export", sd[1] / "model.safetensors", "-o", tmp_path / "a.pixelrt", "-q"]
    arguments += ["--family", "diffusion", "--tokenizer", sd[1] / "pipe"]
    arguments += ["--config", tmp_path / "config.json", "--lora", tmp_path / "a.safetensors:0.2"]
    assert run([str(one) for one in arguments]) == 0
    arguments = ["txt2img", tmp_path / "a.pixelrt", "-p", "a cat", "-o", tmp_path / "cat.png"]
    arguments += ["--steps", "2", "--size", "64"]
    assert run([str(one) for one in arguments]) == 0
    assert (tmp_path / "cat.png").is_file()
    arguments = ["verify", str(tmp_path / "a.pixelrt"), "--backend", "onnxruntime-cpu"]
    assert run(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("-to-image") == 2
    assert "14 of 14 checks passed" in said
