"""The measured receptive field against what the architecture says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pixelrt.errors import ExportError
from pixelrt.export import receptive_field
from pixelrt.export.networks.srgan import SRResNet
from pixelrt.export.recipe import Network
from pixelrt.spec import ImageSpec


def network(module: nn.Module, **changes: Any) -> Network:
    facts: dict[str, Any] = {
        "task": "restoration",
        "scale": 1,
        "channels_in": 3,
        "channels_out": 3,
        "multiple": 1,
        "minimum": 1,
        "pad_mode": "edge",
        "statistics": "local",
    }
    return Network({}, ImageSpec(**{**facts, **changes}), module.eval(), module.eval())


def stack(*kernels: int) -> nn.Sequential:
    """Convolutions with rectifiers between; the radius is the sum of the kernels' radii."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for kernel in kernels:
        layers += [nn.Conv2d(3, 3, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("kernels", [(1,), (3,), (3, 5, 9), (3,) * 12])
def test_convolutions_see_the_sum_of_their_radii(kernels: tuple[int, ...]) -> None:
    measured = receptive_field.measure(network(stack(*kernels)))
    assert measured.alignment == 1
    assert measured.halo == sum(k // 2 for k in kernels)


def test_switched_off_units_hide_nothing() -> None:
    """With a bias that kills every unit, what the input shows is nothing at all."""
    dead = stack(3, 5)
    nn.init.constant_(dead[0].bias, -100.0)  # type: ignore[arg-type]
    assert receptive_field.measure(network(dead)).halo == 3


def test_srresnet() -> None:
    """9x9 first, two blocks of two 3x3, one 3x3, 3x3 before the shuffle, 9x9 at twice the size."""
    torch.manual_seed(0)
    module = SRResNet(channels=16, blocks=2, upsamplers=1)
    measured = receptive_field.measure(network(module, scale=2))
    assert measured.halo == 4 + 2 * 2 + 1 + 1 + 2
    assert measured.alignment == 1
    assert measured.curve["40dB"] <= measured.curve["60dB"] <= measured.curve["80dB"] <= 12


class Strided(nn.Module):
    """Down by four and up again: the grid shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv2d(3, 8, 4, stride=4)
        self.up = nn.ConvTranspose2d(8, 3, 4, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.up(self.down(x))
        return y


def test_strides_show_as_alignment() -> None:
    measured = receptive_field.measure(network(Strided(), multiple=4, minimum=4))
    assert (measured.alignment, measured.halo) == (4, 0)


def test_alignment_may_be_finer_than_the_grid() -> None:
    measured = receptive_field.measure(network(stack(3, 3), multiple=8, minimum=8))
    assert (measured.alignment, measured.halo) == (1, 2)


class Positional(nn.Module):
    """The result depends on where the picture stands."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(1, x.shape[3] + 1, dtype=x.dtype)


def test_position_dependent_networks_are_refused() -> None:
    with pytest.raises(ExportError, match="position"):
        receptive_field.measure(network(Positional()))


class Centred(nn.Module):
    """Takes the mean of the whole image away: every pixel sees everything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=(2, 3), keepdim=True)


def test_whole_image_statistics_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receptive_field, "MAX_STRIP_PIXELS", 100_000)
    with pytest.raises(ExportError, match="sees further"):
        receptive_field.measure(network(Centred()))
    assert receptive_field.measure(network(Centred(), statistics="image")).halo is None
