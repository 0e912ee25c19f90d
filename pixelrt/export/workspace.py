"""Finished stages of an export, kept until the bundle stands, so that a rerun resumes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pixelrt.cache import cache_folder
from pixelrt.errors import OutputError, UsageError
from pixelrt.files import atomic_folder


class Workspace:
    """A folder for one export, named by everything that decides its result.

    A context manager that holds a lock: two exports of the same thing do not share work.
    """

    def __init__(self, key: object) -> None:
        text = json.dumps(key, sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.folder = cache_folder() / "export" / name
        self._lock = FileLock(self.folder.with_suffix(".lock"), timeout=0)

    def __enter__(self) -> Workspace:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as exc:
            raise UsageError("another process is exporting the same network") from exc
        except OSError as exc:
            raise OutputError(
                f"the cache folder {self.folder} cannot be used",
                found=str(exc),
                hint="set PIXELRT_CACHE to a folder that can be written",
            ) from exc
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def stage(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder of a stage; ``make`` fills it unless an earlier run has."""
        path = self.folder / name
        if not path.is_dir():
            with atomic_folder(path, overwrite=False) as folder:
                make(folder)
        return path

    def json_stage(self, name: str, make: Callable[[], Any]) -> bytes:
        """Like ``stage`` for a value that fits in JSON; gives the encoded value."""
        import msgspec

        def write(folder: Path) -> None:
            (folder / "value.json").write_bytes(msgspec.json.encode(make()))

        return (self.stage(name, write) / "value.json").read_bytes()

    def clear(self) -> None:
        """Remove the work: the bundle stands."""
        shutil.rmtree(self.folder, ignore_errors=True)
