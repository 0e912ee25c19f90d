"""CycleGAN: names, detection, value range, folding, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from pixelrt.errors import CheckpointError
from pixelrt.export.families import cyclegan
from pixelrt.export.networks.cyclegan import ChapterResNet, DeconvResNet
from pixelrt.export.recipe import Config, Network
from tests.export import family_checks as checks

RECIPE = cyclegan.RECIPE
SMALL: Config = {"width": 8, "blocks": 2}
CONFIGS: dict[str, Config] = {
    "chapter": {"variant": "chapter", **SMALL},
    "instance": {"variant": "resnet", **SMALL},
    "dropout": {"variant": "resnet", **SMALL, "dropout": True},
    "batch": {"variant": "resnet", **SMALL, "norm": "batch"},
    "batch-image": {"variant": "resnet", **SMALL, "norm": "batch", "norm_statistics": "image"},
    "none": {"variant": "resnet", **SMALL, "norm": "none"},
    "grey-to-rgb": {"variant": "resnet", **SMALL, "channels_in": 1},
}
SIZES = [(1, 8, 8), (2, 24, 36), (1, 40, 8)]

# All parameters, of the book's network and of junyanz's with instance norm, with two blocks.
CHAPTER_LAYERS = [
    "model.1",
    "model.4",
    "model.7",
    "model.10.block.1",
    "model.10.block.5",
    "model.11.block.1",
    "model.11.block.5",
    "model.13",
    "model.17",
    "model.21",
]
RESNET_LAYERS = [
    "model.1",
    "model.4",
    "model.7",
    "model.10.conv_block.1",
    "model.10.conv_block.5",
    "model.11.conv_block.1",
    "model.11.conv_block.5",
    "model.12",
    "model.15",
    "model.19",
]
# junyanz's with batch norm and dropout, one block: convolutions, then norms.
DROPOUT_CONVOLUTIONS = [
    "model.1",
    "model.4",
    "model.7",
    "model.10.conv_block.1",
    "model.10.conv_block.6",
    "model.11",
    "model.14",
    "model.18",
]
DROPOUT_NORMS = [
    "model.2",
    "model.5",
    "model.8",
    "model.10.conv_block.2",
    "model.10.conv_block.7",
    "model.12",
    "model.15",
]
NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(params=CONFIGS, scope="module")
def network(request: pytest.FixtureRequest) -> Network:
    return RECIPE.random(CONFIGS[request.param], 0)


@pytest.fixture(params=[name for name in CONFIGS if name != "batch-image"], scope="module")
def saved(request: pytest.FixtureRequest) -> Network:
    """One whose state dict is that of a checkpoint: with its batch norms, if it has any."""
    return RECIPE.random(CONFIGS[request.param], 0)


def both(layers: list[str]) -> set[str]:
    return {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def test_parameter_names_are_the_official_ones() -> None:
    assert set(checks.shapes(lambda: ChapterResNet(blocks=2))) == both(CHAPTER_LAYERS)
    assert set(checks.shapes(lambda: DeconvResNet(blocks=2))) == both(RESNET_LAYERS)
    batch = checks.shapes(lambda: DeconvResNet(blocks=1, norm="batch", dropout=True))
    norms = {f"{layer}.{part}" for layer in DROPOUT_NORMS for part in NORM_PARTS}
    assert set(batch) == {f"{c}.weight" for c in DROPOUT_CONVOLUTIONS} | norms | {"model.18.bias"}


def test_full_size_shapes_are_the_official_ones() -> None:
    chapter = checks.shapes(ChapterResNet)
    assert chapter["model.1.weight"] == (64, 3, 7, 7)
    assert chapter["model.18.block.5.weight"] == (256, 256, 3, 3)
    assert chapter["model.20.weight"] == (128, 256, 3, 3)
    assert chapter["model.24.weight"] == (64, 128, 3, 3)
    assert chapter["model.28.weight"] == (3, 64, 7, 7)
    resnet = checks.shapes(DeconvResNet)
    assert resnet["model.18.conv_block.5.weight"] == (256, 256, 3, 3)
    assert resnet["model.19.weight"] == (256, 128, 3, 3)
    assert resnet["model.22.weight"] == (128, 64, 3, 3)
    assert resnet["model.26.weight"] == (3, 64, 7, 7)


def test_usual_configuration() -> None:
    network = RECIPE.random(None, 0)
    assert network.config == {
        "variant": "resnet",
        "channels_in": 3,
        "channels_out": 3,
        "width": 64,
        "blocks": 9,
        "norm": "instance",
        "dropout": False,
    }
    weights = network.reference.get_submodule("net").parameters()
    assert sum(p.numel() for p in weights) == 11_378_179  # 11.378 M, as its training prints


def test_reloads(saved: Network) -> None:
    tensors = checks.weights_of(saved)
    checks.assert_reloads(RECIPE, saved.config["variant"], tensors, saved)
    without = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    if len(without) < len(tensors):
        checks.assert_reloads(RECIPE, saved.config["variant"], without, saved)


def test_facts(network: Network) -> None:
    norm, chosen = network.config["norm"], network.config.get("norm_statistics")
    whole = norm == "instance" or chosen == "image"
    assert network.image.statistics == ("image" if whole else "local")
    assert (chosen is not None) == (norm == "batch")
    assert (network.image.scale, network.image.multiple, network.image.minimum) == (1, 4, 8)


def test_four_pixels_are_too_few(network: Network) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        checks.run(network.reference, torch.rand(1, network.image.channels_in, 4, 4))


@pytest.mark.parametrize("name", CONFIGS)
def test_random_weights_are_useful(name: str) -> None:
    checks.assert_random_is_useful(RECIPE, CONFIGS[name])


def test_graph_is_reference(network: Network) -> None:
    checks.assert_graph_is_reference(network, SIZES, 3e-6)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.graph.modules())


def test_the_books_pre_and_postprocessing(network: Network) -> None:
    """ToTensor, then (x - 0.5) / 0.5; an output y is the picture (y + 1) / 2."""
    shape = (8, 12, network.image.channels_in)
    levels = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    x = torch.from_numpy(levels / 255).permute(2, 0, 1)[None]
    want = (checks.run(network.reference.get_submodule("net"), (x - 0.5) / 0.5) + 1) / 2
    checks.assert_close(checks.run(network.reference, x), want, 3e-6)
    checks.assert_close(checks.run(network.graph, x), want, 6e-6)


def test_chapter_network_by_hand() -> None:
    """The same maths written down in calls of torch.nn.functional."""
    network = RECIPE.random(CONFIGS["chapter"], 5)
    w = checks.weights_of(network)
    x = checks.picture(3, (1, 16, 20))

    def conv(y: torch.Tensor, name: str, **options: int) -> torch.Tensor:
        return F.conv2d(y, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def norm(y: torch.Tensor) -> torch.Tensor:
        centred = y - y.mean((2, 3), keepdim=True)
        return centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()

    def mirrored(y: torch.Tensor, by: int) -> torch.Tensor:
        return F.pad(y, (by,) * 4, mode="reflect")

    y = norm(conv(mirrored(x * 2 - 1, 3), "model.1")).relu()
    y = norm(conv(y, "model.4", stride=2, padding=1)).relu()
    y = norm(conv(y, "model.7", stride=2, padding=1)).relu()
    for block in ("model.10.block", "model.11.block"):
        branch = norm(conv(mirrored(y, 1), f"{block}.1")).relu()
        y = y + norm(conv(mirrored(branch, 1), f"{block}.5"))
    for name in ("model.13", "model.17"):
        y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = norm(conv(y, name, padding=1)).relu()
    want = (conv(mirrored(y, 3), "model.21").tanh() + 1) / 2
    checks.assert_close(checks.run(network.reference, x), want, 1e-5)


def test_image_statistics_are_batch_norm_in_training_mode() -> None:
    """What the official test script computes for one image; for two, each on its own."""
    tensors = checks.weights_of(RECIPE.random(CONFIGS["batch"], 2))
    network = RECIPE.load("resnet", tensors, {"norm_statistics": "image"})
    net = DeconvResNet(width=8, blocks=2, norm="batch")
    net.load_state_dict(tensors)
    x = checks.picture(3, (2, 24, 16))
    want = [(checks.run(net.train(), one[None] * 2 - 1) + 1) / 2 for one in x]
    checks.assert_close(checks.run(network.reference, x), torch.cat(want), 3e-6)
    checks.assert_close(checks.run(network.graph, x), torch.cat(want), 6e-6)
    running = RECIPE.load("resnet", tensors, None)
    assert running.config["norm_statistics"] == "running"
    difference = checks.run(running.reference, x) - torch.cat(want)
    assert difference.abs().max() > 0.01


def test_norm_statistics_need_batch_norm() -> None:
    tensors = checks.weights_of(RECIPE.random(CONFIGS["instance"], 2))
    with pytest.raises(CheckpointError, match="norm_statistics chooses"):
        RECIPE.load("resnet", tensors, {"norm_statistics": "image"})


def test_running_statistics_of_old_instance_norms_are_dropped() -> None:
    network = RECIPE.random(CONFIGS["instance"], 2)
    tensors = checks.weights_of(network)
    old = {
        "model.2.running_mean": torch.rand(8),
        "model.2.running_var": torch.rand(8),
        "model.2.num_batches_tracked": torch.tensor(7),
        "model.10.conv_block.2.running_mean": torch.rand(32),
        "model.10.conv_block.2.running_var": torch.rand(32),
    }
    checks.assert_reloads(RECIPE, "resnet", {**tensors, **old}, network)


def test_weights_are_checked(saved: Network) -> None:
    last = "model.21.bias" if saved.config["variant"] == "chapter" else "model.19.bias"
    tensors = checks.weights_of(saved)
    checks.assert_strict(RECIPE, saved.config["variant"], tensors, last)
    checks.assert_config_is_checked(RECIPE, saved.config["variant"], tensors)


@pytest.mark.parametrize("key", ["channels_in", "channels_out"])
def test_other_channels_are_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"1 or 3 channels .* {key}"):
        RECIPE.random({**CONFIGS["chapter"], key: 4}, 0)
    tensors = checks.weights_of(RECIPE.random(CONFIGS["chapter"], 0))
    name = "model.1.weight" if key == "channels_in" else "model.21.weight"
    shape = (8, 4, 7, 7) if key == "channels_in" else (4, 8, 7, 7)
    with pytest.raises(CheckpointError, match=f"1 or 3 channels .* {key}"):
        RECIPE.load("chapter", {**tensors, name: torch.zeros(shape)}, None)


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(CheckpointError, match="variant has a value"):
        RECIPE.random({"variant": "unet"}, 0)
    with pytest.raises(CheckpointError, match="norm has a value"):
        RECIPE.random({"variant": "chapter", "norm": "batch"}, 0)


@pytest.mark.parametrize("name", ["chapter", "instance", "batch", "batch-image", "grey-to-rgb"])
def test_exports(name: str, tmp_path: Path) -> None:
    network = RECIPE.random(CONFIGS[name], 0)
    operators = checks.assert_exports(network, SIZES, tmp_path, 1e-5)
    chapter = network.config["variant"] == "chapter"
    want = {"Mul": 1, "Sub": 1, "Pad": 6, "Conv": 8, "Relu": 7, "Add": 2, "Sigmoid": 1}
    want |= {"Conv": 10, "Resize": 2} if chapter else {"ConvTranspose": 2}
    if network.image.statistics == "image":
        want["InstanceNormalization"] = 9
    assert operators == want
