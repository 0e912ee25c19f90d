"""SRGAN and SRResNet: names, normalisation, folding, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pixelrt.errors import CheckpointError
from pixelrt.export.families import srgan
from pixelrt.export.networks.srgan import SRResNet
from pixelrt.export.recipe import Config, Network
from tests.export import family_checks as checks

RECIPE = srgan.RECIPE
SMALL: Config = {"channels": 8, "blocks": 2}
SIZES = [(1, 1, 1), (1, 1, 5), (2, 24, 35), (1, 33, 16)]

# The names of sgrvinod's SRResNet with one residual and two doubling blocks, complete.
NAMES = [
    "conv_block1.conv_block.0.weight",
    "conv_block1.conv_block.0.bias",
    "conv_block1.conv_block.1.weight",
    "residual_blocks.0.conv_block1.conv_block.0.weight",
    "residual_blocks.0.conv_block1.conv_block.0.bias",
    "residual_blocks.0.conv_block1.conv_block.1.weight",
    "residual_blocks.0.conv_block1.conv_block.1.bias",
    "residual_blocks.0.conv_block1.conv_block.1.running_mean",
    "residual_blocks.0.conv_block1.conv_block.1.running_var",
    "residual_blocks.0.conv_block1.conv_block.1.num_batches_tracked",
    "residual_blocks.0.conv_block1.conv_block.2.weight",
    "residual_blocks.0.conv_block2.conv_block.0.weight",
    "residual_blocks.0.conv_block2.conv_block.0.bias",
    "residual_blocks.0.conv_block2.conv_block.1.weight",
    "residual_blocks.0.conv_block2.conv_block.1.bias",
    "residual_blocks.0.conv_block2.conv_block.1.running_mean",
    "residual_blocks.0.conv_block2.conv_block.1.running_var",
    "residual_blocks.0.conv_block2.conv_block.1.num_batches_tracked",
    "conv_block2.conv_block.0.weight",
    "conv_block2.conv_block.0.bias",
    "conv_block2.conv_block.1.weight",
    "conv_block2.conv_block.1.bias",
    "conv_block2.conv_block.1.running_mean",
    "conv_block2.conv_block.1.running_var",
    "conv_block2.conv_block.1.num_batches_tracked",
    "subpixel_convolutional_blocks.0.conv.weight",
    "subpixel_convolutional_blocks.0.conv.bias",
    "subpixel_convolutional_blocks.0.prelu.weight",
    "subpixel_convolutional_blocks.1.conv.weight",
    "subpixel_convolutional_blocks.1.conv.bias",
    "subpixel_convolutional_blocks.1.prelu.weight",
    "conv_block3.conv_block.0.weight",
    "conv_block3.conv_block.0.bias",
]


@pytest.fixture(scope="module")
def network() -> Network:
    return RECIPE.random(SMALL, 0)


def test_parameter_names_are_the_tutorials() -> None:
    assert set(checks.shapes(lambda: SRResNet(blocks=1))) == set(NAMES)


def test_full_size_shapes_are_the_tutorials() -> None:
    found = checks.shapes(SRResNet)
    assert found["conv_block1.conv_block.0.weight"] == (64, 3, 9, 9)
    assert found["residual_blocks.15.conv_block2.conv_block.0.weight"] == (64, 64, 3, 3)
    assert found["subpixel_convolutional_blocks.1.conv.weight"] == (256, 64, 3, 3)
    assert found["subpixel_convolutional_blocks.1.prelu.weight"] == (1,)
    assert found["conv_block3.conv_block.0.weight"] == (3, 64, 9, 9)
    assert "residual_blocks.16.conv_block1.conv_block.0.weight" not in found


def test_usual_configuration() -> None:
    network = RECIPE.random(None, 0)
    assert network.config == {
        "scale": 4,
        "channels": 64,
        "blocks": 16,
        "large_kernel": 9,
        "small_kernel": 3,
    }
    weights = network.reference.get_submodule("net").parameters()
    assert sum(p.numel() for p in weights) == 1_549_462


@pytest.mark.parametrize(("variant", "prefix"), [("generator", "net."), ("srresnet", "")])
@pytest.mark.parametrize(
    "config",
    [SMALL, {**SMALL, "scale": 2}, {**SMALL, "scale": 8, "large_kernel": 7, "small_kernel": 5}],
)
def test_reloads(variant: str, prefix: str, config: Config) -> None:
    network = RECIPE.random(config, 3)
    assert network.image.scale == config.get("scale", 4)
    tensors = {prefix + name: t for name, t in checks.weights_of(network).items()}
    checks.assert_reloads(RECIPE, variant, tensors, network)
    without = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    checks.assert_reloads(RECIPE, variant, without, network)


@pytest.mark.parametrize("config", [SMALL, {**SMALL, "scale": 2}, {"blocks": 16, "channels": 32}])
def test_random_weights_are_useful(config: Config) -> None:
    checks.assert_random_is_useful(RECIPE, config)


def test_the_books_pre_and_postprocessing(network: Network) -> None:
    """Divide by 255, normalise with ImageNet's statistics; (output + 1) / 2."""
    levels = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.float64)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = ((levels / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)[None]
    net = network.reference.get_submodule("net")
    want = (checks.run(net, torch.from_numpy(normalised)) + 1) / 2
    x = torch.from_numpy((levels / 255).astype(np.float32)).permute(2, 0, 1)[None]
    checks.assert_close(checks.run(network.reference, x), want, 1e-6)
    checks.assert_close(checks.run(network.graph, x), want, 3e-6)


def test_graph_is_reference(network: Network) -> None:
    checks.assert_graph_is_reference(network, SIZES, 3e-6)
    kinds = {type(m).__name__ for m in network.graph.modules()}
    assert not kinds & {"BatchNorm2d", "PReLU", "Tanh"}


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_exports(tmp_path: Path, scale: int) -> None:
    small = RECIPE.random({**SMALL, "scale": scale}, 0)
    operators = checks.assert_exports(small, SIZES, tmp_path, 1e-5)
    doubling = {2: 1, 4: 2, 8: 3}[scale]
    assert operators == {
        "Mul": 1,
        "Add": 4,
        "Conv": 7 + doubling,
        "LeakyRelu": 3 + doubling,
        "DepthToSpace": doubling,
        "Sigmoid": 1,
    }


@pytest.mark.parametrize(("variant", "prefix"), [("generator", "net."), ("srresnet", "")])
def test_weights_are_checked(network: Network, variant: str, prefix: str) -> None:
    tensors = {prefix + name: t for name, t in checks.weights_of(network).items()}
    checks.assert_strict(RECIPE, variant, tensors, f"{prefix}conv_block2.conv_block.1.running_var")
    checks.assert_config_is_checked(RECIPE, variant, tensors)


def test_scales_that_do_not_exist(network: Network) -> None:
    for scale in (1, 3, 16, 4.0):
        with pytest.raises(CheckpointError, match="scale has a value"):
            RECIPE.random({"scale": scale}, 0)
    weights = checks.weights_of(network)
    one = {n: t for n, t in weights.items() if "subpixel_convolutional_blocks" not in n}
    with pytest.raises(CheckpointError, match="scale has a value"):
        RECIPE.load("srresnet", one, None)


def test_grey_is_refused(network: Network) -> None:
    tensors = checks.weights_of(network)
    tensors["conv_block1.conv_block.0.weight"] = torch.zeros(8, 1, 9, 9)
    with pytest.raises(CheckpointError, match="Only networks for RGB") as caught:
        RECIPE.load("srresnet", tensors, None)
    assert "1 input channel" in str(caught.value)
