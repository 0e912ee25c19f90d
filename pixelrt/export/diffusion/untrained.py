"""Pipelines of a known size with random weights, for latency work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers

from pixelrt.errors import UsageError
from pixelrt.export.diffusion.layouts import LAYOUTS, index_of, scheduler_of
from pixelrt.export.diffusion.published import PUBLISHED, Published
from pixelrt.export.diffusion.single_file import checked_config, tokenizers_of
from pixelrt.export.diffusion.source import DiffusersFolder, build, check_options
from pixelrt.manifest import Source

LIKE = "like"
"""The key of a configuration that names a published one, which the rest of it changes."""


@dataclass(frozen=True)
class Untrained(DiffusersFolder):
    """A pipeline of random weights as if it were a folder of diffusers. ``path``: where the byte
    tokenizer is kept as long as it is open; ``tokenizers``: folders by name."""

    configs: Mapping[str, dict[str, Any]]
    tokenizers: Mapping[str, Path]
    seed: int

    @property
    def source(self) -> Source:
        return Source("random", self.name, seed=self.seed)

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        del file
        return self.configs[part]

    def tokenizer(self, name: str) -> Path:
        return self.tokenizers[name]

    def load(self, part: str) -> Any:
        """The initial weights of diffusers and transformers; the same for a seed, whatever else
        is drawn before."""
        with torch.random.fork_rng(devices=[]):
            text = f"{self.seed} {part}".encode()
            torch.manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 1)
            model = build(self.class_of(part), self.configs[part])
        return model.eval().requires_grad_(False)

    def choices(self) -> object:
        return dict(self.configs)

    def weights(self) -> list[Path]:
        return []


def open_untrained(
    config: str | Mapping[str, Any], seed: int, tokenizers: Sequence[str], folder: Path
) -> Untrained:
    """``config``: the name of one of ``PUBLISHED``, or an object that names it as ``like`` and has
    options of diffusers by component, which go before. ``tokenizers``: as for a single file;
    without any, a byte tokenizer is written to ``folder``.

    Raises ``UsageError`` and ``CheckpointError``.
    """
    given: Mapping[str, Any] = {LIKE: config} if isinstance(config, str) else config
    model = _published(given.get(LIKE))
    changes = checked_config({name: one for name, one in given.items() if name != LIKE})
    configs = {name: {**one, **changes.get(name, {})} for name, one in model.networks.items()}
    layout = next(one for one in LAYOUTS if one.title == model.layout)
    index = index_of(layout, configs["unet"], model.name)
    lacking = sorted(changes.keys() - configs.keys() - {"scheduler"})
    if lacking:
        raise UsageError(
            f"{model.name} has no {', '.join(lacking)}", expected=", ".join(sorted(configs))
        )
    for part in changes.keys() & configs.keys():
        check_options(index[part][1], changes[part])
    scheduler = scheduler_of(layout, model.prediction, zero_snr=False)
    configs["scheduler"] = {**scheduler, **changes.get("scheduler", {})}
    encoders = [one.part for one in layout.encoders]
    names = [part.replace("text_encoder", "tokenizer") for part in encoders]
    title = model.name + (", changed" if changes else "")
    if tokenizers:
        folders = tokenizers_of(tokenizers, names, model.layout)
    else:
        title += ", byte tokenizer"
        folders = {
            name: _byte_tokenizer(folder / name, configs[part])
            for name, part in zip(names, encoders, strict=True)
        }
    return Untrained(folder, title, index, configs, folders, seed)


def _published(name: object) -> Published:
    for one in PUBLISHED:
        if one.name == name:
            return one
    raise UsageError(
        "random weights need a configuration that is known",
        found=str(name) if name else "none",
        expected=", ".join(one.name for one in PUBLISHED),
        hint=f'--config NAME, or a JSON file with {{"{LIKE}": NAME}} and what is to differ',
    )


def _byte_tokenizer(folder: Path, encoder: Mapping[str, Any]) -> Path:
    """A tokenizer in CLIP's form without a merge: every byte is a token, at the end of a word
    another one. The ids of begin and end are those of CLIP: the encoder's last two.

    No vocabulary is shipped, and random weights know no words.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    ids = {token: index for index, token in enumerate(words)}
    size = int(encoder["vocab_size"])
    ids |= {"<|startoftext|>": size - 2, "<|endoftext|>": size - 1}
    folder.mkdir(parents=True)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": int(encoder["max_position_embeddings"]),
        "pad_token": "<|endoftext|>",
    }
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
