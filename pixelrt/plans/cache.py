"""A cache of engine plans on disk: locked, sealed, limited in size, for one user only.

::

    entries/KEY/{artefact,seal.json}   what is finished; it comes and goes by one rename
    staging/KEY/                       what the holder of KEY's lock is writing or deleting
    locks/KEY.lock                     held while KEY is made or removed
    locks/KEY.RANDOM.lease             held while somebody uses KEY: nobody removes it
    guard.lock, collect.lock           these two stay

Who is alive is told by the system's file locks, not by process numbers: whatever lies in
``locks/`` and can be locked was left by the dead, and the next call removes it together with
what it was staging. Files in ``locks/`` are opened, locked and unlinked under ``guard.lock``
only, so nobody ever holds the lock of a name that another one has just unlinked.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelrt.errors import OutputError, UsageError
from pixelrt.files import output_error, sync_folder
from pixelrt.plans.locks import Held, Locks, waited_lock
from pixelrt.plans.seal import (
    ARTEFACT,
    SEAL,
    Artefact,
    DamagedError,
    Entry,
    Seal,
    delete,
    private_folder,
    verify,
    write_entry,
)

__all__ = ["Artefact", "Entry", "PlanCache", "Stored"]

_KEY = re.compile(r"[0-9a-f]{64}")
_PATIENCE_S, _POLL_S = 1.0, 0.05


@dataclass(frozen=True)
class Stored:
    """One entry as ``PlanCache.entries`` lists it: ``size`` in bytes, ``used`` as a Unix time."""

    key: str
    path: Path
    size: int
    used: float
    metadata: Mapping[str, Any]
    problem: str


class PlanCache:
    """Artefacts by key, where a key is the hex SHA-256 of everything that decides the result.

    ``report`` is told of waiting, damage and artefacts that are too large. Every method
    raises ``OutputError`` if the folder cannot be written (disk full), belongs to somebody
    else or is writable by others: a plan is executable code. A ``folder`` that is a symbolic
    link is followed, links inside it are not.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 8 * 2**30,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.max_bytes = max_bytes
        self._report = report or (lambda _: None)
        self._entries, self._staging = self.folder / "entries", self.folder / "staging"
        self._locks = Locks(self.folder / "locks", self.folder / "guard.lock")

    def get_or_make(self, key: str, make: Callable[[], Artefact]) -> Entry:
        """The entry of ``key``, made by ``make`` if it is missing or damaged.

        Of any number of processes and threads that ask at once, one makes it and the others
        wait; Ctrl-C ends the waiting. ``make`` must not ask for the same key. What it raises
        goes on unchanged and leaves nothing behind. An artefact larger than ``max_bytes`` is
        kept only while somebody uses it.
        """
        if not _KEY.fullmatch(key):
            raise UsageError("a cache key is a SHA-256", found=key, expected="64 hex digits")
        notes: list[str] = []
        with self._errors():
            self._prepare()
            self._sweep()
            found = self._find_or_lock(key, notes)
        if isinstance(found, Entry):
            return found
        with found:
            artefact = make()
            with self._errors():
                entry = self._store(key, artefact, notes)
        with contextlib.suppress(OutputError):  # the entry is good even if others are in the way
            self.collect()
        return entry

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, or ``None`` where there is none or it is damaged."""
        with self._errors():
            self._prepare()
            try:
                return self._find(key, [])
            except DamagedError:
                return None  # whoever asks for it to be made will find and replace it

    def collect(self) -> tuple[str, ...]:
        """Remove the least recently used entries until the rest fits; return their keys.

        Entries in use, here or in another process, stay. One that is larger than
        ``max_bytes`` alone goes first, and drives out no other.
        """
        with self._errors():
            self._prepare()
            self._sweep()
            with waited_lock(self.folder / "collect.lock"):  # two at once would remove too much
                removed = []
                stored = self._scan()
                total = sum(size for _, size, _ in stored if size <= self.max_bytes)
                for key, size, _ in stored:
                    alone = size > self.max_bytes
                    if (alone or total > self.max_bytes) and self._remove(key):
                        removed.append(key)
                        total -= 0 if alone else size
        return tuple(removed)

    def clear(self) -> tuple[str, ...]:
        """Remove every entry that nobody uses; return their keys."""
        with self._errors():
            self._prepare()
            self._sweep()
            return tuple(key for key, _, _ in self._scan() if self._remove(key))

    def entries(self, *, check: bool = False) -> tuple[Stored, ...]:
        """What is stored, least recently used first; removes nothing.

        ``problem`` says what is wrong with an entry; with ``check`` the artefacts are read too.
        """
        with self._errors():
            if not self.folder.exists():
                return ()
            self._prepare()
            listed = [self._stored(*item, check=check) for item in self._scan()]
            return tuple(one for one in listed if os.path.lexists(one.path.parent))

    def _stored(self, key: str, size: int, used: float, *, check: bool) -> Stored:
        path = self._entries / key / ARTEFACT
        try:
            metadata = verify(self._entries / key, key, artefact=check).metadata
        except DamagedError as exc:
            return Stored(key, path, size, used, {}, str(exc))
        return Stored(key, path, size, used, metadata, "")

    # --- one entry ----------------------------------------------------------------------

    def _find_or_lock(self, key: str, notes: list[str]) -> Entry | Held:
        """The entry, or the lock of its key for the one who is to make it."""
        start, told = time.monotonic(), False
        while True:
            with contextlib.suppress(DamagedError):  # looked at again under the lock
                if entry := self._find(key, notes):
                    return entry
            if lock := self._locks.hold(f"{key}.lock"):
                break
            if not told and time.monotonic() - start > _PATIENCE_S:
                told = True
                self._report(f"waiting for another process that is making {key[:12]}")
            time.sleep(_POLL_S)
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock)
            try:
                if entry := self._find(key, notes):
                    return entry
            except DamagedError as exc:
                self._note(notes, f"the cached {key[:12]} is damaged ({exc}); it is made again")
            self._retire(key, damaged=True)
            stack.pop_all()
        return lock

    def _find(self, key: str, notes: list[str]) -> Entry | None:
        home = self._entries / key
        if not os.path.lexists(home):
            return None
        lease = self._lease(key)
        try:
            seal = verify(home, key)
            now = time.time_ns()
            with contextlib.suppress(OSError):
                os.utime(home / SEAL, ns=(now, now))
            return self._entry(seal, lease, notes, made=False)
        except BaseException:
            lease.close()
            raise

    def _store(self, key: str, artefact: Artefact, notes: list[str]) -> Entry:
        data, stage = artefact.data, self._staging / key
        seal = Seal.of(key, data, artefact.metadata)
        if len(data) > self.max_bytes:
            size = f"{len(data)} bytes, more than the cache's {self.max_bytes}"
            self._note(notes, f"{key[:12]} has {size}; it is kept only while in use")
        lease = self._lease(key)
        try:
            write_entry(stage, seal, data)
            stage.rename(self._entries / key)
            sync_folder(self._entries)
        except BaseException:
            with contextlib.suppress(OSError):
                delete(stage)
            lease.close()
            raise
        return self._entry(seal, lease, notes, made=True)

    def _entry(self, seal: Seal, lease: Held, notes: list[str], *, made: bool) -> Entry:
        def close() -> None:
            if lease.close() and seal.length > self.max_bytes:
                self.collect()

        path = self._entries / seal.key / ARTEFACT
        return Entry(path, seal.sha256, seal.metadata, made, tuple(notes), close)

    def _remove(self, key: str) -> bool:
        with contextlib.suppress(OSError):
            if lock := self._locks.hold(f"{key}.lock"):
                with lock:
                    return self._retire(key)
        return False

    def _retire(self, key: str, *, damaged: bool = False) -> bool:
        """Take an entry out of sight, then delete it; false if it is in use. Needs its lock."""
        stage = self._staging / key
        delete(stage)
        with self._locks.guard():
            if not damaged and not self._locks.dead(f"{key}.*.lease"):
                return False
            with contextlib.suppress(FileNotFoundError):
                (self._entries / key).rename(stage)
        delete(stage)
        return True

    def _scan(self) -> list[tuple[str, int, float]]:
        """(key, bytes, time of last use) of every entry, the least recently used first."""
        found = []
        for home in self._entries.iterdir():
            if _KEY.fullmatch(home.name):
                size, used = 0, 0.0
                with contextlib.suppress(OSError):
                    size = (home / ARTEFACT).lstat().st_size
                    used = (home / SEAL).lstat().st_mtime
                found.append((home.name, size, used))
        return sorted(found, key=lambda item: (item[2], item[0]))

    def _note(self, notes: list[str], text: str) -> None:
        notes.append(text)
        self._report(text)

    # --- the folder and its locks -------------------------------------------------------

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise output_error(self.folder, exc) from exc

    def _prepare(self) -> None:
        private_folder(self.folder, link=True)
        for folder in (self._entries, self._staging, self._locks.folder):
            private_folder(folder)

    def _sweep(self) -> None:
        """Remove the locks and the staged files of the dead."""
        with self._locks.guard():
            self._locks.dead("*.lease")
        locked = {path.stem for path in self._locks.folder.glob("*.lock")}
        for key in locked | {path.name for path in self._staging.iterdir()}:
            if lock := self._locks.hold(f"{key}.lock"):
                with lock:
                    delete(self._staging / key)

    def _lease(self, key: str) -> Held:
        while True:
            if held := self._locks.hold(f"{key}.{secrets.token_hex(8)}.lease"):
                return held
