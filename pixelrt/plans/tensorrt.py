"""TensorRT's Python modules: found, told apart, and listened to.

TensorRT keeps one logger per process, so builds and runs share the one made here. It calls
back from C++ that cannot carry an exception; nothing here lets one through.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pixelrt.errors import BackendError
from pixelrt.plans.target import Flavour

MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
MAJORS: dict[Flavour, tuple[int, ...]] = {"tensorrt": (10, 11), "tensorrt-rtx": (1,)}
HINTS: dict[Flavour, str] = {
    "tensorrt": "pip install 'pixelrt[tensorrt]'",
    "tensorrt-rtx": "pip install 'pixelrt[tensorrt-rtx]'",
}


@dataclass(frozen=True)
class TensorRT:
    """A TensorRT Python module, which kind it is and its version."""

    module: Any
    flavour: Flavour
    version: str

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def __str__(self) -> str:
        return f"{self.flavour} {self.version}"


def load_tensorrt(flavour: Flavour) -> TensorRT:
    """Import ``tensorrt`` or ``tensorrt_rtx``.

    Raises ``BackendError`` where it is missing, does not load or is a version we do not know.
    """
    name = MODULES[flavour]
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as exc:
        missing = isinstance(exc, ModuleNotFoundError) and exc.name == name
        raise BackendError(
            f"{name} is not installed" if missing else f"{name} is installed but does not load",
            found=str(exc),
            hint=HINTS[flavour],
        ) from exc
    return use_module(module, flavour)


def use_module(module: Any, flavour: Flavour) -> TensorRT:
    """A module that is imported already; ``BackendError`` for versions that we do not know."""
    version = str(getattr(module, "__version__", ""))
    majors = MAJORS[flavour]
    if version.split(".")[0] not in map(str, majors):
        raise BackendError(
            f"this version of {flavour} is not supported",
            found=version or "no version",
            expected=" or ".join(f"{major}.x" for major in majors),
            hint=HINTS[flavour],
        )
    return TensorRT(module, flavour, version)


KEPT = 200
"""Messages of each kind that are kept: a process may run for months."""


class Told:
    """What a build said: problems as they are, and the layer information."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""

    @property
    def words(self) -> str:
        """TensorRT's own words for what went wrong."""
        return "; ".join(self.errors) or "; ".join(self.warnings) or "nothing was said"


@functools.cache
def logger_of(module: Any) -> Any:
    """The one logger of this process: TensorRT keeps the first that it is given for good.

    ``told``: what it hears that no ``listening`` thread is there for; a build sets it, since
    TensorRT builds in threads of its own.
    """

    class Logger(module.ILogger):  # type: ignore[misc]  # TensorRT has no types
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.told = Told()
            self.here = threading.local()

        def log(self, severity: Any, message: str) -> None:
            told = getattr(self.here, "told", None) or self.told
            if "Layers:\n" in message:
                told.layers = message
            elif severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                told.errors.append(message)
                del told.errors[:-KEPT]
            elif severity == module.ILogger.WARNING:
                told.warnings.append(message)
                del told.warnings[:-KEPT]

    return Logger()


@contextmanager
def listening(module: Any) -> Iterator[Told]:
    """What TensorRT says in this thread during the block; a build beside it is not disturbed."""
    here = logger_of(module).here
    before = getattr(here, "told", None)
    here.told = told = Told()
    try:
        yield told
    finally:
        here.told = before
