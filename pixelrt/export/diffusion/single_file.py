"""Checkpoints that hold a whole Stable Diffusion pipeline in one file, in the layout of CompVis
and Stability AI. They are read as what they would be as a folder of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelrt.errors import CheckpointError, UsageError
from pixelrt.export.checkpoint import download, is_hub_id, open_checkpoint
from pixelrt.export.diffusion.layouts import (
    UNET,
    VAE,
    Layout,
    configs_of,
    index_of,
    layout_of,
    sample_size,
    scheduler_of,
)
from pixelrt.export.diffusion.original_names import open_clip_name, unet_name, vae_name
from pixelrt.export.diffusion.prediction import Prediction, prediction_of
from pixelrt.export.diffusion.source import DiffusersFolder, build, check_options
from pixelrt.export.pickle_machine import shown

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
CONFIGS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler")
TOKENIZER_FILES = ("*.json", "merges.txt", "tokenizer*/*.json", "tokenizer*/merges.txt")

Convert = Callable[[str], tuple[str, int | None]]
"""The name of a parameter in the file, from that of diffusers or transformers; and which third
of the rows it is, where it is a part."""


@dataclass(frozen=True)
class SingleFile(DiffusersFolder):
    """A file as if it were a folder of diffusers. ``configs`` by component; ``tensors`` as they
    are in the file; ``tokenizers`` by name."""

    configs: Mapping[str, dict[str, Any]]
    tensors: Mapping[str, Tensor]
    layout: Layout
    tokenizers: Mapping[str, Path]

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        del file
        return self.configs[part]

    def tokenizer(self, name: str) -> Path:
        return self.tokenizers[name]

    def load(self, part: str) -> Any:
        name = self.class_of(part)
        model = build(name, self.configs[part], meta=part in ("unet", "vae"))
        prefix, convert = self.converter(part)
        state = _state(
            model, partial(_found, self.tensors, prefix), convert, f"{self.name}: {part}"
        )
        _load(model, state, f"{self.name}: {part}")
        return model.eval().requires_grad_(False)

    def choices(self) -> object:
        return dict(self.configs)

    def weights(self) -> list[Path]:
        return [self.path]

    def converter(self, part: str) -> tuple[str, Convert]:
        config = self.configs[part]
        if part == "unet":
            attends = ["CrossAttn" in kind for kind in config["up_block_types"]]
            layers = config["layers_per_block"]
            return UNET, lambda name: (unet_name(name, layers, attends), None)
        if part == "vae":
            blocks = len(config["block_out_channels"])
            return VAE, lambda name: (vae_name(name, blocks), None)
        encoder = next(one for one in self.layout.encoders if one.part == part)
        if encoder.open_clip:
            return encoder.prefix, lambda name: open_clip_name(name.removeprefix("text_model."))
        # transformers 5.6 left text_model. out of the names.
        return encoder.prefix, lambda name: ("text_model." + name.removeprefix("text_model."), None)


def is_single_file(source: str | Path) -> bool:
    return Path(source).is_file() and str(source).endswith(SUFFIXES)


def open_single_file(
    source: str | Path,
    tokenizers: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> SingleFile:
    """Reads a file.

    ``tokenizers``: folders or hub ids, one for each text encoder in order, or one that has them
    all as diffusers' folders do. ``config``: by component, options that go before what the
    weights tell. Raises ``CheckpointError`` where the layout is unknown or something is missing,
    ``UsageError`` where tokenizers are.
    """
    given = checked_config(config or {})
    tensors = _tensors(source)
    layout = layout_of(tensors, str(source))
    names = [one.part.replace("text_encoder", "tokenizer") for one in layout.encoders]
    folders = tokenizers_of(tokenizers, names, layout.title)
    try:
        configs = configs_of(tensors, layout, given)
    except CheckpointError as error:
        raise CheckpointError(
            f"{source}: {error.message}",
            found=error.found,
            expected=error.expected,
            hint=error.hint,
        ) from error
    index = index_of(layout, configs["unet"], str(source))
    for part in given.keys() & index.keys():
        check_options(index[part][1], given[part])
    file = SingleFile(Path(source), str(source), index, configs, tensors, layout, folders)
    check_complete(file)
    scheduler = given.get("scheduler", {})
    prediction = scheduler.get("prediction_type") or _prediction(file)
    found = scheduler_of(layout, prediction, zero_snr="ztsnr" in tensors)
    configs["scheduler"] = {**found, **scheduler}
    configs["unet"].setdefault("sample_size", sample_size(layout, prediction))
    return file


def checked_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    wrong = [
        name for name, value in config.items() if name not in CONFIGS or not isinstance(value, dict)
    ]
    if wrong:
        raise CheckpointError(
            "the configuration is not one of a diffusion pipeline",
            found=", ".join(wrong),
            expected=f"JSON objects under some of {', '.join(CONFIGS)}",
        )
    return config


def _tensors(source: str | Path) -> Mapping[str, Tensor]:
    groups = open_checkpoint(source).groups
    for tensors in groups.values():
        if any(name.startswith(UNET) for name in tensors):
            return tensors
    names = sorted(name for tensors in groups.values() for name in tensors)
    raise CheckpointError(
        f"{source} is no Stable Diffusion checkpoint",
        found=f"{len(names)} weights, such as {', '.join(map(shown, names[:3]))}",
        expected=f"{UNET}*, {VAE}* and a text encoder",
        hint="a UNet, VAE or LoRA alone cannot become a pipeline",
    )


# -- tokenizers -----------------------------------------------------------------------------


def tokenizers_of(given: Sequence[str], names: list[str], title: str) -> dict[str, Path]:
    folders = [_tokenizer_folder(one) for one in given]
    if len(folders) == 1 and all((folders[0] / name).is_dir() for name in names):
        return {name: folders[0] / name for name in names}
    if len(folders) != len(names):
        raise UsageError(
            f"the vocabulary of the text encoders is not in the file ({title})",
            found=f"{len(given)} tokenizers given",
            expected=f"{len(names)}: {' and '.join(names)} of a diffusers folder of {title}",
            hint="give --tokenizer FOLDER for each, or the folder or hub id that has them all",
        )
    return dict(zip(names, folders, strict=True))


def _tokenizer_folder(source: str) -> Path:
    path = Path(source)
    return download(source, TOKENIZER_FILES) if not path.exists() and is_hub_id(source) else path


def _prediction(file: SingleFile) -> Prediction:
    """SD 1.x, SDXL and inpainting predict the noise, unless the file has the mark that trainers
    of others set; SD 2.x came with both and is asked."""
    if "v_pred" in file.tensors:
        return "v_prediction"
    config = file.configs["unet"]
    if file.layout.title != "SD 2.x" or config["in_channels"] != config["out_channels"]:
        return "epsilon"
    unet = file.load("unet")
    text = torch.zeros(1, 77, config["cross_attention_dim"])

    def network(x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = unet(x, time, encoder_hidden_states=text, return_dict=False)[0]
        return out

    return prediction_of(network, config["in_channels"])


# -- weights --------------------------------------------------------------------------------


def check_complete(file: SingleFile) -> None:
    """Raises ``CheckpointError`` before anything is exported, with shapes alone."""
    for part in ("unet", "vae", *(one.part for one in file.layout.encoders)):
        prefix, convert = file.converter(part)
        model = build(file.class_of(part), file.configs[part], meta=True)
        used: set[str] = set()

        def find(name: str, prefix: str = prefix, used: set[str] = used) -> Tensor | None:
            used.add(prefix + name)
            return _found(file.tensors, prefix, name)

        _state(model, find, convert, f"{file.name}: {part}")
        rest = sorted(n for n in file.tensors if n.startswith(prefix) and n not in used)
        if part == "unet" and rest:
            raise CheckpointError(
                f"{file.name}: the UNet has weights of another network",
                found=f"{', '.join(map(shown, rest[:5]))} ({len(rest)} in all)",
                expected="those of SD 1.x, SD 2.x, SDXL or its refiner",
            )


def _found(tensors: Mapping[str, Tensor], prefix: str, name: str) -> Tensor | None:
    return tensors.get(prefix + name)


def _state(
    model: torch.nn.Module,
    find: Callable[[str], Tensor | None],
    convert: Convert,
    title: str,
) -> dict[str, Tensor]:
    """The state dict of ``model``, in the types of the file. Raises ``CheckpointError``."""
    state: dict[str, Tensor] = {}
    missing, wrong = [], []
    for name, own in model.state_dict().items():
        original, third = convert(name)
        tensor = find(original)
        if tensor is None:
            missing.append(original)
            continue
        state[name] = _fitted(tensor, third, tuple(own.shape), original)
        if state[name].shape != own.shape:
            wrong.append(f"{original} {tuple(tensor.shape)} for {tuple(own.shape)}")
    if missing or wrong:
        lacking = [f"no {one}" for one in missing] + wrong
        raise CheckpointError(
            f"{title} is not complete, or of another network",
            found=f"{'; '.join(lacking[:5])} ({len(lacking)} in all)",
            expected=f"{len(missing) + len(state)} weights in the original layout",
            hint="download the file again; give --config where the network is a changed one",
        )
    return state


def _fitted(tensor: Tensor, third: int | None, shape: tuple[int, ...], name: str) -> Tensor:
    if third is not None and tensor.ndim and tensor.shape[0] % 3 == 0:
        tensor = tensor.chunk(3)[third]
    if name == "text_projection" and tensor.ndim == 2:
        return tensor.T  # x @ text_projection, where transformers has a linear layer
    # Attention of the VAE is a convolution of 1 x 1 in the original.
    return tensor[:, :, 0, 0] if tensor.shape == (*shape, 1, 1) else tensor


def _load(model: torch.nn.Module, state: dict[str, Tensor], title: str) -> None:
    try:
        model.load_state_dict(
            {name: tensor.float().contiguous() for name, tensor in state.items()}, assign=True
        )
    except RuntimeError as exc:
        raise CheckpointError(f"{title} could not be loaded", found=f"{exc!s:.500}") from exc
