"""diffusers' folders: their index, and components loaded one at a time."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pixelrt.errors import CheckpointError
from pixelrt.export.checkpoint import download, is_hub_id

INDEX = "model_index.json"
WEIGHTS = ("*.safetensors", "*.bin")
HUB_PATTERNS = (INDEX, "*/*.json", "*/*.txt", "*/*.safetensors")

CLASSES = {
    "UNet2DConditionModel": "diffusers",
    "ControlNetModel": "diffusers",
    "AutoencoderKL": "diffusers",
    "VQModel": "diffusers",
    "PriorTransformer": "diffusers",
    "CLIPTextModel": "transformers",
    "CLIPTextModelWithProjection": "transformers",
    "CLIPVisionModelWithProjection": "transformers",
}
"""What is ever loaded. A folder cannot bring classes of its own."""


@dataclass(frozen=True)
class DiffusersFolder:
    """A pipeline as ``DiffusionPipeline.save_pretrained`` writes it."""

    path: Path
    name: str
    index: dict[str, Any]

    @property
    def pipeline(self) -> str:
        """Name of the pipeline's class."""
        return str(self.index["_class_name"])

    def class_of(self, part: str) -> str:
        """Name of a component's class, or an empty string where the pipeline has none."""
        match self.index.get(part):
            case [str(), str(name)]:
                return name
        return ""

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """A component's configuration. Raises ``CheckpointError``."""
        return read_object(self.path / part / file)

    def load(self, part: str) -> Any:
        """A component in float32 and eval mode.

        Raises ``CheckpointError`` where it is missing, of an unknown class or incomplete.
        """
        name = self.class_of(part)
        if name not in CLASSES:
            raise CheckpointError(
                f"{self.name}: the component {part} cannot be exported",
                found=name or f"no {part} in {INDEX}",
                expected=" or ".join(sorted(CLASSES)),
            )
        return load_component(CLASSES[name], name, self.path / part)

    def tokenizer(self, name: str) -> Path:
        """The folder of a tokenizer."""
        return self.path / name

    def choices(self) -> object:
        """What beside the weights decides the networks, as JSON."""
        return {
            str(path.relative_to(self.path)): read_object(path)
            for path in sorted(self.path.glob("*/config.json"))
        }

    def weights(self) -> list[Path]:
        """The weight files of all components, in the order of their paths."""
        return sorted(f for part in self.path.iterdir() if part.is_dir() for f in weights_of(part))


def weights_of(folder: Path) -> list[Path]:
    """The weight files of one component."""
    return sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))


def digest_of(files: list[Path]) -> str:
    """SHA-256 of the digests of the files, one after another."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_component(library: str, name: str, folder: Path) -> Any:
    """One model of diffusers or transformers from its own folder, float32, in eval mode."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"there is no component at {folder}", expected=f"config.json and weights of a {name}"
        )
    try:
        kind = getattr(__import__(library), name)
        model, info = kind.from_pretrained(
            str(folder), local_files_only=True, torch_dtype=torch.float32, output_loading_info=True
        )
    # Both libraries raise whatever the reader of a format raises.
    except Exception as exc:
        raise CheckpointError(
            f"{folder} could not be loaded as a {name}", found=f"{type(exc).__name__}: {exc!s:.500}"
        ) from exc
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder} is incomplete",
            found=f"no weights for {missing[0]} and {len(missing) - 1} more",
            expected=f"all weights of the {name} that config.json describes",
        )
    return model.eval().requires_grad_(False)


def build(name: str, config: Mapping[str, Any], *, meta: bool = False) -> Any:
    """A model of a class of ``CLASSES`` with random weights, or, with ``meta``, with none.

    Raises ``CheckpointError`` for options that do not fit together.
    """
    kind = getattr(__import__(CLASSES[name]), name)
    place = torch.device("meta") if meta else nullcontext()
    try:
        with place:
            if CLASSES[name] == "diffusers":
                return kind.from_config(dict(config))
            return kind(kind.config_class.from_dict(dict(config)))
    # Both libraries raise whatever their layers raise.
    except Exception as exc:
        raise CheckpointError(
            f"the configuration describes no {name}", found=f"{type(exc).__name__}: {exc!s:.500}"
        ) from exc


def check_options(name: str, options: Iterable[str]) -> None:
    """Raises ``CheckpointError`` for options that a class of ``CLASSES`` does not have."""
    kind = getattr(__import__(CLASSES[name]), name)
    diffusers = CLASSES[name] == "diffusers"
    own = inspect.signature(kind).parameters if diffusers else vars(kind.config_class())
    unknown = sorted(option for option in options if option not in own)
    if unknown:
        raise CheckpointError(
            f"a {name} has no such option",
            found=", ".join(unknown),
            expected=", ".join(sorted(one for one in own if not one.startswith("_"))),
        )


def open_diffusers(source: str | Path) -> DiffusersFolder:
    """A folder, or a hub id, which is downloaded. Raises ``CheckpointError``."""
    path = Path(source)
    if not path.exists() and isinstance(source, str) and is_hub_id(source):
        path = download(source, HUB_PATTERNS)
    if not (path / INDEX).is_file():
        raise CheckpointError(
            f"{source} is no diffusers pipeline", expected=f"a folder with {INDEX}"
        )
    index = read_object(path / INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise CheckpointError(f"{path / INDEX} names no pipeline", expected="_class_name")
    return DiffusersFolder(path, str(source), index)


def is_diffusers(source: str | Path | None) -> bool:
    return source is not None and (Path(source) / INDEX).is_file()


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ``CheckpointError`` naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read", found=str(exc)) from exc
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} is not valid JSON", found=str(exc)) from exc
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object", found=type(content).__name__)
    return content
