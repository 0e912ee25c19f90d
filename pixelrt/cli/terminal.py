"""What a person sees while a verb works. rich is imported only when a bar is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import click

Step = Callable[[int, int], None]
Phase = Callable[[str, int, int], None]
Stage = Callable[[str, int, int, str], None]


class _Update(Protocol):
    def __call__(self, name: str, done: int, total: int, what: str = ...) -> None: ...


def note(text: str) -> None:
    """A line for the person, on standard error."""
    click.echo(text, err=True)


def table(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns, one row a line."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


@contextmanager
def tile_bar(title: str, *, enabled: bool, counts: str = "tiles") -> Iterator[Step | None]:
    """A bar with the time left on standard error; nothing where that is no terminal."""
    with _bar(title, enabled=enabled, counts=counts) as update:
        yield None if update is None else (lambda done, total: update("", done, total))


@contextmanager
def frame_bar(title: str, *, enabled: bool) -> Iterator[Step | None]:
    """The same for the frames of a video; a total of 0 is one that nobody knows."""
    with _bar(title, enabled=enabled, counts="frames") as update:
        yield None if update is None else (lambda done, total: update("", done, total))


@contextmanager
def stage_bar(title: str, *, enabled: bool, counts: str) -> Iterator[Stage | None]:
    """The same for one stage after the other: its title, what is done and in all, of what."""
    with _bar(title, enabled=enabled, counts=counts) as update:
        yield update


@contextmanager
def phase_bar(*, enabled: bool) -> Iterator[Phase | None]:
    """A bar of the builder's phases on standard error; nothing where that is no terminal."""
    with _bar("starting TensorRT", enabled=enabled) as update:
        yield update


@contextmanager
def _bar(title: str, *, enabled: bool, counts: str = "") -> Iterator[_Update | None]:
    """``counts``: what is counted at first; the time left is shown then, and begins anew with every
    title."""
    if not (enabled and sys.stderr.isatty()):
        yield None
        return
    from rich import progress as rich
    from rich.console import Console

    columns: list[rich.ProgressColumn | str] = [
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
    ]
    if counts:
        columns.append(rich.TextColumn("{task.completed}/{task.total} {task.fields[counts]}"))
    columns.append(rich.TimeElapsedColumn())
    if counts:
        columns += [rich.TextColumn("left"), rich.TimeRemainingColumn()]
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, counts=counts)

        def update(name: str, done: int, total: int, what: str = counts) -> None:
            if counts and progress.tasks[0].description != (name or title):
                progress.reset(task)
            progress.update(
                task,
                description=name or title,
                completed=done,
                total=total or None,
                counts=what,
            )

        yield update
