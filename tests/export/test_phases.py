"""Transposed convolutions as convolutions: the same function, the outermost only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pixelrt.export.networks.phases import PhaseConv, is_doubling, with_phases


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 3)])
def test_phases_are_the_transposed_convolution(bias: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    source = nn.ConvTranspose2d(5, 3, 4, 2, 1, bias=bias)
    x = torch.randn(2, 5, *size)
    with torch.no_grad():
        assert torch.allclose(PhaseConv(source)(x), source(x), atol=1e-5)


def test_other_transposed_convolutions_are_left_alone() -> None:
    assert is_doubling(nn.ConvTranspose2d(2, 2, 4, 2, 1))
    assert not is_doubling(nn.Conv2d(2, 2, 4, 2, 1))
    for other in ((3, 2, 1, 1), (4, 2, 0), (2, 2, 0), (4, 2, 1, 1), (4, 2, 1, 0, 2)):
        assert not is_doubling(nn.ConvTranspose2d(2, 2, *other))


def test_only_the_last_three_change_and_only_in_the_copy() -> None:
    net = nn.Sequential(*(nn.ConvTranspose2d(2, 2, 4, 2, 1) for _ in range(5)))
    kinds = [type(module) for module in with_phases(net)]  # type: ignore[attr-defined]
    assert kinds == [nn.ConvTranspose2d] * 2 + [PhaseConv] * 3
    assert all(isinstance(module, nn.ConvTranspose2d) for module in net)
