"""LoRA files merged into the weights of a pipeline (Hu et al. 2021, arXiv:2106.09685).

W becomes W + scale * alpha / rank * up @ down. Read are the layouts of kohya-ss/sd-scripts
(``lora_unet_...lora_down.weight`` with ``alpha``; layers named as in diffusers or, for SDXL, as
in the original) and of diffusers and PEFT (``unet.....lora_A.weight``, ``lora.down.weight``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pixelrt.errors import CheckpointError
from pixelrt.export.checkpoint import open_checkpoint
from pixelrt.export.diffusion.original_names import unet_name
from pixelrt.export.diffusion.source import DiffusersFolder, build
from pixelrt.export.pickle_machine import shown

_ROLES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
}
_PREFIXES = {
    "unet": ("lora_unet_", "unet."),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder."),
    "text_encoder_2": ("lora_te2_", "text_encoder_2."),
}
_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class LoraFile:
    """A file and how strongly it is merged."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class Update:
    """What is added to a weight: ``factor * up @ down``, with ``up`` (O, R) and ``down`` (R, I),
    where I are the inputs of a linear layer, or those of a convolution times its kernel."""

    down: Tensor
    up: Tensor
    factor: float


Updates = dict[str, list[tuple[str, Update]]]
"""By component, the updates with the names of their layers."""


def read_loras(files: Sequence[LoraFile], folder: DiffusersFolder) -> Updates:
    """Every update, held against the networks of ``folder``.

    Raises ``CheckpointError`` for keys that fit no layer and for wrong shapes, listing them.
    """
    updates: Updates = {part: [] for part in _PREFIXES}
    if not files:
        return updates
    layers = _layers(folder)
    for file in files:
        for part, layer, update in _read(file, layers):
            updates[part].append((layer, update))
    return updates


def merge(model: nn.Module, updates: Iterable[tuple[str, Update]]) -> None:
    """Add ``updates`` to the weights of ``model``."""
    for layer, update in updates:
        weight = model.get_parameter(f"{layer}.weight")
        delta = update.factor * (update.up @ update.down)
        # A new tensor: the old one may be the checkpoint's.
        weight.data = weight.data + delta.reshape(weight.shape)


@dataclass(frozen=True)
class _Layer:
    part: str
    name: str
    shape: tuple[int, ...]


def _layers(folder: DiffusersFolder) -> dict[str, _Layer]:
    """Linear and convolution layers by every name that a file may have for them."""
    found: dict[str, _Layer] = {}
    for part, prefixes in _PREFIXES.items():
        if not folder.class_of(part):
            continue
        model = build(folder.class_of(part), folder.config(part), meta=True)
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                layer = _Layer(part, name, tuple(module.weight.shape))
                for one in _names(name, part, model):
                    for prefix in prefixes:
                        dotted = prefix.endswith(".")
                        found[prefix + (one if dotted else one.replace(".", "_"))] = layer
    return found


def _names(name: str, part: str, model: Any) -> list[str]:
    if part != "unet":
        # transformers 5.6 left text_model. out of the names.
        bare = name.removeprefix("text_model.")
        return [bare, f"text_model.{bare}"]
    attends = ["CrossAttn" in kind for kind in model.config.up_block_types]
    layers = model.config.layers_per_block
    return [name, unet_name(name, layers, attends)] if isinstance(layers, int) else [name]


def _read(file: LoraFile, layers: Mapping[str, _Layer]) -> list[tuple[str, str, Update]]:
    groups: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in _tensors(file.path).items():
        name, role = _parsed(key)
        if role and name in layers:
            groups.setdefault(name, {})[role] = tensor
        else:
            unknown.append(key)
    if unknown or not groups:
        raise CheckpointError(
            f"{file.path}: not a LoRA of this pipeline",
            found=_listing("keys that fit no layer", unknown) if unknown else "no keys",
            expected="up and down (lora_A and lora_B) of linear and convolution layers",
            hint="check that it was made for this family (SD 1.x, SD 2.x, SDXL)",
        )
    return _updates(file, groups, layers)


def _updates(
    file: LoraFile, groups: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, _Layer]
) -> list[tuple[str, str, Update]]:
    settings = _metadata(file.path)
    updates, wrong = [], []
    for name, tensors in groups.items():
        layer = layers[name]
        found = _update(tensors, layer.shape, file.scale, _alpha(settings, layer))
        if found is None:
            shapes = ", ".join(f"{role} {tuple(t.shape)}" for role, t in tensors.items())
            wrong.append(f"{name}: {shapes} for a weight {layer.shape}")
        else:
            updates.append((layer.part, layer.name, found))
    if wrong:
        raise CheckpointError(
            f"{file.path}: the shapes are not those of this pipeline",
            found=_listing("layers", wrong),
            expected="down (rank, inputs), up (outputs, rank) and alpha a number",
        )
    return updates


def _update(
    tensors: Mapping[str, Tensor], shape: tuple[int, ...], scale: float, alpha: float | None
) -> Update | None:
    """``None`` where they do not fit a weight of this shape."""
    down, up, own = (tensors.get(role) for role in ("down", "up", "alpha"))
    if down is None or up is None or up.ndim not in (2, 4) or down.ndim not in (2, 4):
        return None
    rank = up.shape[1]
    square = (*shape[1:], 1, 1)[:3]  # of linear layers: a convolution of 1 x 1
    fits = (
        rank > 0
        and tuple(up.shape[2:]) in ((), (1, 1))
        and up.shape[0] == shape[0]
        and down.shape[0] == rank
        and (*down.shape[1:], 1, 1)[:3] == square
        and (own is None or (own.numel() == 1 and bool(own.isfinite().all())))
    )
    if not fits:
        return None
    strength = float(own.item()) if own is not None else rank if alpha is None else alpha
    factor = scale * strength / rank
    return Update(down.float().flatten(1), up.float().flatten(1), factor)


def _parsed(key: str) -> tuple[str, str]:
    """The layer and ``down``, ``up`` or ``alpha``; an empty role where it is something else."""
    key = key.removeprefix("base_model.model.")
    for suffix, role in _ROLES.items():
        if key.endswith(suffix):
            return _renamed(key.removesuffix(suffix), attached=suffix.startswith("_lora")), role
    return key, ""


def _renamed(name: str, *, attached: bool) -> str:
    """diffusers once kept LoRA layers in the processors of attention, as ``to_q_lora``."""
    name = name.replace(".processor.", ".")
    if attached and ".self_attn." in name:
        return re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", name)
    return f"{name}.0" if name.endswith(".to_out") else name


def _tensors(path: Path) -> dict[str, Tensor]:
    groups = open_checkpoint(path).groups
    if len(groups) != 1:
        raise CheckpointError(
            f"{path} is no LoRA file",
            found=f"weights under {', '.join(map(repr, map(shown, groups)))}",
            expected="one dictionary of weights",
        )
    return next(iter(groups.values()))


# -- metadata -------------------------------------------------------------------------------


def _metadata(path: Path) -> dict[str, Any]:
    """What PEFT's configuration says, where diffusers has kept it in the file."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_METADATA, "{}")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path}: {_METADATA} is not JSON", found=str(exc)) from exc
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: {_METADATA} is no object", found=type(settings).__name__)
    kinds = ("use_dora", "use_rslora")
    other = [key for key, on in settings.items() if on and key.endswith(kinds)]
    if other:
        raise CheckpointError(
            f"{path} is a LoRA of a kind that is not merged",
            found=", ".join(map(shown, other)),
            expected="plain LoRA, whose scale is alpha / rank",
        )
    return settings


def _alpha(settings: Mapping[str, Any], layer: _Layer) -> float | None:
    patterns = settings.get(f"{layer.part}.alpha_pattern")
    alpha = settings.get(f"{layer.part}.lora_alpha")
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if layer.name == pattern or layer.name.endswith(f".{pattern}"):
            alpha = value
    number = isinstance(alpha, int | float) and math.isfinite(alpha)
    return float(alpha) if number and alpha is not None else None


def _listing(title: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} {title}: {', '.join(map(shown, names[:10]))}{more}"
