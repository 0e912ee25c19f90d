"""A diffusers tokenizer folder to the ``tokenizer.json`` and the settings of a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixelrt.errors import CheckpointError, ExportError
from pixelrt.spec import TokenizerSettings

CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
_FAST = "tokenizer.json"
_SLOW = ("vocab.json", "merges.txt")
_CONFIG = "tokenizer_config.json"
_OBJECTS = (_FAST, _SLOW[0], _CONFIG, "special_tokens_map.json", "added_tokens.json")
_EXPECTED = f"{_FAST}, or {' and '.join(_SLOW)}; with them {_CONFIG}"
_UNLIMITED = 10**6
"""transformers writes a larger number where a tokenizer has no limit."""

_SAMPLES = (
    "",
    "a photograph of an astronaut riding a horse",
    "Crème brûlée!! 1234 (it's) <|endoftext|> 😀 日本\t語",
    "word " * 100,
)


def export_tokenizer(
    folder: Path, *, max_positions: int | None = None, vocab_size: int | None = None
) -> tuple[bytes, TokenizerSettings]:
    """The bytes of a ``tokenizer.json`` and the settings of the CLIP tokenizer in ``folder``,
    read as transformers' ``CLIPTokenizer`` reads it; code in the folder is not looked at.

    ``max_positions`` and ``vocab_size``: ``max_position_embeddings`` and ``vocab_size`` of
    the text encoder, which the tokenizer must fit.

    Raises ``CheckpointError`` where files are missing, damaged, of another tokenizer or do
    not fit the encoder; ``ExportError`` where the result gives other ids than transformers.
    """
    config = _checked_files(folder)
    tokenizer = _open(folder)
    length = _window_length(tokenizer, config, max_positions)
    settings = TokenizerSettings(
        model_max_length=length,
        bos_token_id=_special(tokenizer, "bos"),
        eos_token_id=_special(tokenizer, "eos"),
        pad_token_id=_special(tokenizer, "pad"),
        padding_side=_sides(tokenizer),
    )
    largest = max(tokenizer.get_vocab().values())
    if vocab_size is not None and largest >= vocab_size:
        raise CheckpointError(
            "the tokenizer has tokens that the text encoder does not know",
            found=f"ids up to {largest}",
            expected=f"ids below {vocab_size}, the encoder's vocab_size",
            hint="check that tokenizer and text encoder belong together",
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    data = backend.to_str().encode()
    _compare(data, settings, tokenizer)
    return data, settings


def _checked_files(folder: Path) -> dict[str, Any]:
    """The content of tokenizer_config.json, after all files were found to be readable."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder", expected=f"a folder with {_EXPECTED}")
    present = sorted(path.name for path in folder.iterdir())
    if _FAST not in present and not set(_SLOW) <= set(present):
        raise CheckpointError(
            "the tokenizer's files are not complete",
            found=", ".join(present) or "an empty folder",
            expected=_EXPECTED,
        )
    objects = {name: _json_object(folder / name) for name in _OBJECTS if name in present}
    if _FAST not in present:
        _check_vocabulary(objects[_SLOW[0]])
        _check_merges(folder / _SLOW[1])
    config = objects.get(_CONFIG, {})
    _check_class(config)
    return config


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path.name} is not valid JSON", found=str(exc)) from exc
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} is not a JSON object", found=f"a {type(content).__name__}"
        )
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise CheckpointError(f"{path.name} cannot be read", found=str(exc)) from exc
    except UnicodeDecodeError as exc:
        raise CheckpointError(
            f"{path.name} is not text", found=str(exc), expected="text in UTF-8"
        ) from exc


def _check_vocabulary(vocabulary: dict[str, Any]) -> None:
    ids = list(vocabulary.values())
    wrong = [token for token, at in vocabulary.items() if type(at) is not int or at < 0]
    if wrong or not ids or len(set(ids)) != len(ids):
        raise CheckpointError(
            f"{_SLOW[0]} is not a vocabulary",
            found=f"{wrong[0]!r}: {vocabulary[wrong[0]]!r}"
            if wrong
            else f"{len(ids)} tokens with {len(set(ids))} ids",
            expected="every token with an id of its own, from 0",
        )


def _check_merges(path: Path) -> None:
    lines = _text(path).split("\n")
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r")
        if line and not line.startswith("#version") and len(line.split(" ")) != 2:
            raise CheckpointError(
                f"{path.name} is not a list of merges",
                found=f"line {number}: {line[:60]!r}",
                expected="two tokens with a space between them",
            )


def _check_class(config: dict[str, Any]) -> None:
    name = config.get("tokenizer_class") or CLASSES[0]
    if name not in CLASSES:
        raise CheckpointError(
            "the tokenizer is of a class that is not supported",
            found=str(name),
            expected=" or ".join(CLASSES),
        )


def _open(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as exc:  # transformers and tokenizers raise what comes up
        raise CheckpointError(
            "transformers cannot read the tokenizer",
            found=f"{type(exc).__name__}: {exc}",
            expected=_EXPECTED,
        ) from exc


def _window_length(tokenizer: Any, config: dict[str, Any], max_positions: int | None) -> int:
    stated = config.get("model_max_length", tokenizer.model_max_length)
    limited = isinstance(stated, int) and stated < _UNLIMITED
    length = stated if limited else max_positions
    if length is None or length < 3 or (max_positions is not None and length > max_positions):
        raise CheckpointError(
            "the tokenizer's model_max_length does not fit the text encoder",
            found=str(stated),
            expected="a number from 3 to the encoder's max_position_embeddings"
            + (f", {max_positions}" if max_positions is not None else ""),
            hint=f"correct model_max_length in {_CONFIG}",
        )
    return int(length)


def _special(tokenizer: Any, name: str) -> int:
    found = getattr(tokenizer, f"{name}_token_id")
    if not isinstance(found, int):
        raise CheckpointError(
            f"the tokenizer has no {name} token",
            found=f"{name}_token {getattr(tokenizer, f'{name}_token')!r}",
            expected=f"a token of the vocabulary as {name}_token in {_CONFIG}",
        )
    return found


def _sides(tokenizer: Any) -> Any:
    if tokenizer.truncation_side != "right" or tokenizer.padding_side not in ("right", "left"):
        raise CheckpointError(
            "the tokenizer cuts or pads in a way that is not supported",
            found=f"truncation_side {tokenizer.truncation_side!r}, "
            f"padding_side {tokenizer.padding_side!r}",
            expected="truncation on the right, padding on the right or left",
        )
    return tokenizer.padding_side


def _compare(data: bytes, settings: TokenizerSettings, tokenizer: Any) -> None:
    """Holds the result to what transformers gives, padded as diffusers asks for it."""
    encode = _encoder(data, settings)
    for text in _SAMPLES:
        expected = tokenizer(
            text, padding="max_length", max_length=settings.model_max_length, truncation=True
        ).input_ids
        if encode(text) != expected:
            raise ExportError(
                f"the exported tokenizer reads {text[:60]!r} otherwise than transformers",
                found=str(encode(text)),
                expected=str(expected),
            )


def _encoder(data: bytes, settings: TokenizerSettings) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    written = Tokenizer.from_str(data.decode())
    length = settings.model_max_length

    def encode(text: str) -> list[int]:
        ids = written.encode(text, add_special_tokens=False).ids[: length - 2]
        framed = [settings.bos_token_id, *ids, settings.eos_token_id]
        pads = [settings.pad_token_id] * (length - len(framed))
        return pads + framed if settings.padding_side == "left" else framed + pads

    return encode
