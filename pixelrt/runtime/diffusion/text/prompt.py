"""Reads the emphasis that users write into a prompt.

The syntax is that of AUTOMATIC1111's web UI (its wiki, "Attention/emphasis"):

- ``(text)`` weighs ``text`` 1.1 times, ``(text:1.3)`` 1.3 times, ``[text]`` 1/1.1 times;
- brackets nest, and their factors multiply; a weight belongs to round brackets only;
- a bracket that is never closed reaches to the end of the prompt;
- a closing bracket without an opening one, and a weight outside of round brackets, are text;
- round and square brackets are matched apart from each other: ``([a)]`` is both;
- a backslash makes the bracket or backslash after it text, and vanishes before anything else;
- the word ``BREAK``, in capitals, ends a chunk of the prompt. It does so within brackets
  too, where the web UI takes it for an ordinary word.
"""

from __future__ import annotations

import math
import re
from itertools import groupby
from typing import NamedTuple

from pixelrt.errors import InputError

ROUND = 1.1
SQUARE = 1 / 1.1
_LARGEST = 3.4e38  # of float32

_PART = re.compile(
    r"""
      \\ (?P<escaped> [()\[\]\\]? )
    | : \s* (?P<weight> [+-]? [.\d]+ ) \s* \)
    | (?P<bracket> [()\[\]] )
    | (?P<end> \bBREAK\b )
    | [^\\()\[\]:B]+ | [:B]
    """,
    re.VERBOSE,
)


class Run(NamedTuple):
    """A piece of a prompt and the weight of its tokens."""

    text: str
    weight: float


Segment = tuple[Run, ...]
"""The runs between one ``BREAK`` and the next. No run is empty; where neighbours have the
same weight, brackets without text stood between them, and words end there."""


def parse(prompt: str) -> tuple[Segment, ...]:
    """The segments of a prompt: at least one, possibly without runs.

    Raises ``InputError`` for a weight that is no number or beyond float32.
    """
    reader = _Reader()
    for part in _PART.finditer(prompt):
        reader.take(part)
    reader.finish()
    return reader.segments()


def literal(prompt: str) -> tuple[Segment, ...]:
    """The prompt as one segment of weight 1, where brackets are text like any other."""
    return ((Run(prompt, 1.0),) if prompt else (),)


class _Reader:
    """The parts read so far; a text of ``None`` stands for BREAK."""

    def __init__(self) -> None:
        self._texts: list[str | None] = []
        self._weights: list[float] = []
        self._open: dict[str, list[int]] = {"(": [], "[": []}

    def take(self, part: re.Match[str]) -> None:
        bracket, weight, escaped = part["bracket"], part["weight"], part["escaped"]
        if escaped is not None:
            self._add(escaped)
        elif bracket in self._open:
            self._open[bracket].append(len(self._texts))
        elif weight is not None and self._open["("]:
            self._weigh(self._open["("].pop(), _number(weight, part[0]))
        elif bracket == ")" and self._open["("]:
            self._weigh(self._open["("].pop(), ROUND)
        elif bracket == "]" and self._open["["]:
            self._weigh(self._open["["].pop(), SQUARE)
        else:
            self._add(None if part["end"] else part[0])

    def finish(self) -> None:
        for opening, factor in (("(", ROUND), ("[", SQUARE)):
            for start in self._open[opening]:
                self._weigh(start, factor)

    def segments(self) -> tuple[Segment, ...]:
        found: list[Segment] = []
        parts: list[Run] = []
        for text, weight in zip(self._texts, self._weights, strict=True):
            if text is None:
                found.append(_joined(parts))
                parts = []
            else:
                parts.append(Run(text, weight))
        return (*found, _joined(parts))

    def _add(self, text: str | None) -> None:
        self._texts.append(text)
        self._weights.append(1.0)

    def _weigh(self, start: int, factor: float) -> None:
        for index in range(start, len(self._weights)):
            self._weights[index] *= factor


def _number(weight: str, written: str) -> float:
    try:
        return float(weight)
    except ValueError as exc:
        raise InputError(
            "the weight in a prompt is no number",
            found=written,
            expected="a decimal number before the bracket, as in (word:1.3)",
            hint=r"write \( and \) where the brackets are meant as text",
        ) from exc


def _joined(parts: list[Run]) -> Segment:
    """Neighbours of the same weight become one run: words are read across brackets."""
    runs = []
    for weight, same in groupby(parts, key=lambda run: run.weight):
        text = "".join(run.text for run in same)
        if not math.isfinite(weight) or abs(weight) > _LARGEST:
            raise InputError(
                "the weights in a prompt multiply to more than a number can hold",
                found=f"{weight:g} for {text[:60]!r}",
                expected="weights around 1, usually between 0.5 and 1.5",
            )
        if text:
            runs.append(Run(text, weight))
    return tuple(runs)
