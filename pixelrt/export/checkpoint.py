"""Opens checkpoints: files, folders and repositories of the Hugging Face hub.

Nothing in a checkpoint is ever executed. Only a hub id downloads anything.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pixelrt.errors import CheckpointError
from pixelrt.export.inert_pickle import damage_as_checkpoint_error, open_archive, read_inert
from pixelrt.export.pickle_machine import shown
from pixelrt.export.state_dicts import (
    Settings,
    module_settings,
    outline,
    single_tensors,
    state_dicts,
)
from pixelrt.export.tensor_record import TensorRecord

Groups = dict[str, dict[str, torch.Tensor]]

HUB_PATTERNS = (
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
)
_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_WRAPPER = "module."  # what DataParallel puts before every name

# What torch.load raises for files that it does not take; the inert reader decides on those.
_TORCH_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a checkpoint.

    ``path``: as the user named it. ``sha256``: hex digest of the weight file; of several
    shards, the digest of their binary digests one after another, in the order of file names.
    ``groups``: every state dict found, by where it stood (``""`` at the top, else the keys
    that lead to it joined with dots, such as ``"params_ema"`` or ``"generator"``): parameter
    name, without a common ``module.``, to a dense tensor on the CPU without gradient; tensors
    that share memory in the checkpoint may share it here. ``config``: the content of a
    folder's ``config.json``, else ``None``. ``singles``: tensors beside the state dicts, by
    the keys that lead to them. ``settings``: of modules that were saved whole, by the group of
    their weights, the attributes with plain values, such as ``"net.conv.stride": 2``.
    """

    path: str
    sha256: str
    groups: Groups
    config: dict[str, Any] | None
    singles: dict[str, torch.Tensor] = field(default_factory=dict)
    settings: dict[str, Settings] = field(default_factory=dict)


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Reads the checkpoint ``source``: a file (``.safetensors``, or whatever ``torch.save``
    wrote: ``.pth``, ``.pt``, ``.pth.tar``, ``.bin``, ``.ckpt``; or a dict of modules in a plain
    pickle: ``.pkl``), a folder with ``config.json`` and weights, or, as text of the form
    ``org/name`` that is no existing path, a repository of the Hugging Face hub, which is
    downloaded.

    Raises ``UnsafeCheckpointError`` for a pickle that asks for a call, and
    ``CheckpointError`` for everything else that is not a readable checkpoint.
    """
    try:
        with damage_as_checkpoint_error():
            return _open(source)
    except CheckpointError as error:
        raise type(error)(
            f"{source}: {error.message}",
            found=error.found,
            expected=error.expected,
            hint=error.hint,
        ) from error


def _open(source: str | Path) -> Checkpoint:
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, str(source))
    if path.is_file():
        content = _read_file(path)
        digest, groups = _file_digest(path).hex(), _finished(content.groups)
        return Checkpoint(str(source), digest, groups, None, content.singles, content.settings)
    if path.exists():
        raise CheckpointError("neither a regular file nor a folder", expected=_EXPECTED)
    if isinstance(source, str) and is_hub_id(source):
        return _open_folder(download(source, HUB_PATTERNS), source)
    raise CheckpointError(
        "there is no such file or folder",
        expected=_EXPECTED,
        hint="check the spelling; a relative path starts at the current folder",
    )


_EXPECTED = "a checkpoint file, a folder with config.json and weights, or a hub id (org/name)"


def is_hub_id(source: str) -> bool:
    """Whether ``source`` has the form ``org/name`` and no suffix of a checkpoint file."""
    return bool(_HUB_ID.fullmatch(source)) and not source.endswith(_SUFFIXES)


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# -- files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Content:
    """What one file holds; see ``Checkpoint``."""

    groups: Groups
    singles: dict[str, torch.Tensor] = field(default_factory=dict)
    settings: dict[str, Settings] = field(default_factory=dict)


def _read_file(path: Path) -> _Content:
    _check_head(path)
    if path.suffix == ".safetensors":
        return _Content({"": _read_safetensors(path)})
    tree = _read_pickle(path)
    groups = {
        where: {name: _dense(value, name) for name, value in tensors}
        for where, tensors in state_dicts(tree)
    }
    if not groups:
        raise CheckpointError(
            "the checkpoint holds no weights",
            found=outline(tree),
            expected="a state dict or a module, at the top or under a key such as 'state_dict'",
        )
    singles = {name: _dense(value, name) for name, value in single_tensors(tree) if _plain(value)}
    return _Content(groups, singles, dict(module_settings(tree)))


def _check_head(path: Path) -> None:
    """Raises ``CheckpointError`` for files that are often mistaken for a checkpoint."""
    with path.open("rb") as file:
        head = file.read(512)
    again = "download the file again and compare its size with the page it came from"
    if not head:
        raise CheckpointError(f"{path.name} is empty", hint=again)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer, not the weights",
            found="a text file that names the weights",
            expected="the weights themselves",
            hint="run 'git lfs pull' in the repository, or download the file",
        )
    # The length at the start of a safetensors file may look like '<' but holds zero bytes.
    if head.lstrip().startswith(b"<") and b"\0" not in head:
        raise CheckpointError(
            f"{path.name} is a web page, not a checkpoint", found="HTML or XML text", hint=again
        )
    if head[257:262] == b"ustar":
        raise CheckpointError(
            f"{path.name} is a tar archive, not a checkpoint",
            expected="a file that torch.save wrote (those named .pth.tar are no tar archives)",
            hint="unpack it and give the file within",
        )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device="cpu"))
    except SafetensorError as exc:
        raise CheckpointError(
            f"{path.name} is not a valid safetensors file",
            found=str(exc),
            expected="a complete safetensors file",
            hint="download or copy it again",
        ) from exc


def _read_pickle(path: Path) -> object:
    """The object of a pickled checkpoint: PyTorch's own weights-only reader first, the
    inert reader for what that refuses (whole modules, and everything damaged)."""
    open_archive(path)  # refuses archives that claim to hold more than they do
    try:
        with warnings.catch_warnings():
            # What it warns of (a pickle protocol, old storage types) the user cannot change.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except _TORCH_REFUSALS:
        return read_inert(path)


# -- tensors -------------------------------------------------------------------------------


def _dense(value: torch.Tensor | TensorRecord, name: str) -> torch.Tensor:
    tensor = value.tensor() if isinstance(value, TensorRecord) else value.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        kind = "quantised" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
        raise CheckpointError(
            f"parameter {shown(name)} is of a kind that is not read",
            found=kind,
            expected="a dense tensor with its values, not quantised",
            hint="convert it (dequantize(), to_dense()) and save the checkpoint again",
        )
    return tensor


def _plain(value: torch.Tensor | TensorRecord) -> bool:
    """Whether it is dense floating point: other tensors beside a state dict do not matter."""
    dense = isinstance(value, TensorRecord) or value.layout == torch.strided
    return dense and value.dtype.is_floating_point


def _finished(groups: Mapping[str, dict[str, torch.Tensor]]) -> Groups:
    return {where: _without_wrapper(tensors) for where, tensors in groups.items()}


def _without_wrapper(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    while tensors and all(name.startswith(_WRAPPER) for name in tensors):
        tensors = {name.removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}
    return tensors


# -- folders --------------------------------------------------------------------------------


def _open_folder(folder: Path, name: str) -> Checkpoint:
    config = _read_config(folder)
    files, names = _weight_files(folder)
    groups: Groups = {}
    for file in files:
        for where, tensors in _read_file(file).groups.items():
            _merge(groups.setdefault(where, {}), tensors, file.name)
    missing = sorted(names - groups.get("", {}).keys())
    if missing:
        raise CheckpointError(
            "the weights are incomplete",
            found=f"no {shown(missing[0])} and {len(missing) - 1} more in {len(files)} file(s)",
            expected="every parameter that the index lists",
            hint="download the folder again",
        )
    return Checkpoint(name, _folder_digest(files), _finished(groups), config)


def _merge(into: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], name: str) -> None:
    twice = sorted(into.keys() & tensors.keys())
    if twice:
        raise CheckpointError(
            "two weight files hold the same parameter", found=f"{shown(twice[0])} again in {name}"
        )
    into.update(tensors)


def _folder_digest(files: list[Path]) -> str:
    digests = [_file_digest(file) for file in files]
    return (digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()).hex()


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "the folder has no config.json",
            found=_listing(folder.iterdir()),
            expected="config.json and model.safetensors (or pytorch_model.bin)",
            hint="give the folder of one model, or the weight file itself",
        )
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path.name} is not valid JSON", found=str(exc)) from exc
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} is not a JSON object", found=f"a {type(content).__name__}"
        )
    return content


def _weight_files(folder: Path) -> tuple[list[Path], set[str]]:
    """The weight files of a folder in the order of their names, and the parameters that an
    index says are in them."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name], set()
        if (folder / f"{name}.index.json").is_file():
            return _indexed_files(folder / f"{name}.index.json")
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others, set()
    raise CheckpointError(
        "the folder has no weights" if not others else "the folder has several weight files",
        found=_listing(folder.iterdir()),
        expected="model.safetensors, pytorch_model.bin, or their shards with an index",
        hint="download the weights too, or give the weight file itself",
    )


def _indexed_files(index: Path) -> tuple[list[Path], set[str]]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index.name} lists no weights", expected="a weight_map")
    files = [index.parent / _plain_name(name, index) for name in sorted(set(names.values()))]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise CheckpointError(
            f"the folder lacks weight files that {index.name} lists",
            found=f"no {_listing(absent)}",
            hint="download the missing files",
        )
    return files, set(names)


def _plain_name(name: object, index: Path) -> str:
    if not isinstance(name, str) or Path(name).name != name or "\\" in name:
        raise CheckpointError(
            f"{index.name} names a file outside of its folder",
            found=shown(str(name)),
            expected="plain file names",
        )
    return name


def _listing(paths: Iterable[Path]) -> str:
    names = sorted(path.name for path in paths)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(names[:10]) or "no files") + more


def download(repo_id: str, patterns: Sequence[str]) -> Path:
    """A local copy of a repository of the hub. The only thing in pixelrt that downloads."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repo_id, allow_patterns=list(patterns)))
    except Exception as exc:
        # Its errors come from three libraries and have no common base.
        raise CheckpointError(
            f"no folder of this name here, and the hub gave no repository {repo_id}",
            found=f"{type(exc).__name__}: {exc!s:.300}",
            expected="network access to huggingface.co, or a folder with config.json and weights",
            hint=f"where there is a network: hf download {repo_id} --local-dir FOLDER; "
            "then give FOLDER",
        ) from exc
