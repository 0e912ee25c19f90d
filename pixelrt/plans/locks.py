"""Named locks between processes whose files do not pile up, over filelock.

The classic trap: A opens a lock file and waits, B, the holder, unlinks it and lets go, C makes
a new file of that name, and now A and C both hold "the" lock. Here files are opened, locked
and unlinked only while ``guard`` is held, one file that always stays; nobody waits for a lock
inside it. What a killed process leaves is a file that can be locked: ``dead`` finds it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


@contextmanager
def waited_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file that stays, however long it takes to get it."""
    with _file_lock(path).acquire(poll_interval=0.002):
        yield


def _file_lock(path: Path) -> BaseFileLock:
    return FileLock(path, mode=0o600, thread_local=False)  # any thread may release it


@dataclass(frozen=True)
class Held:
    """A lock that is held; a context manager. Its file goes when it is closed."""

    lock: BaseFileLock
    guard_file: Path

    def close(self) -> bool:
        """Let go; false if that was done before: the name may be somebody else's by now."""
        if not self.lock.is_locked:
            return False
        try:
            with contextlib.suppress(OSError), waited_lock(self.guard_file):
                Path(self.lock.lock_file).unlink()
        finally:
            self.lock.release()
        return True

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True)
class Locks:
    """The locks in ``folder``, guarded by the file ``guard_file`` outside it.

    Every method passes an ``OSError`` on unchanged.
    """

    folder: Path
    guard_file: Path

    def guard(self) -> AbstractContextManager[None]:
        """The lock for short, indivisible steps; nobody waits for another lock inside."""
        return waited_lock(self.guard_file)

    def hold(self, name: str) -> Held | None:
        """The lock of this name, or ``None`` if somebody holds it. Takes the guard."""
        with self.guard():
            lock = _file_lock(self.folder / name)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                return None
        return Held(lock, self.guard_file)

    def dead(self, pattern: str) -> bool:
        """Remove the files matching ``pattern`` that nobody holds; false if somebody holds one.

        The caller has the guard.
        """
        all_dead = True
        for path in list(self.folder.glob(pattern)):
            lock = _file_lock(path)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                all_dead = False
                continue
            try:
                path.unlink(missing_ok=True)
            finally:
                lock.release()
        return all_dead
