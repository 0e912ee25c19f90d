"""Prompts to windows of token ids, as a text encoder takes them.

A prompt that one window does not hold is cut into several, each between begin and end of
text, as AUTOMATIC1111's web UI and diffusers' long-prompt pipelines do. The encoder runs
over all windows as one batch, and ``emphasis.assemble`` joins what it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import InputError, UsageError
from pixelrt.runtime.diffusion.text.prompt import Segment, literal, parse
from pixelrt.runtime.diffusion.text.tokenizer import Tokenizer

LongPrompts = Literal["chunk", "truncate", "error"]
"""What becomes of a prompt that one window does not hold: ``chunk``: it is cut into windows;
``truncate``: the part beyond the first window is dropped and reported in a note, as in
diffusers; ``error``: ``InputError``."""

COMMA_REACH = 20
"""A window ends after the last comma within this many tokens of its end, as the web UI does."""

Token = tuple[int, float]
"""An id and its weight."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """The windows of B prompts, the same number of windows ("chunks") for each.

    ``ids``: int64 (B * chunks, L), the windows of the first prompt first; L is
    ``model_max_length``. ``mask``: bool, the same shape, False for padding (diffusers'
    ``attention_mask``). ``weights``: float32 (B, chunks * L), 1 for begin, end and padding.
    ``notes``: what the user should know about these prompts.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    weights: NDArray[np.float32]
    chunks: int
    notes: tuple[str, ...] = ()


def prepare(
    prompts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    long_prompts: LongPrompts = "chunk",
    weighting: bool = True,
    chunks: int = 1,
) -> TokenBatch:
    """The windows of positive and negative prompts together, so that all get equally many:
    windows of the empty prompt follow those of the shorter ones.

    ``weighting``: read ``(word:1.3)`` and BREAK (see ``prompt``); without it they are text,
    as in diffusers. ``chunks``: at least this many windows.

    Raises ``InputError`` for a prompt that cannot be used, ``UsageError`` for an option.
    """
    [batch] = prepare_each(
        [prompts], [tokenizer], long_prompts=long_prompts, weighting=weighting, chunks=chunks
    )
    return batch


def prepare_each(
    prompts: Sequence[Sequence[str]],
    tokenizers: Sequence[Tokenizer],
    *,
    long_prompts: LongPrompts = "chunk",
    weighting: bool = True,
    chunks: int = 1,
) -> list[TokenBatch]:
    """As ``prepare``, for several text encoders whose embeddings are joined along channels
    (SDXL's ``prompt`` and ``prompt_2``): all batches have the same number of windows."""
    if long_prompts not in get_args(LongPrompts):
        raise UsageError(
            f"long_prompts is {long_prompts!r}", expected=", ".join(get_args(LongPrompts))
        )
    read = [
        [_read(prompt, tokenizer, long_prompts, weighting) for prompt in _checked(some)]
        for some, tokenizer in zip(prompts, tokenizers, strict=True)
    ]
    most = max([chunks, *(len(one.windows) for some in read for one in some)])
    return [_batch(some, tok, most) for some, tok in zip(read, tokenizers, strict=True)]


@dataclass(frozen=True)
class _Read:
    windows: list[list[Token]]
    notes: tuple[str, ...] = ()


def _checked(prompts: Sequence[str]) -> Sequence[str]:
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UsageError(
            "prompts are given as a list of texts",
            found=type(prompts).__name__
            if isinstance(prompts, str)
            else ", ".join(type(prompt).__name__ for prompt in prompts),
            expected="a sequence of str",
        )
    if not prompts:
        raise UsageError("no prompt was given", expected="at least one; it may be empty")
    return prompts


def _read(prompt: str, tokenizer: Tokenizer, long_prompts: LongPrompts, weighting: bool) -> _Read:
    segments = parse(prompt) if weighting else literal(prompt)
    tokens = [_tokens(segment, tokenizer) for segment in segments]
    if long_prompts == "truncate":
        return _truncated(prompt, tokens, tokenizer)
    windows = _windows(tokens, tokenizer.room, tokenizer.comma)
    if long_prompts == "error" and len(windows) > 1:
        raise InputError(
            f"the prompt {_shown(prompt)} is longer than the text encoder takes",
            found=f"{sum(map(len, tokens))} tokens in {len(windows)} windows",
            expected=f"one window of at most {tokenizer.room} tokens, without BREAK",
            hint="shorten it, or let it be cut into windows: long_prompts='chunk'",
        )
    return _Read(windows)


def _tokens(segment: Segment, tokenizer: Tokenizer) -> list[Token]:
    return [(token, run.weight) for run in segment for token in tokenizer.ids(run.text)]


def _truncated(prompt: str, segments: list[list[Token]], tokenizer: Tokenizer) -> _Read:
    tokens = [token for segment in segments for token in segment]
    kept, cut = tokens[: tokenizer.room], tokens[tokenizer.room :]
    notes = []
    if len(segments) > 1:
        notes.append(f"BREAK in the prompt {_shown(prompt)} has no effect: it is truncated")
    if cut:
        words = tokenizer.text([token for token, _ in cut])
        notes.append(
            f"the text encoder takes {tokenizer.room} tokens; of the prompt {_shown(prompt)} "
            f"the last {len(cut)} were cut: {_shown(words)}"
        )
    return _Read([kept], tuple(notes))


def _windows(segments: list[list[Token]], room: int, comma: int | None) -> list[list[Token]]:
    """Every segment begins a window; one that ends the prompt without text adds none."""
    *before, last = segments
    windows = [window for segment in before for window in _cut(segment, room, comma)]
    return windows + _cut(last, room, comma) if last or not windows else windows


def _cut(tokens: list[Token], room: int, comma: int | None) -> list[list[Token]]:
    windows, start = [], 0
    while len(tokens) - start > room:
        end = _window_end(tokens, start + room, start, comma)
        windows.append(tokens[start:end])
        start = end
    return [*windows, tokens[start:]]


def _window_end(tokens: list[Token], end: int, start: int, comma: int | None) -> int:
    if comma is None or tokens[end][0] == comma:
        return end
    for index in range(end - 1, max(start, end - COMMA_REACH) - 1, -1):
        if tokens[index][0] == comma:
            return index + 1
    return end


def _batch(read: list[_Read], tokenizer: Tokenizer, chunks: int) -> TokenBatch:
    windows = [
        window for one in read for window in one.windows + [[]] * (chunks - len(one.windows))
    ]
    ids = [tokenizer.framed(token for token, _ in window) for window in windows]
    weights = [[1.0, *(weight for _, weight in window), 1.0] for window in windows]
    pad = tokenizer.settings.pad_token_id
    return TokenBatch(
        ids=np.array([tokenizer.padded(row, pad) for row in ids], np.int64),
        mask=np.array([tokenizer.padded([True] * len(row), False) for row in ids], np.bool_),
        weights=np.array([tokenizer.padded(row, 1.0) for row in weights], np.float32).reshape(
            len(read), -1
        ),
        chunks=chunks,
        notes=tuple(note for one in read for note in one.notes),
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
