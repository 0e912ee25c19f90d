"""Pillow's global settings, set for as long as somebody decodes and then put back.

Pillow keeps its size limit, its leniency with truncated files and its warnings in globals
of the process. Decoding happens in several threads at a time, so the first one to enter
sets them and the last one to leave restores them; nobody waits for another's decoding.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TextIO

from PIL import Image, ImageFile

_heard: ContextVar[list[str] | None] = ContextVar("pixelrt_pillow_warnings", default=None)


class _Settings:
    """Counts who is inside and holds what has to be undone."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.undo = ExitStack()

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.undo = _set()
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.undo.close()


_settings = _Settings()


@contextmanager
def guarded() -> Iterator[list[str]]:
    """No size limit, no leniency, and Pillow's warnings collected in the yielded list.

    The caller checks sizes itself, from the header. Only warnings of this thread that
    come from Pillow are collected, each text once.
    """
    collected: list[str] = []
    _settings.enter()
    token = _heard.set(collected)
    try:
        yield collected
    finally:
        _heard.reset(token)
        _settings.leave()


def _set() -> ExitStack:
    undo = ExitStack()
    undo.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    Image.MAX_IMAGE_PIXELS = None
    undo.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    undo.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("always", module=r"PIL\.")
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        collected = _heard.get()
        if collected is None:
            before(message, category, filename, lineno, file, line)
        elif str(message) not in collected:
            collected.append(" ".join(str(message).split()))

    warnings.showwarning = show
    return undo
