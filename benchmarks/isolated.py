"""Calls in a process of their own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Thread
from typing import ParamSpec, TypeVar

from pixelrt.errors import BackendError

Given = ParamSpec("Given")
Value = TypeVar("Value")


def run_isolated(
    function: Callable[Given, Value], *args: Given.args, **kwargs: Given.kwargs
) -> Value:
    """``function(*args)`` in a fresh interpreter. What it raises is raised here;
    ``BackendError`` where the process dies, as when the system is out of memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as exc:
            raise BackendError("the process was ended", hint="the memory may not do") from exc


def end_with_parent() -> None:
    """From now on this process ends when the one that started it does, even if that was killed:
    a forgotten one would take the processors from whatever is measured next."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, name="end with parent", daemon=True).start()
