"""Swin2SR: our graph against transformers, checkpoints of both forms, refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from pixelrt.errors import CheckpointError
from pixelrt.export.checkpoint import open_checkpoint
from pixelrt.export.families.swin2sr import RECIPE
from pixelrt.export.families.swin2sr_config import DEFAULTS, settle
from pixelrt.export.networks.swin2sr import Order, Orders, Swin2SR, shift_masks, window_kinds
from pixelrt.export.networks.swin2sr_openvino import OpenVINOSwin2SR
from pixelrt.export.networks.zero_channels import whole_blocks
from pixelrt.export.recipe import Config, Network
from tests.export.family_checks import (
    assert_close,
    assert_exports,
    assert_graph_is_reference,
    assert_random_is_useful,
    assert_variant,
    picture,
    run,
)

SMALL: Config = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2]}
ONE_STAGE: Config = {"depths": [2], "num_heads": [2]}
"""A window and a shifted window: every operator, in half the time of an export."""
PARITY = 1e-5
SIZES = ((1, 1, 1), (2, 3, 5), (1, 4, 2), (1, 1, 3))
"""(N, rows of windows, columns of windows)."""

ENLARGING = [
    *[("pixelshuffle", scale) for scale in (1, 2, 3, 4, 8)],
    *[("pixelshuffle_aux", scale) for scale in (2, 3, 4, 8)],
    *[("pixelshuffledirect", scale) for scale in (1, 2, 3, 4, 8)],
    ("nearest+conv", 4),
    ("", 1),
]
OTHER: list[Config] = [
    {"window_size": 7, "image_size": 126, "upsampler": "", "upscale": 1, "img_range": 255.0},
    {"window_size": 7, "num_channels": 1, "upsampler": "", "upscale": 1, "img_range": 255.0},
    {"window_size": 7, "upsampler": "pixelshuffle_aux", "img_range": 255.0},
    {"resi_connection": "3conv", "upsampler": "nearest+conv", "upscale": 4},
    {"num_channels": 1},
    {"num_channels": 1, "num_channels_out": 3, "upsampler": "pixelshuffledirect"},
    {"qkv_bias": False, "hidden_act": "relu", "mlp_ratio": 1.7, "layer_norm_eps": 1e-3},
    {"depths": [1, 3], "num_heads": [3, 2]},
    {"image_size": 8},
    {"image_size": [32, 4]},
    {"image_size": 16, "window_size": 4},
]
MATHS = ("transformers", "authors")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads, on a busy machine for seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sizes(network: Network) -> list[tuple[int, int, int]]:
    """``SIZES`` in pixels."""
    step = network.image.multiple
    return [(n, rows * step, columns * step) for n, rows, columns in SIZES]


def pixels(network: Network, size: tuple[int, int, int]) -> Tensor:
    """A picture ``(N, channels, H, W)`` in [0, 1]; ``size`` counts the grid's cells."""
    n, rows, columns = size
    step = network.image.multiple
    return picture(network.image.channels_in, (n, rows * step, columns * step))


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def check_parity(network: Network) -> None:
    """The graph equals the reference at every size, and the picture matters."""
    assert_graph_is_reference(network, sizes(network), PARITY)
    y = run(network.reference, pixels(network, (2, 2, 3)))
    assert y.std() > 0.03
    assert y.min() >= -1
    assert y.max() <= 2


# The graph ----------------------------------------------------------------------------------


@pytest.mark.parametrize("maths", MATHS)
@pytest.mark.parametrize(("upsampler", "scale"), ENLARGING)
def test_graph_equals_reference(upsampler: str, scale: int, maths: str) -> None:
    config = {**SMALL, "upsampler": upsampler, "upscale": scale, "maths": maths}
    network = RECIPE.random(config, 0)
    check_parity(network)
    assert network.image.scale == scale
    assert network.image.task == ("super-resolution" if scale > 1 else "restoration")


@pytest.mark.parametrize("maths", MATHS)
@pytest.mark.parametrize("config", OTHER, ids=lambda config: "-".join(config))
def test_graph_equals_reference_for_unusual_configurations(config: Config, maths: str) -> None:
    check_parity(RECIPE.random({**SMALL, **config, "maths": maths}, 1))


def test_every_part_of_the_random_network_matters() -> None:
    network = RECIPE.random(SMALL, 0)
    x = pixels(network, (1, 3, 3))
    y = run(network.graph, x)
    graph = network.graph
    assert isinstance(graph, Swin2SR)
    attention: Any = graph.stages[0].get_submodule("layers.1.attention")
    for constant in (graph.masks, attention.bias, attention.norm_factor):
        kept = constant.clone()
        constant.copy_(constant.flatten().roll(1).view_as(constant) * 0.9)
        assert difference(run(graph, x), y) > 1e-3
        constant.copy_(kept)
    assert difference(run(graph, x), y) == 0


def test_every_part_of_the_form_for_openvino_matters() -> None:
    network = RECIPE.random(SMALL, 0)
    x = pixels(network, (1, 3, 3))
    graph: Any = network.variants["openvino"]
    y = run(graph, x)
    layer: Any = graph.stages[0].get_submodule("layers.1")
    attention = layer.own_attention
    for part in (
        *(attention.bias, attention.query_norms.sum.weight, attention.key_norms.sum.weight),
        *(layer.bias1, layer.bias2, layer.norm1.weight, layer.norm2.weight, graph.masks),
        *(graph.head.last.bias, graph.head.last.conv.weight[:3], graph.head.last.conv.weight[3:]),
    ):
        kept = part.clone()
        part.copy_(part.flatten().roll(1).view_as(part) * 0.5)
        assert difference(run(graph, x), y) > 1e-4
        part.copy_(kept)
    assert difference(run(graph, x), y) == 0


@pytest.mark.parametrize("connection", ["1conv", "3conv"])
def test_channels_are_filled_up_to_whole_blocks_for_openvino(connection: str) -> None:
    """60 channels become 64, heads of 30 become 32; the picture stays."""
    config = {**SMALL, "embed_dim": 60, "num_heads": [2, 2], "resi_connection": connection}
    network = RECIPE.random(config, 2)
    graph: Any = network.variants["openvino"]
    layer: Any = graph.stages[0].get_submodule("layers.1")
    assert tuple(layer.up.weight.shape) == (128, 64)
    assert tuple(layer.own_attention.key.weight.shape) == (64, 64)
    assert layer.own_attention.head_size == 32
    check_parity(network)


def test_blocks_are_filled_up_only_where_that_adds_little() -> None:
    assert [whole_blocks(n) for n in (10, 30, 32, 60, 64, 120, 180, 360)] == [
        *(10, 32, 32, 64, 64, 128, 192, 384)
    ]


def test_tokens_of_zero_norm_attend_evenly() -> None:
    """A query or key of zeros has all cosines zero, not undefined ones."""
    network = RECIPE.random({**SMALL, "qkv_bias": False}, 0)
    model: Any = network.reference.get_submodule("model")
    for stage in model.swin2sr.encoder.stages:
        for layer in stage.layers:
            layer.attention.self.query.weight[:6] = 0
            layer.attention.self.key.weight[6:] = 0
    x = pixels(network, (1, 2, 2))
    for form in (Swin2SR, OpenVINOSwin2SR):
        assert_close(run(form(model, "transformers"), x), run(network.reference, x), PARITY)


def test_random_weights_are_useful() -> None:
    assert_random_is_useful(RECIPE, {**SMALL, "upsampler": "pixelshuffledirect"})


def test_parts_of_the_image_do_not_mix_in_one_batch() -> None:
    network = RECIPE.random(SMALL, 0)
    x = pixels(network, (3, 2, 3))
    for graph in (network.graph, *network.variants.values()):
        whole = run(graph, x)
        for i in range(3):
            assert_close(run(graph, x[i : i + 1]), whole[i : i + 1], 1e-6)


def test_orders_undo_each_other() -> None:
    orders = Orders((2, 8, 12), 4, 2, torch.device("cpu"))
    tokens = torch.arange(2 * 8 * 12)
    names: tuple[Order, ...] = ("image", "window", "shifted")
    for a in names:
        for b in names:
            if a != b:
                there, back = orders.index(a, b), orders.index(b, a)
                assert torch.equal(tokens[there][back], tokens)
    first = tokens[orders.index("image", "shifted")][:4]
    assert first.tolist() == [2 * 12 + 2, 2 * 12 + 3, 2 * 12 + 4, 2 * 12 + 5]


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 16, 24), (1, 8, 24), (1, 24, 8)])
def test_masks_are_those_of_the_library(size: tuple[int, int, int]) -> None:
    layer = library_model({**SMALL}).swin2sr.encoder.stages[0].layers[1]
    wanted = 2 * layer.get_attn_mask(*size[1:], torch.float32)
    kinds = window_kinds(size, 8, torch.device("cpu"))
    found = shift_masks(8, 4, -200.0)[kinds][:, 0]
    assert torch.equal(found, wanted.repeat(size[0], 1, 1))


def test_the_library_adds_its_mask_twice() -> None:
    """What -200 here and the halved mask in AuthorsReference rest on."""
    attention = library_model({**SMALL}).swin2sr.encoder.stages[0].layers[1].attention
    windows, mask = torch.zeros(1, 64, 12), torch.zeros(1, 64, 64)
    mask[0, 0, 5] = -1
    with torch.no_grad():
        plain = attention(windows, None, output_attentions=True)[1].log()
        masked = attention(windows, mask, output_attentions=True)[1].log()
    change = (masked - plain)[0, 0, 0]
    assert math.isclose(float(change[5] - change[4]), -2, abs_tol=1e-4)


def test_export_leaves_the_global_seed_and_the_model_alone() -> None:
    before = torch.get_rng_state()
    a = RECIPE.random({**SMALL, "maths": "authors"}, 7)
    assert torch.equal(torch.get_rng_state(), before)
    x = pixels(a, (1, 2, 2))
    y = run(a.reference, x)
    a.graph.double()
    assert difference(run(a.reference, x), y) == 0
    b, c = RECIPE.random({**SMALL, "maths": "authors"}, 7), RECIPE.random(SMALL, 8)
    assert difference(run(b.reference, x), y) == 0
    assert difference(run(c.reference, x), y) > 0.01


# The authors' maths -------------------------------------------------------------------------


def test_authors_maths_without_upsampler() -> None:
    config = {**SMALL, "upsampler": "", "upscale": 1, "img_range": 255.0, "window_size": 7}
    library, authors = (RECIPE.random({**config, "maths": m}, 0) for m in MATHS)
    x = pixels(library, (1, 2, 3))
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    wanted = x + ((run(library.reference, x) - mean) * 255 - x) / 255
    assert_close(run(authors.reference, x), wanted, PARITY)
    assert difference(run(library.reference, x), wanted) > 0.1


def test_authors_maths_with_aux() -> None:
    """Normalising first moves what ``conv_bicubic`` sees; undoing that gives the library's."""
    config = {**SMALL, "upsampler": "pixelshuffle_aux", "upscale": 2}
    library, authors = (RECIPE.random({**config, "maths": m}, 0) for m in MATHS)
    x = pixels(library, (1, 2, 3))
    y = run(library.reference, x)
    assert difference(run(authors.reference, x), y) > 0.01
    model: Any = library.reference.get_submodule("model")
    upsample, final = model.upsample.conv_bicubic, model.upsample.final_convolution
    large = torch.nn.functional.interpolate(x, scale_factor=2, mode="bicubic")
    mean = model.swin2sr.mean
    with torch.no_grad():
        moved = upsample(large - mean) - upsample(large)
        correction = final(moved) - final(torch.zeros_like(moved))
    assert_close(run(authors.reference, x), y + correction, PARITY)


# Checkpoints of transformers ----------------------------------------------------------------


def library_model(config: Config) -> Swin2SRForImageSuperResolution:
    """A library model with weights that matter."""
    network = RECIPE.random(config, 3)
    model = network.reference.get_submodule("model")
    assert isinstance(model, Swin2SRForImageSuperResolution)
    return model


def weights(model: Swin2SRForImageSuperResolution) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_folder_of_transformers(tmp_path: Path, dtype: torch.dtype) -> None:
    config = {**SMALL, "upsampler": "pixelshuffledirect", "upscale": 3, "window_size": 4}
    model = library_model(config).to(dtype)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    (tensors,) = checkpoint.groups.values()
    assert_variant(RECIPE, "transformers", tensors)
    assert set(tensors) == set(load_file(tmp_path / "model.safetensors"))
    network = RECIPE.load("transformers", tensors, checkpoint.config)
    x = pixels(network, (1, 2, 3))
    model = Swin2SRForImageSuperResolution.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        wanted = model(x).reconstruction
    assert difference(run(network.reference, x), wanted) == 0
    assert_close(run(network.graph, x), wanted, PARITY)
    assert network.config == settle({"maths": "transformers"}, config)


@pytest.mark.parametrize(
    ("upsampler", "scale", "channels"),
    [
        (upsampler, scale, channels)
        for upsampler, scale in ENLARGING
        for channels in ((3,) if upsampler == "pixelshuffle_aux" else (1, 3))
    ],
)
def test_configuration_is_read_off_transformers_weights(
    upsampler: str, scale: int, channels: int
) -> None:
    config = {**SMALL, "upsampler": upsampler, "upscale": scale, "num_channels": channels}
    config |= {"depths": [1, 3], "num_heads": [3, 2], "mlp_ratio": 1.7, "qkv_bias": False}
    given = {"window_size": 8, "img_range": 1.0} if upsampler == "" else None
    network = RECIPE.load("transformers", weights(library_model(config)), given)
    settled = settle({"maths": "transformers"}, config)
    assert {**network.config, "mlp_ratio": 1.7} == settled
    assert int(12 * network.config["mlp_ratio"]) == int(12 * 1.7)


def test_window_of_a_network_without_upsampler_has_to_be_given() -> None:
    config = {**SMALL, "upsampler": "", "upscale": 1, "img_range": 255.0, "window_size": 7}
    tensors = weights(library_model(config))
    for given in (None, {"window_size": 7}):
        with pytest.raises(CheckpointError, match=r"do not say .*img_range"):
            RECIPE.load("transformers", tensors, given)
    network = RECIPE.load("transformers", tensors, {"window_size": 7, "img_range": 255})
    assert network.config == settle({"maths": "transformers"}, config)
    by_default = RECIPE.load("transformers", tensors, {"model_type": "swin2sr"})
    assert by_default.config["window_size"] == 8


# Checkpoints of the authors -----------------------------------------------------------------


@dataclass(frozen=True)
class AuthorsFile:
    tensors: dict[str, Tensor]
    settled: Config
    network: Network


def authors_file(config: Config) -> AuthorsFile:
    """The library's weights under the authors' names, with the buffers that they save."""
    network = RECIPE.random({**SMALL, **config, "maths": "authors"}, 5)
    model = network.reference.get_submodule("model")
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for i, depth in enumerate(network.config["depths"]):
        for j in range(depth):
            tensors.update(authors_block(state, i, j))
            tensors.update(authors_buffers(network.config, i, j))
        tensors.update(renamed(state, f"swin2sr.encoder.stages.{i}.conv.", f"layers.{i}.conv."))
        old = f"swin2sr.encoder.stages.{i}.patch_embed.projection."
        tensors.update(renamed(state, old, f"layers.{i}.patch_embed.proj."))
    for old, new in {
        "swin2sr.first_convolution.": "conv_first.",
        "swin2sr.embeddings.patch_embeddings.projection.": "patch_embed.proj.",
        "swin2sr.embeddings.patch_embeddings.layernorm.": "patch_embed.norm.",
        "swin2sr.layernorm.": "norm.",
        "swin2sr.conv_after_body.": "conv_after_body.",
        "upsample.conv_before_upsample.": "conv_before_upsample.0.",
        "upsample.conv.": "upsample.0.",
        "upsample.upsample.convolution.": "upsample.0.",
        "upsample.upsample.convolution_0.": "upsample.0.",
        "upsample.upsample.convolution_1.": "upsample.2.",
        "upsample.upsample.convolution_2.": "upsample.4.",
        "upsample.conv_up": "conv_up",
        "upsample.conv_hr.": "conv_hr.",
        "upsample.conv_bicubic.": "conv_bicubic.",
        "upsample.conv_aux.": "conv_aux.",
        "upsample.conv_after_aux.": "conv_after_aux.",
        "upsample.final_convolution.": "conv_last.",
        "final_convolution.": "conv_last.",
    }.items():
        tensors.update(renamed(state, old, new))
    return AuthorsFile(tensors, network.config, network)


def renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new + n.removeprefix(old): t.clone() for n, t in state.items() if n.startswith(old)}


def authors_block(state: dict[str, Tensor], i: int, j: int) -> dict[str, Tensor]:
    layer = f"swin2sr.encoder.stages.{i}.layers.{j}."
    block = f"layers.{i}.residual_group.blocks.{j}."
    own = layer + "attention.self."
    qkv = [state[f"{own}{part}.weight"] for part in ("query", "key", "value")]
    return {
        block + "attn.qkv.weight": torch.cat(qkv),
        **renamed(state, own + "query.bias", block + "attn.q_bias"),
        **renamed(state, own + "value.bias", block + "attn.v_bias"),
        **renamed(state, own + "logit_scale", block + "attn.logit_scale"),
        **renamed(state, own + "continuous_position_bias_mlp.", block + "attn.cpb_mlp."),
        **renamed(state, layer + "attention.output.dense.", block + "attn.proj."),
        **renamed(state, layer + "layernorm_before.", block + "norm1."),
        **renamed(state, layer + "layernorm_after.", block + "norm2."),
        **renamed(state, layer + "intermediate.dense.", block + "mlp.fc1."),
        **renamed(state, layer + "output.dense.", block + "mlp.fc2."),
    }


def authors_buffers(config: Config, i: int, j: int) -> dict[str, Tensor]:
    window, size = config["window_size"], config["image_size"]
    block = f"layers.{i}.residual_group.blocks.{j}."
    area = min(window, size) ** 2
    buffers = {
        block + "attn.relative_position_index": torch.zeros(area, area, dtype=torch.long),
        block + "attn.relative_coords_table": torch.zeros(1, 2 * window - 1, 2 * window - 1, 2),
    }
    if j % 2 and size > window:
        buffers[block + "attn_mask"] = torch.zeros((size // window) ** 2, area, area)
    return buffers


AUTHORS: list[Config] = [
    *[{"upsampler": upsampler, "upscale": scale} for upsampler, scale in ENLARGING],
    {"upsampler": "", "upscale": 1, "window_size": 7, "image_size": 126, "img_range": 255.0},
    {"upsampler": "", "upscale": 1, "window_size": 7, "img_range": 255.0, "image_size": 63}
    | {"num_channels": 1},
    {"upsampler": "nearest+conv", "upscale": 4, "resi_connection": "3conv"},
    {"qkv_bias": False, "depths": [1, 3], "image_size": 128},
    {"image_size": 8},
]


@pytest.mark.parametrize("config", AUTHORS, ids=lambda c: "-".join(map(str, c.values())))
def test_authors_file(config: Config) -> None:
    file = authors_file(config)
    assert_variant(RECIPE, "authors", file.tensors)
    network = RECIPE.load("authors", file.tensors, None)
    assert network.config == file.settled
    assert network.image == file.network.image
    assert network.image.library_divisor == network.image.multiple
    x = pixels(network, (2, 2, 3))
    wanted = run(file.network.reference, x)
    assert difference(run(network.reference, x), wanted) == 0
    assert_close(run(network.graph, x), wanted, PARITY)


def test_authors_file_without_buffers() -> None:
    file = authors_file({"upsampler": "pixelshuffledirect"})
    ends = ("attn_mask", "relative_position_index", "relative_coords_table")
    bare = {name: tensor for name, tensor in file.tensors.items() if not name.endswith(ends)}
    assert RECIPE.load("authors", bare, None).config == file.settled


def test_maths_can_be_chosen() -> None:
    file = authors_file({"upsampler": "", "upscale": 1})
    network = RECIPE.load("authors", file.tensors, {"maths": "transformers"})
    x = pixels(network, (1, 1, 2))
    assert network.config["maths"] == "transformers"
    assert difference(run(network.reference, x), run(file.network.reference, x)) > 0.1


# Refusals -----------------------------------------------------------------------------------


def damaged(tensors: dict[str, Tensor], kind: str, name: str) -> dict[str, Tensor]:
    if kind == "missing":
        return {n: t for n, t in tensors.items() if n != name}
    changes = {
        "unexpected": torch.zeros(3),
        "other shape": torch.zeros(7),
        "not floating point": torch.zeros(tensors.get(name, torch.zeros(1)).shape).long(),
    }
    return {**tensors, name: changes[kind]}


NORM = {
    "transformers": "swin2sr.encoder.stages.1.layers.0.layernorm_after.weight",
    "authors": "layers.1.residual_group.blocks.0.norm2.weight",
}


@pytest.mark.parametrize("variant", MATHS)
@pytest.mark.parametrize("kind", ["missing", "unexpected", "other shape", "not floating point"])
def test_damaged_weights_are_named(variant: str, kind: str) -> None:
    file = authors_file({})
    tensors = file.tensors if variant == "authors" else weights(library_model(SMALL))
    name = "head.weight" if kind == "unexpected" else NORM[variant]
    with pytest.raises(CheckpointError) as caught:
        RECIPE.load(variant, damaged(tensors, kind, name), None)
    assert name in caught.value.found
    assert "norm1" not in str(caught.value)


@pytest.mark.parametrize("variant", MATHS)
def test_every_single_missing_weight_is_refused(variant: str) -> None:
    file = authors_file({"upsampler": "pixelshuffle_aux"})
    model = library_model({**SMALL, "upsampler": "pixelshuffle_aux"})
    tensors = file.tensors if variant == "authors" else weights(model)
    buffers = ("attn_mask", "relative_position_index", "relative_coords_table")
    for name in tensors:
        if not name.endswith(buffers):
            with pytest.raises(CheckpointError):
                RECIPE.load(variant, damaged(tensors, "missing", name), None)


def refused() -> Iterator[tuple[Config, str]]:
    yield {"upsampler": "nearest+conv", "upscale": 2}, "nearest.conv': 4"
    yield {"upsampler": "pixelshuffle", "upscale": 6}, "3 or a power of two"
    yield {"upsampler": "", "upscale": 2}, "cannot enlarge by 2"
    yield {"upsampler": "pixelshuffle_hf"}, "upsampler"
    yield {"upsampler": "pixelshuffle_aux", "num_channels": 1}, "num_channels"
    yield {"upsampler": "", "upscale": 1, "num_channels_out": 1}, "num_channels_out"
    yield {"num_channels": 4}, "num_channels"
    yield {"num_channels": True}, "num_channels"
    yield {"use_absolute_embeddings": True}, "one image size"
    yield {"patch_size": 2}, "patch_size"
    yield {"embed_dim": 13}, "divisor of embed_dim 13"
    yield {"embed_dim": 0}, "embed_dim"
    yield {"depths": [2]}, "depths and num_heads"
    yield {"depths": 2}, "depths"
    yield {"window_size": 7.5}, "window_size"
    yield {"mlp_ratio": "2"}, "mlp_ratio"
    yield {"mlp_ratio": 0.01}, "mlp_ratio"
    yield {"img_range": 0}, "img_range"
    yield {"image_size": [8, 8, 8]}, "image_size"
    yield {"hidden_act": "no such"}, "hidden_act"
    yield {"hidden_act": ["gelu"]}, "hidden_act"
    yield {"qkv_bias": 1}, "qkv_bias"
    yield {"maths": "mine"}, "maths"
    yield {"embed_dims": 12}, "no key embed_dims"
    yield {"model_type": "swinv2"}, "another network"


@pytest.mark.parametrize(("config", "message"), list(refused()), ids=lambda v: str(v)[:40])
def test_refused_configurations(config: Config, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        RECIPE.random({**SMALL, **config}, 0)
    assert message in str(caught.value) or message.replace(".", "+") in str(caught.value)


def test_configurations_of_the_library_are_taken() -> None:
    library = Swin2SRConfig(**SMALL).to_dict()
    assert RECIPE.random(library, 0).config == RECIPE.random(SMALL, 0).config
    old = {**SMALL, "_name_or_path": "x", "path_norm": True, "torch_dtype": "float32"}
    assert RECIPE.random(old, 0).config == RECIPE.random(SMALL, 0).config
    nothing = {**SMALL, "upsampler": None, "upscale": 1, "patch_size": [1, 1]}
    assert RECIPE.random(nothing, 0).config["upsampler"] == ""


def test_defaults_are_those_of_the_library() -> None:
    library = Swin2SRConfig()
    for key, value in DEFAULTS.items():
        own = getattr(library, key)
        if key != "num_channels_out":
            assert value == (list(own) if isinstance(own, tuple) else own), key


def test_configuration_that_does_not_fit_the_weights() -> None:
    tensors = weights(library_model(SMALL))
    with pytest.raises(CheckpointError) as caught:
        RECIPE.load("transformers", tensors, {"depths": [2, 3]})
    assert "missing: swin2sr.encoder.stages.1.layers.2" in str(caught.value)
    file = authors_file({})
    with pytest.raises(CheckpointError, match="disagree about window_size"):
        RECIPE.load("authors", file.tensors, {"window_size": 7})


def test_networks_that_the_library_lacks() -> None:
    tensors = authors_file({}).tensors
    with pytest.raises(CheckpointError, match="pixelshuffle_hf"):
        RECIPE.load("authors", {**tensors, "layers_hf.0.conv.weight": torch.zeros(1)}, None)
    with pytest.raises(CheckpointError, match="use_absolute_embeddings"):
        RECIPE.load("authors", {**tensors, "absolute_pos_embed": torch.zeros(1, 64, 12)}, None)
    qkv = "layers.0.residual_group.blocks.0.attn.qkv.weight"
    with pytest.raises(CheckpointError, match=r"attn\.qkv\.weight"):
        RECIPE.load("authors", {**tensors, qkv: torch.zeros(12, 12)}, None)


# Facts --------------------------------------------------------------------------------------


def test_image_facts() -> None:
    spec = RECIPE.random(SMALL, 0).image
    assert (spec.multiple, spec.minimum, spec.library_divisor) == (8, 8, 8)
    assert (spec.pad_mode, spec.statistics) == ("symmetric", "local")
    seven = RECIPE.random({**SMALL, "window_size": 7}, 0).image
    assert (seven.multiple, seven.library_divisor) == (7, 0)
    both = RECIPE.random({**SMALL, "window_size": 8, "image_size": 6}, 0).image
    assert (both.multiple, both.library_divisor) == (24, 0)


def test_usual_network_is_the_light_one() -> None:
    network = RECIPE.random(None, 0)
    wanted = {"embed_dim": 60, "depths": [6] * 4, "upsampler": "pixelshuffledirect", "upscale": 2}
    assert {key: network.config[key] for key in wanted} == wanted
    check_parity(network)


# ONNX ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {"upsampler": "pixelshuffledirect", **ONE_STAGE},
        {"upsampler": "pixelshuffle_aux", "upscale": 3, "img_range": 255.0, "maths": "authors"},
        {"upsampler": "nearest+conv", "upscale": 4, "resi_connection": "3conv", **ONE_STAGE},
        {"upsampler": "", "upscale": 1, "window_size": 7, "img_range": 255.0, "num_channels": 1}
        | {"maths": "authors", **ONE_STAGE},
    ],
    ids=lambda config: config["upsampler"] or "none",
)
def test_onnx_is_dynamic_and_exact(config: Config, tmp_path: Path) -> None:
    network = RECIPE.random({**SMALL, **config}, 0)
    operators = assert_exports(network, sizes(network), tmp_path, PARITY)
    layers = sum(network.config["depths"])
    assert operators["Softmax"] == layers
    assert operators["Gemm"] == 4 * layers
    assert not {"ScatterND", "GatherND", "Loop", "If"} & set(operators)
    assert operators.total() < 230
