"""What closes itself, and how a failure to close is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pixelrt.errors import BackendError

Exit = Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]
"""The signature of ``__exit__``."""


class Closing(ABC):
    """A context manager that closes itself; what fails then becomes a note of the block's error."""

    @abstractmethod
    def close(self) -> None:
        """Release everything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        release_quietly(self.close, exc)


def release_quietly(release: Callable[[], None], exc: BaseException | None) -> None:
    """Call ``release``; its ``BackendError`` becomes a note of ``exc`` if there is one."""
    try:
        release()
    except BackendError as failure:
        if exc is None:
            raise
        exc.add_note(f"and while releasing: {failure}")


def quietly(release: Callable[[], None]) -> Exit:
    """``release_quietly`` as ``ExitStack.push`` takes it, which hands the error on."""

    def leave(
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        release_quietly(release, exc)

    return leave
