"""pix2pix: names, detection, value range, norm statistics, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from pixelrt.errors import CheckpointError
from pixelrt.export.families import pix2pix
from pixelrt.export.networks.pix2pix import ChapterUNet, SkipUNet
from pixelrt.export.recipe import Config, Network
from tests.export import family_checks as checks

RECIPE = pix2pix.RECIPE
SMALL: Config = {"variant": "unet", "width": 8, "downs": 5}
CONFIGS: dict[str, Config] = {
    "chapter": {"variant": "chapter", "width": 8},
    "batch": SMALL,
    "batch-image": {**SMALL, "norm_statistics": "image"},
    "instance": {**SMALL, "norm": "instance"},
    "none": {**SMALL, "norm": "none"},
    "rgb-to-grey": {**SMALL, "downs": 6, "channels_out": 1},
}

# All parameters of the book's network; only the last convolution has a bias.
CHAPTER_NAMES = [
    "down1.model.0.weight",
    "down2.model.0.weight",
    "down3.model.0.weight",
    "down4.model.0.weight",
    "down5.model.0.weight",
    "down6.model.0.weight",
    "down7.model.0.weight",
    "down8.model.0.weight",
    "up1.model.0.weight",
    "up2.model.0.weight",
    "up3.model.0.weight",
    "up4.model.0.weight",
    "up5.model.0.weight",
    "up6.model.0.weight",
    "up7.model.0.weight",
    "final.2.weight",
    "final.2.bias",
]

# Convolutions and norms of junyanz's U-Net with five halvings: each level nests in the last.
UNET_CONVOLUTIONS = [
    "model.model.0",
    "model.model.1.model.1",
    "model.model.1.model.3.model.1",
    "model.model.1.model.3.model.3.model.1",
    "model.model.1.model.3.model.3.model.3.model.1",
    "model.model.1.model.3.model.3.model.3.model.3",
    "model.model.1.model.3.model.3.model.5",
    "model.model.1.model.3.model.5",
    "model.model.1.model.5",
    "model.model.3",
]
UNET_NORMS = [
    "model.model.1.model.2",
    "model.model.1.model.3.model.2",
    "model.model.1.model.3.model.3.model.2",
    "model.model.1.model.3.model.3.model.3.model.4",
    "model.model.1.model.3.model.3.model.6",
    "model.model.1.model.3.model.6",
    "model.model.1.model.6",
]
NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(params=CONFIGS, scope="module")
def network(request: pytest.FixtureRequest) -> Network:
    return RECIPE.random(CONFIGS[request.param], 0)


@pytest.fixture(params=[name for name in CONFIGS if name != "batch-image"], scope="module")
def saved(request: pytest.FixtureRequest) -> Network:
    """One whose state dict is that of a checkpoint: with its batch norms, if it has any."""
    return RECIPE.random(CONFIGS[request.param], 0)


def sizes(network: Network) -> list[checks.Size]:
    step = network.image.multiple
    return [(1, step, step), (2, step, 2 * step)] + [(1, 3 * step, step)] * (step < 256)


def test_chapter_names_and_shapes() -> None:
    found = checks.shapes(ChapterUNet)
    assert set(found) == set(CHAPTER_NAMES)
    assert found["down1.model.0.weight"] == (64, 3, 4, 4)
    assert found["down8.model.0.weight"] == (512, 512, 4, 4)
    assert found["up1.model.0.weight"] == (512, 512, 4, 4)
    assert found["up4.model.0.weight"] == (1024, 512, 4, 4)
    assert found["up5.model.0.weight"] == (1024, 256, 4, 4)
    assert found["up7.model.0.weight"] == (256, 64, 4, 4)
    assert found["final.2.weight"] == (3, 128, 4, 4)


def test_unet_names_are_the_official_ones() -> None:
    batch = checks.shapes(lambda: SkipUNet(downs=5))
    norms = {f"{norm}.{part}" for norm in UNET_NORMS for part in NORM_PARTS}
    weights = {f"{conv}.weight" for conv in UNET_CONVOLUTIONS}
    assert set(batch) == weights | norms | {"model.model.3.bias"}
    instance = checks.shapes(lambda: SkipUNet(downs=5, norm="instance"))
    assert set(instance) == weights | {f"{conv}.bias" for conv in UNET_CONVOLUTIONS}
    none = checks.shapes(lambda: SkipUNet(downs=5, norm="none"))
    assert set(none) == weights | {"model.model.3.bias"}


def test_unet_256_shapes_are_the_official_ones() -> None:
    found = checks.shapes(SkipUNet)
    bottom = "model.model.1" + ".model.3" * 6
    assert found[f"{bottom}.model.1.weight"] == (512, 512, 4, 4)
    assert found[f"{bottom}.model.3.weight"] == (512, 512, 4, 4)
    assert found[f"{bottom}.model.4.running_mean"] == (512,)
    assert f"{bottom}.model.2.weight" not in found
    assert found["model.model.0.weight"] == (64, 3, 4, 4)
    assert found["model.model.1.model.1.weight"] == (128, 64, 4, 4)
    assert found["model.model.1.model.3.model.3.model.5.weight"] == (1024, 256, 4, 4)
    assert found["model.model.1.model.5.weight"] == (256, 64, 4, 4)
    assert found["model.model.3.weight"] == (128, 3, 4, 4)


def test_usual_configuration() -> None:
    network = RECIPE.random(None, 0)
    assert network.config == {
        "variant": "unet",
        "channels_in": 3,
        "channels_out": 3,
        "width": 64,
        "downs": 8,
        "norm": "batch",
        "norm_statistics": "running",
    }
    weights = network.reference.get_submodule("net").parameters()
    assert sum(p.numel() for p in weights) == 54_413_955  # 54.414 M, as its training prints


def test_reloads(saved: Network) -> None:
    tensors = checks.weights_of(saved)
    checks.assert_reloads(RECIPE, saved.config["variant"], tensors, saved)
    without = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    if len(without) < len(tensors):
        checks.assert_reloads(RECIPE, saved.config["variant"], without, saved)


@pytest.mark.parametrize("downs", [5, 7, 8])
def test_depth_is_read_off_the_names(downs: int) -> None:
    config = {**SMALL, "width": 2, "downs": downs, "norm": "instance"}
    tensors = checks.weights_of(RECIPE.random(config, 0))
    loaded = RECIPE.load("unet", tensors, None)
    assert loaded.config["downs"] == downs
    assert loaded.image.multiple == loaded.image.minimum == 2**downs


def test_facts(network: Network) -> None:
    norm, chosen = network.config["norm"], network.config.get("norm_statistics")
    whole = norm == "instance" or chosen == "image"
    assert network.image.statistics == ("image" if whole else "local")
    assert (chosen is not None) == (norm == "batch")
    assert network.image.scale == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_random_weights_are_useful(name: str) -> None:
    checks.assert_random_is_useful(RECIPE, CONFIGS[name])


def test_graph_is_reference(network: Network) -> None:
    checks.assert_graph_is_reference(network, sizes(network), 3e-6)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.graph.modules())


def test_the_books_pre_and_postprocessing(network: Network) -> None:
    """(x - 127.5) / 127.5 of 8-bit levels; an output y is shown as (y - -1) / 2."""
    side = network.image.minimum
    shape = (side, side, network.image.channels_in)
    levels = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    planes = torch.from_numpy(levels).permute(2, 0, 1)[None]
    net = network.reference.get_submodule("net")
    want = (checks.run(net, (planes - 127.5) / 127.5) + 1) / 2
    checks.assert_close(checks.run(network.reference, planes / 255), want, 3e-6)
    checks.assert_close(checks.run(network.graph, planes / 255), want, 6e-6)


def test_chapter_network_by_hand() -> None:
    """The same maths written down in calls of torch.nn.functional."""
    network = RECIPE.random(CONFIGS["chapter"], 5)
    w = checks.weights_of(network)
    x = checks.picture(3, (1, 256, 256))

    def norm(y: torch.Tensor) -> torch.Tensor:
        centred = y - y.mean((2, 3), keepdim=True)
        return centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()

    y, skips = x * 2 - 1, []
    for level in range(1, 9):
        y = F.conv2d(y, w[f"down{level}.model.0.weight"], stride=2, padding=1)
        y = F.leaky_relu(y if level in (1, 8) else norm(y), 0.2)
        skips.append(y)
    for level in range(1, 8):
        y = F.conv_transpose2d(y, w[f"up{level}.model.0.weight"], stride=2, padding=1)
        y = torch.cat((norm(y).relu(), skips[7 - level]), 1)
    y = F.pad(y.repeat_interleave(2, 2).repeat_interleave(2, 3), (2, 1, 2, 1))
    want = (F.conv2d(y, w["final.2.weight"], w["final.2.bias"]).tanh() + 1) / 2
    checks.assert_close(checks.run(network.reference, x), want, 1e-5)


def test_in_place_activations_change_nothing() -> None:
    """The official blocks activate in place and so alter their own skip connections."""
    x = checks.picture(3, (1, 32, 64))
    network = RECIPE.random(SMALL, 3)
    want = checks.run(network.reference, x)
    for module in network.reference.modules():
        if isinstance(module, (torch.nn.LeakyReLU, torch.nn.ReLU)):
            module.inplace = True
    checks.assert_close(checks.run(network.reference, x), want, 0.0)


def test_image_statistics_are_batch_norm_in_training_mode() -> None:
    """What the official test script computes for one image; for two, each on its own."""
    tensors = checks.weights_of(RECIPE.random(SMALL, 2))
    network = RECIPE.load("unet", tensors, {"norm_statistics": "image"})
    net = SkipUNet(width=8, downs=5, norm="batch")
    net.load_state_dict(tensors)
    x = checks.picture(3, (2, 64, 32))
    want = [(checks.run(net.train(), one[None] * 2 - 1) + 1) / 2 for one in x]
    checks.assert_close(checks.run(network.reference, x), torch.cat(want), 3e-6)
    checks.assert_close(checks.run(network.graph, x), torch.cat(want), 6e-6)
    running = RECIPE.load("unet", tensors, None)
    assert running.config["norm_statistics"] == "running"
    difference = checks.run(running.reference, x) - torch.cat(want)
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize("name", ["chapter", "instance", "none"])
def test_norm_statistics_need_batch_norm(name: str) -> None:
    network = RECIPE.random(CONFIGS[name], 2)
    with pytest.raises(CheckpointError, match="norm_statistics"):
        RECIPE.load(
            network.config["variant"], checks.weights_of(network), {"norm_statistics": "image"}
        )


def test_running_statistics_of_old_instance_norms_are_dropped() -> None:
    network = RECIPE.random(CONFIGS["instance"], 2)
    old = {
        "model.model.1.model.2.running_mean": torch.rand(16),
        "model.model.1.model.2.running_var": torch.rand(16),
        "model.model.1.model.2.num_batches_tracked": torch.tensor(7),
    }
    checks.assert_reloads(RECIPE, "unet", {**checks.weights_of(network), **old}, network)


def test_half_precision_checkpoints_become_fp32() -> None:
    tensors = checks.weights_of(RECIPE.random(CONFIGS["instance"], 2))
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    loaded = RECIPE.load("unet", halves, None)
    assert {p.dtype for p in loaded.reference.parameters()} == {torch.float32}


def test_weights_are_checked(saved: Network) -> None:
    chapter = saved.config["variant"] == "chapter"
    tensors = checks.weights_of(saved)
    name = "final.2.bias" if chapter else "model.model.3.bias"
    checks.assert_strict(RECIPE, saved.config["variant"], tensors, name)
    checks.assert_config_is_checked(RECIPE, saved.config["variant"], tensors)


def test_many_missing_parameters_are_summed_up() -> None:
    tensors = checks.weights_of(RECIPE.random(CONFIGS["chapter"], 0))
    few = {name: tensors[name] for name in ("down1.model.0.weight", "final.2.weight")}
    with pytest.raises(CheckpointError, match=r"missing: down2.*, down6\.\S+ and 10 more"):
        RECIPE.load("chapter", few, None)


@pytest.mark.parametrize("key", ["channels_in", "channels_out"])
def test_other_channels_are_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"1 or 3 channels .* {key}"):
        RECIPE.random({**SMALL, key: 4}, 0)
    tensors = checks.weights_of(RECIPE.random(SMALL, 0))
    name = "model.model.0.weight" if key == "channels_in" else "model.model.3.weight"
    shape = (8, 4, 4, 4) if key == "channels_in" else (16, 4, 4, 4)
    with pytest.raises(CheckpointError, match=f"1 or 3 channels .* {key}"):
        RECIPE.load("unet", {**tensors, name: torch.zeros(shape)}, None)


@pytest.mark.parametrize("name", ["chapter", "batch", "batch-image", "rgb-to-grey"])
def test_exports(name: str, tmp_path: Path) -> None:
    network = RECIPE.random(CONFIGS[name], 0)
    operators = checks.assert_exports(network, sizes(network), tmp_path, 1e-5)
    want: dict[str, int] = {"Mul": 1, "Sub": 1, "Sigmoid": 1}
    downs = network.config["downs"]
    if network.config["variant"] == "chapter":
        want |= {"Conv": 9, "LeakyRelu": 8, "ConvTranspose": 7, "Relu": 7, "Concat": 7}
        want |= {"Resize": 1}
    else:
        want |= {"Conv": downs, "LeakyRelu": downs - 1, "ConvTranspose": downs}
        want |= {"Relu": downs, "Concat": downs - 1}
    if network.image.statistics == "image":
        want["InstanceNormalization"] = 13 if network.config["variant"] == "chapter" else 7
    assert operators == want
