"""Which backend runs a graph, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass

from pixelrt.bundle import BundledNetwork
from pixelrt.errors import BackendError, FidelityError, InputError, PixelrtError, UsageError
from pixelrt.manifest import GraphRole
from pixelrt.runtime.backends.base import Backend, Offer, Session
from pixelrt.runtime.backends.onnxruntime import INSTALL_HINT, OnnxRuntimeCpu
from pixelrt.runtime.backends.onnxruntime_cuda import ONNXRUNTIME_CUDA
from pixelrt.runtime.backends.onnxruntime_rtx import ONNXRUNTIME_RTX
from pixelrt.runtime.backends.openvino import OnnxRuntimeOpenVino, OpenVino
from pixelrt.runtime.backends.tensorrt import TensorRTBackend
from pixelrt.runtime.closing import release_quietly
from pixelrt.runtime.verify import known_failure, require_verified

BACKENDS: tuple[Backend, ...] = (
    TensorRTBackend("tensorrt"),
    TensorRTBackend("tensorrt-rtx"),
    ONNXRUNTIME_RTX,
    ONNXRUNTIME_CUDA,
    OnnxRuntimeOpenVino(),
    OpenVino(),
    OnnxRuntimeCpu(),
)
"""In the order in which ``auto`` tries them."""

FRUGAL_BACKENDS = (*BACKENDS[:-1], OnnxRuntimeCpu(frugal=True))
"""Those that take less memory, and more time."""

PRECISIONS = ("auto", "float16", "bfloat16", "tf32", "float32")


@dataclass(frozen=True)
class PassedOver:
    """What was not taken, a backend or one of its offers, with the reason."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"

    @property
    def short(self) -> str:
        """In one line: the reason without what was expected and what to do."""
        first, *more = self.reason.split("\n  ")
        found = next((line for line in more if line.startswith("found: ")), "")
        words = first.partition("; ")[0]
        return f"{self.backend}: {words}" + (f" ({found.removeprefix('found: ')})" if found else "")


@dataclass(frozen=True)
class Choice:
    """What a user asks for. ``backend``: a name, or ``auto`` for the first that works.
    ``precision``: one of ``PRECISIONS``; ``auto`` for the first that the bundle's reference
    outputs allow."""

    backend: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Opened:
    """A session that may be used, the verdict on it in words, and what was passed over."""

    session: Session
    verdict: str
    passed_over: tuple[PassedOver, ...]


def find_backend(name: str, backends: tuple[Backend, ...] = BACKENDS) -> Backend:
    """The backend of that name. Raises ``UsageError`` naming the known ones."""
    for backend in backends:
        if backend.name == name:
            return backend
    known = ", ".join(backend.name for backend in backends)
    raise UsageError(f"there is no backend {name!r}", expected=f"auto, {known}")


def open_session(
    bundle: BundledNetwork,
    role: GraphRole,
    choice: Choice | None = None,
    backends: tuple[Backend, ...] = BACKENDS,
    *,
    verify: bool = True,
) -> Opened:
    """Load a graph in the first way that works and reproduces the reference outputs.

    A backend asked for by name is never replaced by another. Raises what was wrong with
    the only way there is, or ``BackendError`` (``FidelityError`` if one gave wrong results)
    with all reasons.
    """
    choice = choice or Choice()
    check_precision(choice.precision)
    automatic = choice.backend == "auto"
    tried = backends if automatic else (find_backend(choice.backend, backends),)
    passed: list[PassedOver] = []
    failures: list[PixelrtError] = []
    for backend in tried:
        try:
            for offer in offers_of(backend, bundle, role, choice.precision):
                try:
                    session, verdict = _open(bundle, role, offer, verify=verify)
                    return Opened(session, verdict, tuple(passed))
                except (BackendError, FidelityError, InputError) as exc:
                    failures.append(exc)
                    passed.append(PassedOver(_label(offer), str(exc)))
        except BackendError as exc:
            failures.append(exc)
            passed.append(PassedOver(backend.name, exc.found or str(exc)))
    if len(failures) == 1 and not (automatic and isinstance(failures[0], BackendError)):
        raise failures[0]
    raise _nothing_works(passed, failures)


def check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}", expected=", ".join(PRECISIONS))


def offers_of(
    backend: Backend, bundle: BundledNetwork, role: GraphRole, precision: str = "auto"
) -> tuple[Offer, ...]:
    """The ways in which ``backend`` runs a graph, best first, of one precision if asked.

    Those that are refused stay, so that their reasons are heard. Raises ``BackendError``
    where there is none.
    """
    reason = backend.missing()
    if reason:
        raise BackendError(f"{backend.name} cannot be used here", found=reason)
    offers = backend.offers(bundle, role)
    wanted = [
        offer for offer in offers if offer.refused or precision in ("auto", offer.info.precision)
    ]
    if not wanted:
        there = ", ".join(dict.fromkeys(offer.info.precision for offer in offers))
        raise BackendError(
            f"{backend.name} does not run this graph in {precision}",
            found=f"only {there}",
            hint="leave --precision out, or choose another backend",
        )
    return tuple(wanted)


def _open(
    bundle: BundledNetwork, role: GraphRole, offer: Offer, *, verify: bool
) -> tuple[Session, str]:
    if verify and (failure := known_failure(bundle, offer.info, role)):
        raise FidelityError(failure)
    session = offer.open()
    try:
        return session, require_verified(bundle, session, role) if verify else NOT_VERIFIED
    except BaseException as exc:
        release_quietly(session.close, exc)
        raise


NOT_VERIFIED = "not verified, as asked"


def _label(offer: Offer) -> str:
    if offer.refused:
        return offer.info.name
    engine = f" {offer.info.engine}" if offer.info.engine else ""
    return f"{offer.info.name} {offer.info.arithmetic}{engine}"


def _nothing_works(passed: list[PassedOver], failures: list[PixelrtError]) -> PixelrtError:
    kind = FidelityError if any(isinstance(f, FidelityError) for f in failures) else BackendError
    return kind(
        "no backend can run this bundle here",
        found="; ".join(map(str, passed)),
        hint=INSTALL_HINT,
    )
