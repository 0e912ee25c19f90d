"""Assertions that hold for every family; one test file per family calls them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from pixelrt.errors import CheckpointError
from pixelrt.export.recipe import Config, Network, Recipe, Tensors
from pixelrt.export.to_onnx import export_core, export_variant

Size = tuple[int, int, int]
"""Batch, height, width."""


def picture(channels: int, size: Size, seed: int = 0) -> torch.Tensor:
    """``(N, channels, H, W)`` in [0, 1]: smooth shapes, each image its own, and some noise."""
    batch, height, width = size
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 3, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return 0.8 * smooth + 0.2 * torch.rand(smooth.shape, generator=generator)


def run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y: torch.Tensor = module(x)
    return y


def weights_of(network: Network) -> dict[str, torch.Tensor]:
    """The state dict as its training code would have saved it."""
    net = network.reference.get_submodule("net")
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def shapes(build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's state dict, without memory for its weights."""
    with torch.device("meta"):
        net = build()
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def assert_close(got: torch.Tensor, want: torch.Tensor, limit: float) -> None:
    """Largest absolute difference at most ``limit``; a failure shows errors by decade."""
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    error = (got.double() - want.double()).abs()
    decades = Counter(error.clamp(1e-12, 1e3).log10().ceil().int().flatten().tolist())
    shown = ", ".join(f"up to 1e{decade}: {n}" for decade, n in sorted(decades.items()))
    assert error.max() <= limit, f"max {error.max():.2e} > {limit:.0e}; {shown}"


def assert_variant(recipe: Recipe, variant: str, names: Iterable[str]) -> None:
    """These names, and no other variant of the family, are recognised as ``variant``."""
    names = list(names)

    def fits(keys: Sequence[str]) -> bool:
        return all(any(re.fullmatch(key, name) for name in names) for key in keys)

    assert [v.name for v in recipe.variants if fits(v.keys)] == [variant]


def assert_reloads(recipe: Recipe, variant: str, tensors: Tensors, network: Network) -> None:
    """``tensors`` give the configuration, facts and outputs of ``network`` back."""
    assert_variant(recipe, variant, tensors)
    loaded = recipe.load(variant, tensors, None)
    assert loaded.config == network.config
    assert loaded.image == network.image
    assert recipe.load(variant, tensors, network.config).config == network.config
    side = network.image.minimum
    x = picture(network.image.channels_in, (1, side, side))
    assert_close(run(loaded.reference, x), run(network.reference, x), 0.0)
    assert_close(run(loaded.graph, x), run(network.graph, x), 0.0)


def assert_random_is_useful(recipe: Recipe, config: Config) -> None:
    """Seeded; eval mode; outputs in [0, 1], not saturated, varying with place and input."""
    network = recipe.random(config, 1)
    spec = network.image
    side = max(2 * spec.minimum, 48)
    x = picture(spec.channels_in, (1, side, side))
    y = run(network.reference, x)
    assert torch.equal(y, run(recipe.random(config, 1).reference, x))
    assert not torch.equal(y, run(recipe.random(config, 2).reference, x))
    for module in (network.reference, network.graph, *network.variants.values()):
        assert not any(m.training for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())
    inside = ((y > 0.05) & (y < 0.95)).float().mean()
    assert inside > 0.9, f"only {inside:.0%} of the output is in [0.05, 0.95]"
    assert y.std(dim=(2, 3)).mean() > 0.02
    assert (y - run(network.reference, 1 - x)).abs().mean() > 0.02


def assert_graph_is_reference(network: Network, sizes: Sequence[Size], limit: float) -> None:
    """The modules that are exported compute what the published maths computes."""
    spec = network.image
    for batch, height, width in sizes:
        x = picture(spec.channels_in, (batch, height, width))
        want = run(network.reference, x)
        expected = (batch, spec.channels_out, spec.scale * height, spec.scale * width)
        assert tuple(want.shape) == expected
        for module in (network.graph, *network.variants.values()):
            assert_close(run(module, x), want, limit)


def assert_exports(
    network: Network, sizes: Sequence[Size], folder: Path, limit: float
) -> Counter[str]:
    """Each ONNX graph gives the reference's output at every size. Returns the plain's operators."""
    graphs = [export_core(network, folder)]
    graphs += [export_variant(network, backend, folder) for backend in network.variants]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for described in graphs:
        path = folder / Path(described.file).name
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0].name
        for size in sizes:
            x = picture(network.image.channels_in, size)
            (got,) = session.run(None, {feed: x.numpy()})
            assert_close(torch.from_numpy(np.asarray(got)), run(network.reference, x), limit)
    graph = onnx.load(folder / "core.onnx", load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def assert_strict(recipe: Recipe, variant: str, tensors: Tensors, name: str) -> None:
    """A parameter that is missing, extra, of another shape or type is an error that names it."""

    def refused(changed: Tensors, *patterns: str) -> None:
        with pytest.raises(CheckpointError) as caught:
            recipe.load(variant, changed, None)
        for pattern in patterns:
            assert re.search(pattern, str(caught.value)), str(caught.value)

    others = {n: t for n, t in tensors.items() if n != name}
    pattern = re.escape(name)
    refused(others, rf"missing: {pattern}")
    refused({**tensors, "surprise.weight": torch.zeros(1)}, r"unexpected: surprise\.weight")
    longer = torch.cat((tensors[name], tensors[name]))
    refused({**others, name: longer}, rf"other shape: {pattern} \(\d+.* instead of \(")
    refused({**others, name: tensors[name].int()}, rf"not floating point: {pattern}")
    refused({}, "no parameter ", "no parameters at all")


def assert_config_is_checked(recipe: Recipe, variant: str, tensors: Tensors) -> None:
    """A key that is unknown, or that contradicts the weights, is an error that names it."""
    with pytest.raises(CheckpointError, match="key that this network does not know: widht"):
        recipe.load(variant, tensors, {"widht": 64})
    known = recipe.load(variant, tensors, None).config
    key = "blocks" if "blocks" in known else "downs"
    with pytest.raises(CheckpointError, match=f"disagree about {key}"):
        recipe.load(variant, tensors, {key: known[key] + 1})
    for value in (0, True, "8", 1e9):
        with pytest.raises(CheckpointError, match=f"{key} has a value that this network cannot"):
            recipe.random({key: value}, 0)
