"""StyleGAN2: the maths, the two layouts, what is exported, and what is refused."""

from __future__ import annotations

import io
import pickle
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from pixelrt.errors import CheckpointError, UnknownNetworkError
from pixelrt.export.checkpoint import Checkpoint, open_checkpoint
from pixelrt.export.families import stylegan2
from pixelrt.export.networks.stylegan2 import Architecture, Generator
from pixelrt.export.networks.stylegan2_graph import NoiseMode, Synthesis
from pixelrt.export.recipe import Config, Tensors
from tests.export import stylegan2_literal as literal

SMALL: Config = {
    "resolution": 16,
    "channel_base": 128,
    "channel_max": 12,
    "z_dim": 10,
    "w_dim": 8,
    "mapping_layers": 3,
}
LABELS: Config = {**SMALL, "label_dim": 4}
GREY: Config = {**SMALL, "resolution": 8, "image_channels": 1, "z_dim": 8}
LIMIT = 2e-5
"""Largest difference to the literal form; images have a deviation of about 0.5."""

NVIDIA_LAYER = [
    "weight",
    "noise_strength",
    "bias",
    "resample_filter",
    "noise_const",
    "affine.weight",
    "affine.bias",
]
# All names of NVIDIA's generator for 8x8 with labels and two mapping layers.
NVIDIA_NAMES = [
    "synthesis.b4.const",
    "synthesis.b4.resample_filter",
    *(f"synthesis.b4.conv1.{name}" for name in NVIDIA_LAYER),
    *(f"synthesis.b4.torgb.{name}" for name in ("weight", "bias", "affine.weight", "affine.bias")),
    "synthesis.b8.resample_filter",
    *(f"synthesis.b8.conv0.{name}" for name in NVIDIA_LAYER),
    *(f"synthesis.b8.conv1.{name}" for name in NVIDIA_LAYER),
    *(f"synthesis.b8.torgb.{name}" for name in ("weight", "bias", "affine.weight", "affine.bias")),
    "mapping.w_avg",
    "mapping.embed.weight",
    "mapping.embed.bias",
    "mapping.fc0.weight",
    "mapping.fc0.bias",
    "mapping.fc1.weight",
    "mapping.fc1.bias",
]


def rosinality_shapes(side_channels: dict[int, int], dim: int, layers: int) -> dict[str, Any]:
    """Names and shapes of rosinality's ``Generator``, written down from its constructor."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(1, layers + 1):
        shapes |= {f"style.{i}.weight": (dim, dim), f"style.{i}.bias": (dim,)}

    def styled(name: str, inputs: int, outputs: int, *, up: bool) -> None:
        shapes[f"{name}.conv.weight"] = (1, outputs, inputs, 3, 3)
        shapes[f"{name}.conv.modulation.weight"] = (inputs, dim)
        shapes[f"{name}.conv.modulation.bias"] = (inputs,)
        shapes[f"{name}.noise.weight"] = (1,)
        shapes[f"{name}.activate.bias"] = (outputs,)
        if up:
            shapes[f"{name}.conv.blur.kernel"] = (4, 4)

    def rgb(name: str, inputs: int) -> None:
        shapes[f"{name}.bias"] = (1, 3, 1, 1)
        shapes[f"{name}.conv.weight"] = (1, 3, inputs, 1, 1)
        shapes[f"{name}.conv.modulation.weight"] = (inputs, dim)
        shapes[f"{name}.conv.modulation.bias"] = (inputs,)

    first = side_channels[4]
    shapes["input.input"] = (1, first, 4, 4)
    styled("conv1", first, first, up=False)
    rgb("to_rgb1", first)
    shapes["noises.noise_0"] = (1, 1, 4, 4)
    for i, side in enumerate(list(side_channels)[1:]):
        styled(f"convs.{2 * i}", side_channels[side // 2], side_channels[side], up=True)
        styled(f"convs.{2 * i + 1}", side_channels[side], side_channels[side], up=False)
        rgb(f"to_rgbs.{i}", side_channels[side])
        shapes[f"to_rgbs.{i}.upsample.kernel"] = (4, 4)
        for row in (2 * i + 1, 2 * i + 2):
            shapes[f"noises.noise_{row}"] = (1, 1, side, side)
    return shapes


def rosinality_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    shapes = rosinality_shapes({4: 12, 8: 12, 16: 6}, dim=8, layers=2)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator)
        if name.endswith("kernel"):
            tensor = torch.from_numpy(literal.FIR * 4).float()
        elif name.startswith("style"):
            tensor *= 100 if name.endswith("weight") else 10
        found[name] = tensor
    return found


def nvidia_weights(config: Config = SMALL, seed: int = 0) -> dict[str, torch.Tensor]:
    net = stylegan2.random(config, seed).reference
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def latents(arch: Architecture, count: int, seed: int = 5) -> torch.Tensor:
    """Different in every row."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, arch.num_ws, arch.w_dim, generator=generator)


def assert_close(got: torch.Tensor, want: Any, limit: float = LIMIT) -> None:
    assert tuple(got.shape) == tuple(want.shape)
    error = np.abs(got.detach().double().numpy() - np.asarray(want)).max()
    assert error <= limit, f"{error:.2e} > {limit:.0e}"


# The maths ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, LABELS, GREY], ids=["small", "labels", "grey"])
def test_mapping_is_the_literal_one(config: Config) -> None:
    network = stylegan2.random(config, 3)
    arch = network.architecture
    z = torch.randn(5, arch.z_dim)
    label = [torch.eye(4)[[0, 1, 2, 3, 3]]] if arch.label_dim else []
    want = literal.mapping(literal.Nvidia(network.reference.state_dict()), z, *label)
    assert_close(network.reference.mapping(z, *label), want)
    assert_close(network.mapping(z, *label), want)
    if label:
        other = network.mapping(z, label[0].flip(0))
        assert (other - network.mapping(z, *label))[0].abs().max() > 0.05


@pytest.mark.parametrize("noise", ["const", "none", "input"])
@pytest.mark.parametrize("clamp", [0, 1], ids=["free", "clamped"])
@pytest.mark.parametrize("config", [SMALL, GREY], ids=["small", "grey"])
def test_synthesis_is_the_literal_one(config: Config, clamp: int, noise: NoiseMode) -> None:
    network = stylegan2.random({**config, "conv_clamp": clamp}, 3)
    names = literal.Nvidia(network.reference.state_dict())
    ws = latents(network.architecture, 3)
    graph = network.synthesis(noise)
    given = [torch.randn(3, 1, r, r) for r in graph.noise_sides] if noise == "input" else []
    want = literal.synthesis(names, ws, noise=given or noise, clamp=clamp or None)
    published = network.reference.synthesis
    constant = published.constant_noise() if noise == "const" else None
    assert_close(published(ws, given or constant), want)
    assert_close(graph(ws, *given), want)
    if clamp:
        free = literal.synthesis(names, ws, noise=given or noise)
        assert np.abs(free - want).max() > 0.05


def test_rosinalitys_conventions() -> None:
    tensors = rosinality_weights()
    network = stylegan2.load("rosinality", tensors)
    names = literal.Rosinality(tensors)
    z = torch.randn(4, 8)
    assert_close(network.mapping(z), literal.mapping(names, z))
    ws = latents(network.architecture, 2)
    want = literal.synthesis(names, ws)
    scale = float(np.std(want))
    constant = network.reference.synthesis.constant_noise()
    assert_close(network.reference.synthesis(ws, constant), want, LIMIT * scale)
    assert_close(network.synthesis()(ws), want, LIMIT * scale)


def test_the_epsilon_of_the_demodulation_stays_in_proportion() -> None:
    """With styles so small that it matters, rosinality's scaled weights have a larger share."""
    tensors = rosinality_weights()
    for name in tensors:
        if "conv" in name and "rgb" not in name and "modulation" in name:
            tensors[name] *= 1e-4
    network = stylegan2.load("rosinality", tensors)
    ws = latents(network.architecture, 2)
    want = literal.synthesis(literal.Rosinality(tensors), ws)
    assert_close(network.synthesis()(ws), want, LIMIT * float(np.std(want)))
    for name in tensors:
        if re.fullmatch(r"conv.*\d\.conv\.weight|conv1\.conv\.weight", name):
            tensors[name] *= 10
    other = literal.synthesis(literal.Rosinality(tensors), ws)
    assert np.abs(other - want).max() > 0.01  # without the epsilon a factor would change nothing


def test_styles_of_zero_give_the_bias() -> None:
    tensors = nvidia_weights()
    for name in tensors:
        if "conv" in name and "affine" in name:
            tensors[name].zero_()
    network = stylegan2.load("nvidia", tensors)
    ws = latents(network.architecture, 2)
    want = literal.synthesis(literal.Nvidia(tensors), ws)
    assert_close(network.synthesis()(ws), want)


def test_an_output_without_weights() -> None:
    tensors = nvidia_weights()
    tensors["synthesis.b8.conv0.weight"][3] = 0
    network = stylegan2.load("nvidia", tensors)
    ws = latents(network.architecture, 2)
    assert_close(network.synthesis()(ws), literal.synthesis(literal.Nvidia(tensors), ws))


def test_large_weights_and_styles_do_not_overflow_in_half_precision() -> None:
    tensors = nvidia_weights()
    for name in tensors:
        if re.search(r"conv[01]\.(weight|affine\.(weight|bias))$", name):
            tensors[name] *= 300
    network = stylegan2.load("nvidia", tensors)
    ws = latents(network.architecture, 2)
    want = network.reference.synthesis(ws, network.reference.synthesis.constant_noise())
    published = network.reference.synthesis.half()
    plain = published(ws.half(), published.constant_noise())
    assert not torch.isfinite(plain).all()
    safe = Synthesis(stylegan2.load("nvidia", tensors).reference.synthesis).half()
    error = (safe(ws.half()).float() - want).square().mean().sqrt() / want.std()
    assert error < 0.01


# Names --------------------------------------------------------------------------------------


def test_parameter_names_are_nvidias() -> None:
    with torch.device("meta"):
        net = Generator(Architecture(resolution=8, label_dim=5, mapping_layers=2))
    assert sorted(net.state_dict()) == sorted(NVIDIA_NAMES)


def test_full_size_shapes_are_nvidias() -> None:
    with torch.device("meta"):
        net = Generator(Architecture())
    found = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert net.arch.num_ws == 18
    assert found["mapping.fc7.weight"] == (512, 512)
    assert "mapping.fc8.weight" not in found
    assert found["synthesis.b4.const"] == (512, 4, 4)
    assert found["synthesis.b64.conv1.weight"] == (512, 512, 3, 3)
    assert found["synthesis.b128.conv0.weight"] == (256, 512, 3, 3)
    assert found["synthesis.b1024.conv1.weight"] == (32, 32, 3, 3)
    assert found["synthesis.b1024.conv1.noise_const"] == (1024, 1024)
    assert found["synthesis.b1024.torgb.weight"] == (3, 32, 1, 1)
    assert sum(p.numel() for p in net.parameters()) == 30_370_060


@pytest.mark.parametrize(("multiplier", "last"), [(1, 16), (2, 32)])
def test_full_size_rosinality_configuration(multiplier: int, last: int) -> None:
    wide = {64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
    channels = dict.fromkeys((4, 8, 16, 32), 512)
    channels |= {side: width * multiplier for side, width in wide.items()}
    shapes = rosinality_shapes(channels, 512, 8)
    tensors = {n: torch.empty(s, device="meta") for n, s in shapes.items()}
    config = stylegan2._rosinality_config(tensors)
    arch = Architecture(**config)
    assert arch == Architecture(channel_base=16384 * multiplier)
    assert arch.channels(1024) == last


@pytest.mark.parametrize("config", [SMALL, LABELS, GREY], ids=["small", "labels", "grey"])
def test_configuration_is_found(config: Config) -> None:
    network = stylegan2.random(config, 1)
    tensors = network.reference.state_dict()
    loaded = stylegan2.load("nvidia", tensors)
    assert loaded.config == network.config
    assert {key: loaded.config[key] for key in config if key != "channel_base"} == {
        key: config[key] for key in config if key != "channel_base"
    }
    assert stylegan2.load("nvidia", tensors, network.config).config == network.config
    assert torch.equal(loaded.w_avg, tensors["mapping.w_avg"])
    assert not loaded.sampled


def test_configuration_that_the_weights_do_not_tell() -> None:
    config = {"conv_clamp": 256, "mapping_lr_multiplier": 1.0}
    network = stylegan2.load("nvidia", nvidia_weights(), config)
    assert network.architecture.conv_clamp == 256
    z = torch.randn(3, 10)
    plain = stylegan2.load("nvidia", nvidia_weights())
    assert (network.mapping(z) - plain.mapping(z)).abs().max() > 1


# Detection ----------------------------------------------------------------------------------


def test_the_averaged_generator_is_taken() -> None:
    groups: dict[str, dict[str, torch.Tensor]] = {
        "g": rosinality_weights(1),
        "d": {"convs.0.0.weight": torch.zeros(2)},
        "g_ema": rosinality_weights(2),
    }
    average = torch.arange(8.0)
    checkpoint = Checkpoint("x.pt", "0" * 64, groups, None, {"latent_avg": average})
    assert stylegan2.detect(checkpoint) == ("rosinality", "g_ema")
    network = stylegan2.open_generator(checkpoint)
    assert torch.equal(network.w_avg, average)
    const = network.reference.synthesis.blocks()[0].const
    assert torch.equal(const[None], groups["g_ema"]["input.input"])


def test_an_average_that_is_missing_is_sampled() -> None:
    network = stylegan2.load("rosinality", rosinality_weights())
    assert network.sampled
    w = network.mapping(torch.randn(4000, 8, generator=torch.Generator().manual_seed(9)))
    spread = w.std(dim=0).mean()
    assert (w.mean(dim=0) - network.w_avg).abs().max() < 0.1 * spread
    again = stylegan2.load("rosinality", rosinality_weights())
    assert torch.equal(network.w_avg, again.w_avg)


def test_noise_that_is_missing_is_drawn() -> None:
    tensors = rosinality_weights()
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith("noises")}
    first, second = (stylegan2.load("rosinality", bare) for _ in range(2))
    noise = first.reference.synthesis.constant_noise()
    assert 0.8 < torch.cat([n.flatten() for n in noise]).std() < 1.2
    ws = latents(first.architecture, 1)
    assert torch.equal(first.synthesis()(ws), second.synthesis()(ws))


def test_something_else() -> None:
    checkpoint = Checkpoint("x.pt", "0" * 64, {"": {"synthesis.input.freqs": torch.zeros(3)}}, None)
    with pytest.raises(UnknownNetworkError, match="no StyleGAN2 generator") as caught:
        stylegan2.open_generator(checkpoint)
    assert "synthesis.input.freqs" in caught.value.found


# Network pickles ----------------------------------------------------------------------------


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("the pickle was executed")


class EasyDict(dict[str, Any]):
    """As in NVIDIA's ``dnnlib.util``."""


def persistent(module: nn.Module) -> nn.Module:
    """``module`` pickled as by NVIDIA's ``torch_utils.persistence``, with its parts."""

    class Persistent(type(module)):  # type: ignore[misc]
        def __reduce__(self) -> Any:
            meta = {
                "type": "class",
                "version": 6,
                "module_src": "raise AssertionError('the source was executed')",
                "class_name": "Generator",
                "state": dict(self.__dict__),
            }
            return _reconstruct_persistent_obj, (meta,)

    for child in module.children():
        persistent(child)
    module.__class__ = Persistent
    return module


def network_pickle(path: Path, monkeypatch: pytest.MonkeyPatch, clamp: int | None) -> Tensors:
    """A snapshot as NVIDIA's training loop pickles it, its modules gone again."""
    generators = [stylegan2.random(LABELS, seed).reference for seed in (0, 1)]
    weights = {name: t.clone() for name, t in generators[1].state_dict().items()}
    for net in generators:
        del net.arch, net.synthesis.arch
        for module in net.modules():
            if hasattr(module, "clamp"):
                module.conv_clamp = clamp
    with monkeypatch.context() as patch:
        for thing in (_reconstruct_persistent_obj, EasyDict):
            name = "dnnlib.util" if thing is EasyDict else "torch_utils.persistence"
            made = types.ModuleType(name)
            setattr(made, thing.__name__, thing)
            patch.setitem(sys.modules, name, made)
            patch.setitem(sys.modules, name.partition(".")[0], types.ModuleType("parent"))
            patch.setattr(thing, "__module__", name)
        snapshot = {
            "training_set_kwargs": EasyDict(class_name="training.dataset", path="x.zip"),
            "G": persistent(generators[0]),
            "D": None,
            "G_ema": persistent(generators[1]),
            "augment_pipe": None,
        }
        path.write_bytes(pickle.dumps(snapshot))
    return weights


@pytest.mark.parametrize(("clamp", "config"), [(None, 0), (256, 256)])
def test_network_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clamp: int | None, config: int
) -> None:
    weights = network_pickle(tmp_path / "network.pkl", monkeypatch, clamp)
    checkpoint = open_checkpoint(tmp_path / "network.pkl")
    assert set(checkpoint.groups) == {"G", "G_ema"}
    network = stylegan2.open_generator(checkpoint)
    found = network.reference.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert network.architecture.conv_clamp == config
    assert network.architecture.label_dim == 4


def test_network_pickle_of_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x03cdnnlib.tflib.network\nNetwork\nq\x00)\x81.")
    with pytest.raises(CheckpointError, match="of TensorFlow"):
        open_checkpoint(tmp_path / "a.pkl")


# What is refused ----------------------------------------------------------------------------


def refusal(variant: str, tensors: Tensors, config: Config | None = None, **rest: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        stylegan2.load(variant, tensors, config, **rest)
    return str(caught.value)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("nvidia", "synthesis.b8.conv0.affine.bias"),
        ("nvidia", "mapping.fc1.bias"),
        ("nvidia", "synthesis.b16.conv1.noise_const"),
        ("rosinality", "convs.1.noise.weight"),
        ("rosinality", "to_rgbs.1.conv.modulation.bias"),
        ("rosinality", "noises.noise_4"),
        ("rosinality", "convs.0.conv.blur.kernel"),
    ],
)
def test_parameters_that_do_not_fit_are_named(variant: str, name: str) -> None:
    tensors = nvidia_weights() if variant == "nvidia" else rosinality_weights()
    others = {n: t for n, t in tensors.items() if n != name}
    assert f"missing: {name}" in refusal(variant, others)
    assert "unexpected: extra" in refusal(variant, {**tensors, "extra": torch.zeros(1)})
    longer = torch.cat((tensors[name], tensors[name]))
    assert f"other shape: {name} (" in refusal(variant, {**others, name: longer})
    assert f"floating point: {name}" in refusal(variant, {**others, name: tensors[name].int()})


def test_other_architectures() -> None:
    tensors = nvidia_weights()
    residual = {**tensors, "synthesis.b8.skip.weight": torch.zeros(12, 12, 1, 1)}
    assert "'resnet'" in refusal("nvidia", residual)
    single = {n: t for n, t in tensors.items() if not re.match(r"synthesis\.b[48]\.torgb", n)}
    assert "'orig'" in refusal("nvidia", single)


def test_another_filter() -> None:
    tensors = nvidia_weights()
    tensors["synthesis.b8.conv0.resample_filter"][:] = 1 / 16
    assert "synthesis.b8.conv0.resample_filter" in refusal("nvidia", tensors)
    theirs = rosinality_weights()
    theirs["to_rgbs.1.upsample.kernel"] = torch.full((4, 4), 1 / 4)
    assert "another filter" in refusal("rosinality", theirs)


def test_channels_without_a_rule() -> None:
    tensors = nvidia_weights({**SMALL, "channel_base": 64, "channel_max": 16})
    tensors["synthesis.b8.conv1.weight"] = torch.zeros(10, 10, 3, 3)
    text = refusal("nvidia", tensors)
    assert "16, 10, 4" in text


def test_weights_without_dimensions_or_layers() -> None:
    assert "no parameter synthesis.b4.torgb" not in refusal("nvidia", {})
    assert "no parameter conv1.conv.weight" in refusal("rosinality", {})
    tensors = nvidia_weights()
    tensors["mapping.fc0.weight"] = torch.zeros(3)
    assert "mapping.fc0.weight has a shape" in refusal("nvidia", tensors)


def test_an_average_of_another_size() -> None:
    text = refusal("rosinality", rosinality_weights(), latent_avg=torch.zeros(9))
    assert "mapping.w_avg (9,) instead of (8,)" in text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"resolution": 32}, "disagree about resolution"),
        ({"size": 16}, "does not know: size"),
        ({"conv_clamp": -1}, "conv_clamp has a value"),
        ({"conv_clamp": 2.5}, "conv_clamp has a value"),
        ({"mapping_lr_multiplier": 0.5}, "mapping_lr_multiplier has a value"),
    ],
)
def test_configuration_is_checked(config: Config, message: str) -> None:
    assert message in refusal("nvidia", nvidia_weights(), config)


def test_settings_of_a_network_pickle() -> None:
    tensors = nvidia_weights()
    settings = {
        "synthesis.b4.architecture": "skip",
        "synthesis.b4.conv1.activation": "lrelu",
        "synthesis.b4.conv1.conv_clamp": 256,
        "synthesis.b4.torgb.conv_clamp": 256,
        "mapping.fc0.bias_gain": 0.01,
    }
    network = stylegan2.load("nvidia", tensors, settings=settings)
    assert network.architecture.conv_clamp == 256
    none = {n: None if n.endswith("conv_clamp") else value for n, value in settings.items()}
    assert stylegan2.load("nvidia", tensors, settings=none).architecture.conv_clamp == 0
    for name, value, found in (
        ("synthesis.b4.architecture", "orig", "'orig'"),
        ("synthesis.b4.conv1.activation", "relu", "'relu'"),
        ("synthesis.b4.conv1.use_noise", False, "False"),
        ("synthesis.b4.torgb.conv_clamp", 128, "128"),
        ("mapping.fc0.bias_gain", 0.5, "0.5"),
    ):
        text = refusal("nvidia", tensors, settings={**settings, name: value})
        assert found in text, text
    assert "disagree about conv_clamp" in refusal(
        "nvidia", tensors, {"conv_clamp": 0}, settings=settings
    )


# Random weights -----------------------------------------------------------------------------


def test_random_weights_are_seeded_and_useful() -> None:
    network = stylegan2.random(SMALL, 1)
    arch = network.architecture
    ws = network.mapping(torch.randn(8, arch.z_dim))[:, None].expand(-1, arch.num_ws, -1)
    image = network.synthesis()(ws)
    assert torch.equal(image, stylegan2.random(SMALL, 1).synthesis()(ws))
    assert not torch.equal(image, stylegan2.random(SMALL, 2).synthesis()(ws))
    assert 0.2 < image.std() < 1
    assert image.std(dim=0).mean() > 0.1  # differs from image to image
    assert (image - network.synthesis("none")(ws)).abs().mean() > 0.005
    for module in (network.reference, network.mapping, network.synthesis()):
        assert not any(m.training for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())


def test_a_configuration_that_cannot_be() -> None:
    with pytest.raises(CheckpointError, match="resolution has a value"):
        stylegan2.random({"resolution": 48}, 0)


# Export -------------------------------------------------------------------------------------


def exported(module: nn.Module, example: tuple[torch.Tensor, ...], path: Path) -> onnx.ModelProto:
    batch = torch.export.Dim("N", min=1, max=64)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", io.StringIO())
        shapes: Any = tuple({0: batch} for _ in example)
        if len(example) > 1 and isinstance(module, Synthesis):
            shapes = ({0: batch}, tuple({0: batch} for _ in example[1:]))
        program = torch.onnx.export(
            module, example, dynamo=True, opset_version=18, dynamic_shapes=shapes, verbose=False
        )
    assert program is not None
    program.save(path)
    return onnx.load(path)


def outputs(path: Path, *inputs: torch.Tensor) -> torch.Tensor:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    (result,) = session.run(None, feeds)
    return torch.from_numpy(np.asarray(result))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", [SMALL, LABELS], ids=["plain", "labels"])
def test_mapping_exports_for_any_batch(tmp_path: Path, config: Config) -> None:
    network = stylegan2.random(config, 2)
    z = torch.randn(2, 10)
    label = (torch.eye(4)[:2],) if "label_dim" in config else ()
    exported(network.mapping, (z, *label), tmp_path / "m.onnx")
    for count in (1, 5):
        z = torch.randn(count, 10)
        label = (torch.eye(4)[torch.arange(count) % 4],) if "label_dim" in config else ()
        assert_close(outputs(tmp_path / "m.onnx", z, *label), network.mapping(z, *label), 1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("noise", ["const", "input"])
def test_synthesis_exports_for_any_batch_with_shared_weights(
    tmp_path: Path, noise: NoiseMode
) -> None:
    network = stylegan2.random({**SMALL, "conv_clamp": 256}, 2)
    module = network.synthesis(noise)

    def feeds(count: int) -> tuple[torch.Tensor, ...]:
        sides = module.noise_sides if noise == "input" else ()
        return latents(network.architecture, count), *(torch.randn(count, 1, r, r) for r in sides)

    model = exported(module, feeds(2), tmp_path / "s.onnx")
    for count in (1, 3):
        given = feeds(count)
        assert_close(outputs(tmp_path / "s.onnx", *given), module(*given), 1e-5)
    constants = {tensor.name for tensor in model.graph.initializer}
    kinds = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    # Per doubling: transposed, filter, second, RGB, upsampled image; at the start two.
    assert len(kinds) == 2 + 5 * 2
    assert all(node.input[1] in constants for node in kinds)
