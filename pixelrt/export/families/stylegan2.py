"""StyleGAN2 generators (Karras et al. 2020, arXiv:1912.04958).

Checkpoints: rosinality/stylegan2-pytorch (``g_ema``), the network pickles of
NVlabs/stylegan2-ada-pytorch and of NVlabs/stylegan3 with ``--cfg=stylegan2``, and state dicts
with NVIDIA's names. Projection of an image to a latent is training, and is not here.

Configuration: that of ``networks.stylegan2.Architecture``. All but ``conv_clamp`` and
``mapping_lr_multiplier`` is read off the weights; of these two, network pickles tell as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pixelrt.errors import CheckpointError, UnknownNetworkError
from pixelrt.export.checkpoint import Checkpoint
from pixelrt.export.families._weights import (
    CHANNELS,
    Choices,
    count,
    load_strictly,
    settle,
    shape_of,
)
from pixelrt.export.families.stylegan2_keys import from_rosinality
from pixelrt.export.networks import stylegan2_graph
from pixelrt.export.networks.stylegan2 import START, Architecture, Generator, fir_filter
from pixelrt.export.recipe import Config, Tensors, Variant

NAME = "stylegan2"
VARIANTS = (
    Variant(
        "rosinality",
        (r"style\.1\.weight", r"input\.input", r"conv1\.conv\.modulation\.weight"),
    ),
    Variant(
        "nvidia",
        (r"mapping\.fc0\.weight", r"synthesis\.b4\.const", r"synthesis\.b8\.conv0\.weight"),
    ),
)
AVERAGED = ("g_ema", "G_ema")
"""Groups with averaged weights, which are those to use."""

CHOICES: Choices = {
    "resolution": tuple(2**i for i in range(3, 12)),
    "channel_base": range(1, 2**20),
    "channel_max": range(1, 8193),
    "z_dim": range(1, 8193),
    "w_dim": range(1, 8193),
    "label_dim": range(65537),
    "mapping_layers": range(1, 65),
    "image_channels": CHANNELS,
    "conv_clamp": range(65505),
    "mapping_lr_multiplier": (0.01, 0.1, 1.0),
}
W_AVG_SAMPLES = 10_000
FILTER_TOLERANCE = 1e-6
RGB_DEVIATION = 0.5
"""Of the image that random weights give, roughly."""

Settings = Mapping[str, bool | int | float | str | None]


@dataclass(frozen=True)
class StyleGan2:
    """A generator with its weights, ready to be exported. All modules are in eval mode.

    ``reference``: the published maths in fp32. ``mapping``: z ``(N, z_dim)``, and for networks
    with labels a one-hot label ``(N, label_dim)``, to w ``(N, w_dim)``. ``synthesis(noise)``: ws
    ``(N, num_ws, w_dim)`` to an image ``(N, image_channels, R, R)``. ``w_avg``, ``(w_dim,)``: the
    centre of truncation; ``sampled`` says that the checkpoint had none.
    """

    config: Config
    reference: Generator
    mapping: stylegan2_graph.Mapping
    w_avg: torch.Tensor
    sampled: bool

    @property
    def architecture(self) -> Architecture:
        return self.reference.arch

    def synthesis(self, noise: stylegan2_graph.NoiseMode = "const") -> stylegan2_graph.Synthesis:
        return stylegan2_graph.Synthesis(self.reference.synthesis, noise).eval()


def open_generator(checkpoint: Checkpoint, config: Config | None = None) -> StyleGan2:
    """The generator of a checkpoint: of several, the averaged one.

    Raises ``UnknownNetworkError`` where there is none, ``CheckpointError`` where weights and
    configuration do not fit this network or each other.
    """
    variant, group = detect(checkpoint)
    parent = group.rpartition(".")[0]
    return load(
        variant,
        checkpoint.groups[group],
        config,
        latent_avg=checkpoint.singles.get(f"{parent}.latent_avg".lstrip(".")),
        settings=checkpoint.settings.get(group, {}),
    )


def detect(checkpoint: Checkpoint) -> tuple[str, str]:
    """Variant and group of the generator. Raises ``UnknownNetworkError``."""
    found = [
        (variant.name, group)
        for group, tensors in checkpoint.groups.items()
        for variant in VARIANTS
        if all(any(re.fullmatch(key, name) for name in tensors) for key in variant.keys)
    ]
    if not found:
        names = [name for tensors in checkpoint.groups.values() for name in tensors]
        wanted = "; ".join(f"{v.name}: {', '.join(v.keys)}" for v in VARIANTS)
        raise UnknownNetworkError(
            f"There is no StyleGAN2 generator in {checkpoint.path}.",
            found=f"{len(names)} tensors: {', '.join(names[:6])}{', ...' if names[6:] else ''}",
            expected=f"parameter names of one of {wanted}",
        )
    return max(found, key=lambda match: match[1].rpartition(".")[2] in AVERAGED)


def load(
    variant: str,
    tensors: Tensors,
    config: Config | None = None,
    *,
    latent_avg: torch.Tensor | None = None,
    settings: Settings | None = None,
) -> StyleGan2:
    """The generator of a state dict.

    ``latent_avg``: rosinality's centre of truncation, which stands beside the state dict.
    ``settings``: attributes of the modules of a network pickle. Raises ``CheckpointError``.
    """
    known = _shape_config(variant, tensors) | _settings_config(settings or {})
    config = _complete(settle(known, config, CHOICES, fixed=True))
    arch = Architecture(**config)
    sampled = False
    if variant == "rosinality":
        with torch.device("meta"):
            expected = Generator(arch).state_dict()
        tensors = from_rosinality(tensors, expected)
        sampled = latent_avg is None
        centre = torch.zeros(arch.w_dim) if latent_avg is None else latent_avg.flatten()
        tensors = {**tensors, "mapping.w_avg": centre}
    net = load_strictly(lambda: Generator(arch), tensors)
    _check_filters(net)
    if sampled:
        net.mapping.w_avg.copy_(mean_w(net, W_AVG_SAMPLES))
    return _ready(net, config, sampled=sampled)


def random(config: Config | None, seed: int) -> StyleGan2:
    """The architecture with seeded random weights; the image has a deviation of about 0.5."""
    config = _complete(settle({}, config, CHOICES, fixed=False))
    arch = Architecture(**config)
    with torch.device("meta"):
        net = Generator(arch)
    net.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if name.endswith("resample_filter"):
            tensor.copy_(fir_filter())
            continue
        mean = 1.0 if name.endswith("affine.bias") else 0.0
        tensor.normal_(mean, _deviation(name, arch), generator=generator)
    net.mapping.w_avg.copy_(mean_w(net, W_AVG_SAMPLES))
    return _ready(net, config, sampled=True)


def _deviation(name: str, arch: Architecture) -> float:
    """Published initial values, but biases and noise strengths are not 0."""
    if re.fullmatch(r"mapping\.fc\d+\.(weight|bias)", name):
        return (1.0 if name.endswith("weight") else 0.1) / arch.mapping_lr_multiplier
    if name.endswith("torgb.weight"):
        # Each level adds its share; styles of mean 1 and deviation 1 have a mean square of 2.
        return RGB_DEVIATION / math.sqrt(2 * len(arch.sides))
    return 0.1 if name.endswith(("bias", "noise_strength")) else 1.0


@torch.no_grad()
def mean_w(net: Generator, samples: int) -> torch.Tensor:
    """The mean of w over seeded z, and over the labels in turn, ``(w_dim,)``."""
    arch = net.arch
    z = torch.randn(samples, arch.z_dim, generator=torch.Generator().manual_seed(0))
    if not arch.label_dim:
        w: torch.Tensor = net.mapping(z)
    else:
        label = torch.eye(arch.label_dim)[torch.arange(samples) % arch.label_dim]
        w = net.mapping(z, label)
    return w.mean(dim=0)


def _ready(net: Generator, config: Config, *, sampled: bool) -> StyleGan2:
    mapping = stylegan2_graph.Mapping(net.mapping).eval()
    return StyleGan2(config, net, mapping, net.mapping.w_avg, sampled)


def _complete(config: Config) -> Config:
    """All keys; of the bases that give the same channels, the smallest."""
    arch = Architecture(**config)
    return {**asdict(arch), "channel_base": max(arch.channels(side) * side for side in arch.sides)}


# Configuration ------------------------------------------------------------------------------


def _shape_config(variant: str, tensors: Tensors) -> Config:
    return _nvidia_config(tensors) if variant == "nvidia" else _rosinality_config(tensors)


def _nvidia_config(tensors: Tensors) -> Config:
    _refuse_architectures(tensors)
    levels = count(tensors, lambda i: f"synthesis.b{START << i}.conv1.weight")
    names = [f"synthesis.b{START << i}.conv1.weight" for i in range(max(levels, 1))]
    w_dim = shape_of(tensors, "synthesis.b4.conv1.affine.weight", 2)[1]
    inputs = shape_of(tensors, "mapping.fc0.weight", 2)[1]
    labels = 0
    if "mapping.embed.weight" in tensors:
        labels = shape_of(tensors, "mapping.embed.weight", 2)[1]
        inputs -= w_dim
    return {
        **_channels([shape_of(tensors, name)[0] for name in names]),
        "z_dim": inputs,
        "w_dim": w_dim,
        "label_dim": labels,
        "mapping_layers": count(tensors, lambda i: f"mapping.fc{i}.weight"),
        "image_channels": shape_of(tensors, "synthesis.b4.torgb.weight")[0],
    }


def _refuse_architectures(tensors: Tensors) -> None:
    if "synthesis.b4.torgb.weight" in tensors and "synthesis.b8.skip.weight" not in tensors:
        return
    residual = "synthesis.b8.skip.weight" in tensors
    raise CheckpointError(
        "The generator has another architecture than the published networks.",
        found="'resnet' (synthesis.b8.skip.weight)" if residual else "'orig' (one torgb only)",
        expected="'skip', with a torgb in every block",
    )


def _rosinality_config(tensors: Tensors) -> Config:
    doublings = count(tensors, lambda i: f"convs.{2 * i + 1}.conv.weight")
    names = ["conv1.conv.weight", *(f"convs.{2 * i + 1}.conv.weight" for i in range(doublings))]
    return {
        **_channels([shape_of(tensors, name, 5)[1] for name in names]),
        "z_dim": shape_of(tensors, "style.1.weight", 2)[1],
        "w_dim": shape_of(tensors, "conv1.conv.modulation.weight", 2)[1],
        "label_dim": 0,
        "mapping_layers": count(tensors, lambda i: f"style.{i + 1}.weight"),
        "image_channels": shape_of(tensors, "to_rgb1.bias")[1],
    }


def _channels(widths: list[int]) -> Config:
    """Resolution, and the base and maximum that give these channels for sides 4, 8, …"""
    base = max(width * (START << i) for i, width in enumerate(widths))
    most = max(widths)
    if widths != [min(base // (START << i), most) for i in range(len(widths))]:
        raise CheckpointError(
            "The channels of the blocks follow no known rule.",
            found=", ".join(map(str, widths)),
            expected="min(channel_base // side, channel_max) for sides 4, 8, ...",
        )
    return {
        "resolution": START << (len(widths) - 1),
        "channel_base": base,
        "channel_max": most,
    }


def _settings_config(settings: Settings) -> Config:
    """What the modules of a network pickle say beyond their shapes; ``{}`` without one."""
    config: Config = {}
    _only(settings, r"synthesis\.b\d+\.architecture", ("skip",))
    _only(settings, r"(mapping\.fc\d+|synthesis\.b\d+\.conv[01])\.activation", ("lrelu",))
    _only(settings, r"synthesis\.b\d+\.conv[01]\.use_noise", (True,))
    if settings:
        clamp = _only(settings, r"synthesis\.b\d+\.(conv[01]|torgb)\.conv_clamp") or 0
        config["conv_clamp"] = int(clamp) if clamp == int(clamp) else clamp
        config["mapping_lr_multiplier"] = _only(settings, r"mapping\.fc\d+\.bias_gain")
    return config


def _only(settings: Settings, pattern: str, allowed: Collection[object] = ()) -> Any:
    """The value that all settings of this name share, None without any; it must be among
    ``allowed``, if there are such."""
    found = {name: value for name, value in settings.items() if re.fullmatch(pattern, name)}
    values = set(found.values())
    if len(values) > 1 or (allowed and not values <= set(allowed)):
        raise CheckpointError(
            "The network pickle has a setting that this network cannot have.",
            found=", ".join(f"{name} = {value!r}" for name, value in list(found.items())[:3]),
            expected=" or ".join(map(repr, allowed)) or "one value in all of them",
        )
    return next(iter(values), None)


def _check_filters(net: Generator) -> None:
    for name, tensor in net.state_dict().items():
        if not name.endswith("resample_filter"):
            continue
        if not torch.allclose(tensor, fir_filter(), rtol=0, atol=FILTER_TOLERANCE):
            raise CheckpointError(
                "The generator upsamples with another filter than the published networks.",
                found=f"{name}: {tensor[0].tolist()} in its first row",
                expected="the outer product of [1, 3, 3, 1] with itself, of sum 1",
            )
