"""Options that several verbs share, and the words that they take."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import click
from click.core import ParameterSource

from pixelrt.errors import UsageError

BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


class ByteCount(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """``1500000000``, ``1.5GB``, ``512MiB``."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?)?b?", str(value).strip().lower())
        if not found or float(found[1]) <= 0:
            self.fail(f"{value!r} is no amount of memory; expected e.g. 2GB or 512MiB", param, ctx)
        return int(float(found[1]) * BYTES[found[2] or ""])


class Tile(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """``auto``, ``off`` or a number of input pixels."""

    name = "auto|off|N"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | int:
        text = str(value)
        if text in ("auto", "off"):
            return text
        if not (text.isdigit() and int(text)):
            self.fail(f"{text!r} is no tile; expected auto, off or a number of pixels", param, ctx)
        return int(text)


class PixelSize(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """``256`` or ``WIDTHxHEIGHT``."""

    name = "WxH"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", str(value).lower())
        if not found or 0 in (int(found[1]), int(found[2] or 1)):
            self.fail(f"{value!r} is no size; expected e.g. 256 or 640x480", param, ctx)
        return int(found[1]), int(found[2] or found[1])


def refuse(names: Collection[str], words: str) -> None:
    """Raises ``UsageError`` where one of these options of the verb was given."""
    context = click.get_current_context()
    given = [
        option.opts[-1]
        for option in context.command.params
        if option.name in names
        and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT
    ]
    if given:
        raise UsageError(words, found=", ".join(given), hint="leave it out")
