"""Calls in a process of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
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
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as exc:
            raise BackendError("the process was ended", hint="the memory may not do") from exc
