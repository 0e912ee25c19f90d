"""Small CLIP tokenizers as diffusers keeps them: every byte, a few merges, special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MERGES = (
    ("t", "h"),
    ("th", "e</w>"),
    ("i", "n"),
    ("in", "g</w>"),
    ("c", "a"),
    ("ca", "t</w>"),
    ("p", "h"),
    ("o", "t"),
    ("ph", "ot"),
    ("phot", "o</w>"),
    ("Ã", "©"),  # the two bytes of é
    ("ð", "Ł"),  # the first two bytes of most emoji
    ("!", "!</w>"),
)


def vocabulary() -> dict[str, int]:
    """Id 0 is "!", as in CLIP's own; the special tokens come last."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, MERGES), BOS, EOS]
    return {token: index for index, token in enumerate(words)}


def write_folder(folder: Path, pad: str = EOS, **config: Any) -> Path:
    """The four files of a ``tokenizer`` folder; ``config`` changes tokenizer_config.json,
    ``None`` takes an entry out of it."""
    folder.mkdir(parents=True)
    specials = {"bos_token": token(BOS), "eos_token": token(EOS), "unk_token": token(EOS)}
    settings: dict[str, Any] = {
        **{name: {"__type": "AddedToken", **value} for name, value in specials.items()},
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        **config,
    }
    kept = {name: value for name, value in settings.items() if value is not None}
    write_json(folder / "vocab.json", vocabulary())
    lines = ["#version: 0.2", *map(" ".join, MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", kept)
    write_json(folder / "special_tokens_map.json", {**specials, "pad_token": pad})
    return folder


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def token(content: str) -> dict[str, Any]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
