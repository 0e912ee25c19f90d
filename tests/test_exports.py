"""What decides a graph decides under which name tests share it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.export import Dim

from pixelrt.export.to_onnx import export_module
from tests.exports import digest, sharing


class Block(nn.Module):
    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(slope))
        self.register_buffer("shift", torch.ones(4), persistent=False)
        self.config = {"_name_or_path": f"/some/where/{id(self)}", "heads": [2, 2]}
        self.act = torch.nn.functional.silu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(self.inner(x)) + self.shift
        return y


class Other(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def changed() -> Iterator[Block]:
    yield Block(0.2)
    yield Other()
    yield Block().eval()
    for change in (
        lambda block: block.inner[0].weight.data[1, 2].add_(1e-6),
        lambda block: block.shift.add_(1e-6),
        lambda block: block.config.update(heads=[2, 4]),
        lambda block: setattr(block, "act", torch.nn.functional.relu),
        lambda block: block.inner.append(nn.Identity()),
        lambda block: block.half(),
    ):
        block = Block()
        change(block)
        yield block


def test_equal_networks_have_one_digest() -> None:
    assert digest(Block()) == digest(Block()) == digest(copy.deepcopy(Block()))


def test_another_network_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [digest(block) for block in (Block(), *changed())]
    assert len(set(found)) == len(found)
    monkeypatch.setattr(Block, "forward", lambda self, x: self.inner(x))
    assert digest(Block()) not in found


def test_so_have_other_inputs() -> None:
    def given(low: int = 1, high: int = 9, name: str = "x", size: int = 2, step: int = 1) -> Any:
        axis = Dim("n", min=low, max=high)
        return (torch.zeros(size, 4),), ({0: step * axis if step > 1 else axis},), ([name], ["y"])

    options: list[dict[str, Any]] = [{}, {"low": 2}, {"high": 8}, {"name": "z"}, {"size": 3}]
    options += [{"step": 2}, {"step": 3}]
    found = {digest(Block(), *given(**more)) for more in options}
    assert len(found) == len(options)
    assert digest(Block(), *given()) in found


def test_a_shared_graph_is_a_copy_of_the_first(tmp_path: Path) -> None:
    exported: list[nn.Module] = []

    def export(module: nn.Module, *arguments: Any) -> ir.Model:
        exported.append(module)
        return export_module(module, *arguments)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder = tmp_path / name
        if not folder.exists():
            folder.mkdir()
            make(folder)
        return folder

    shared = sharing(export, once)
    arguments = ((torch.zeros(2, 4),), ({0: Dim("n", max=9)},), (["x"], ["y"]))
    first, again = (shared(Block(), *arguments) for _ in range(2))
    first.graph.inputs[0].shape = ir.Shape(["changed", 4])
    assert len(exported) == 1
    assert str(again.graph.inputs[0].shape) == str(
        shared(Block(), *arguments).graph.inputs[0].shape
    )
    (weights,) = (v.const_value for v in again.graph.initializers.values() if "weight" in v.name)
    assert torch.equal(torch.from_numpy(weights.numpy().copy()), exported[0].inner[0].weight)  # type: ignore[union-attr]
    shared(Block(0.2), *arguments)
    assert len(exported) == 2
