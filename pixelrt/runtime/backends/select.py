"""Which backend runs a graph, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass

from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError, UsageError
from pixelrt.manifest import GraphRole
from pixelrt.runtime.backends.base import Backend, Session
from pixelrt.runtime.backends.onnxruntime import INSTALL_HINT, OnnxRuntimeCpu

BACKENDS: tuple[Backend, ...] = (OnnxRuntimeCpu(),)
"""In the order in which ``auto`` tries them."""


@dataclass(frozen=True)
class PassedOver:
    """A backend that ``auto`` did not take, with its reason."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"


def find_backend(name: str, backends: tuple[Backend, ...] = BACKENDS) -> Backend:
    """The backend of that name. Raises ``UsageError`` naming the known ones."""
    for backend in backends:
        if backend.name == name:
            return backend
    known = ", ".join(backend.name for backend in backends)
    raise UsageError(f"there is no backend {name!r}", expected=f"auto, {known}")


def open_session(
    bundle: Bundle,
    role: GraphRole,
    choice: str = "auto",
    backends: tuple[Backend, ...] = BACKENDS,
) -> tuple[Session, tuple[PassedOver, ...]]:
    """Load a graph on the chosen backend, or on the first that works for ``auto``.

    Also gives what was passed over. Raises ``BackendError`` listing every reason where
    none works; a backend asked for by name is never replaced by another.
    """
    graph = bundle.component.graph(role)
    if choice != "auto":
        backend = find_backend(choice, backends)
        reason = backend.missing()
        if reason:
            raise BackendError(f"{choice} cannot be used here", found=reason)
        return backend.open(bundle, graph), ()
    passed: list[PassedOver] = []
    for backend in backends:
        reason = backend.missing()
        if not reason:
            try:
                return backend.open(bundle, graph), tuple(passed)
            except BackendError as exc:
                reason = str(exc)
        passed.append(PassedOver(backend.name, reason))
    raise BackendError(
        "no backend can run this bundle here",
        found="; ".join(map(str, passed)),
        hint=INSTALL_HINT,
    )
