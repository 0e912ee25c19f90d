"""Hold a session against the reference outputs of its bundle."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

import pixelrt
from pixelrt.bundle import Bundle, BundledNetwork
from pixelrt.cache import cache_folder
from pixelrt.errors import FidelityError, OutputError
from pixelrt.fidelity import Comparison, compare
from pixelrt.files import atomic_write
from pixelrt.geometry import Size
from pixelrt.grid import grid_size, pad_image
from pixelrt.manifest import GraphRole
from pixelrt.pipeline_bundle import PipelineNetwork
from pixelrt.plans.profiles import Shape
from pixelrt.runtime import verify_tensors
from pixelrt.runtime.backends.base import Array, BackendInfo, Sample, Session
from pixelrt.runtime.machine import processor_name

MACHINE_SLACK = 4.0
"""Another processor sums in another order: its error may be this many times the tolerance
that the export had to meet."""

LEVEL = 1.0 / 255.0
IMAGE_MIN_PSNR = 68.0
"""An image may differ by one level where a value lies on the edge between two; at 68 dB
that is one value in a hundred."""

LOW_MIN_PSNR = {"photo": 60.0, "noise": 50.0}
"""What float16, bfloat16 and tf32 have to reach against PyTorch in float32. Independent noise of
full range is no picture: a network answers it with far more contrast, and rounding grows with
that. It is there to find what overflows or falls apart."""
LOW_MAX_ABS = 0.05
"""And the largest single error: a black or burnt spot hardly moves the PSNR of a picture."""


TENSOR_MAX_ABS = 0.25
"""For tensors within a pipeline, of their largest magnitude: what the noise of the next step
covers. It is there to find what overflows."""


@dataclass(frozen=True)
class Limits:
    """The largest error, of a range of 1 (infinite: any), and the least PSNR in dB (0: any)."""

    max_abs: float
    min_psnr: float

    def hold(self, got: Comparison) -> bool:
        return not got.non_finite and got.max_abs <= self.max_abs and got.psnr >= self.min_psnr

    def __str__(self) -> str:
        words = [f"max abs at most {self.max_abs:.1e}"] if np.isfinite(self.max_abs) else []
        words += [f"at least {self.min_psnr:.0f} dB"] if self.min_psnr else []
        return ", ".join(words)


def limits_of(
    bundle: BundledNetwork, info: BackendInfo, role: GraphRole, kind: str = "photo"
) -> Limits:
    """What results of this arithmetic have to keep to, on a sample of this kind."""
    image = role == "image"
    if isinstance(bundle, PipelineNetwork):
        if info.precision == "float32":
            return Limits(bundle.tolerance.max_abs * MACHINE_SLACK, 0.0)
        return Limits(TENSOR_MAX_ABS, bundle.network.low_psnr)
    if info.precision != "float32":
        least = LOW_MIN_PSNR[kind]
        return (
            Limits(LOW_MAX_ABS + LEVEL, in_levels(least)) if image else Limits(LOW_MAX_ABS, least)
        )
    if image:
        return Limits(LEVEL * 1.001, IMAGE_MIN_PSNR)
    return Limits(bundle.tolerance.max_abs * MACHINE_SLACK, 0.0)


def in_levels(decibels: float) -> float:
    """A PSNR after both pictures were rounded to 256 levels.

    Normal errors of deviation s move a share of E|e| / level = 0.8 s * 255 of the values by one
    level, which gives 10 log10(255 / (0.8 s)) dB.
    """
    return 25.0 + decibels / 2


@dataclass(frozen=True)
class Outcome:
    """How one sample came out."""

    name: str
    comparison: Comparison
    limits: Limits

    @property
    def passed(self) -> bool:
        return self.limits.hold(self.comparison)


@dataclass(frozen=True)
class Check:
    """One sample on one session, with what is needed to show it."""

    sample: Sample
    role: GraphRole
    info: BackendInfo
    comparison: Comparison
    limits: Limits
    actual: Array
    expected: Array

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.sample.name, self.comparison, self.limits)

    @property
    def passed(self) -> bool:
        return self.outcome.passed


def outcomes(
    network: BundledNetwork, session: Session, role: GraphRole, *, smallest: bool = False
) -> Iterator[Outcome]:
    """All samples through a session, or the smallest alone. Never raises on a mismatch."""
    if isinstance(network, PipelineNetwork):
        limits = limits_of(network, session.info, role)
        found = verify_tensors.samples_for(network, session)
        for sample in islice(found, 1 if smallest else None):
            compared = verify_tensors.compare_tensors(network, session, sample)
            yield Outcome(sample.name, compared, limits)
        return
    assert isinstance(network, Bundle)
    pictures = samples_for(network, session)
    if smallest:
        pictures = (min(pictures, key=lambda sample: sample.pixels.size),)
    for picture in pictures:
        yield check_sample(network, session, role, picture).outcome


def samples_for(bundle: Bundle, session: Session) -> tuple[Sample, ...]:
    """The bundle's samples that the session takes, then those that it brings along.

    Raises ``FidelityError`` where there is none: nothing could be proven.
    """
    found = [
        Sample(one.name, *bundle.reference(one), one.kind) for one in bundle.manifest.references
    ]
    fitting = [sample for sample in found if _takes(bundle, session, sample)]
    if not fitting and not session.samples:
        raise FidelityError(
            f"{session.info} cannot be held against the reference of {bundle.name}",
            found=f"it takes {'; '.join(map(str, session.profiles))} only",
            expected="a sample of such a size",
            hint="build the plan again: `pixelrt build` adds a sample of its size",
        )
    return (*fitting, *session.samples)


def _takes(bundle: Bundle, session: Session, sample: Sample) -> bool:
    size = grid_size(Size(*sample.pixels.shape[1:3]), bundle.manifest.image)
    shape = Shape(len(sample.pixels), size.height, size.width)
    return not session.profiles or any(profile.holds(shape) for profile in session.profiles)


def check_sample(bundle: Bundle, session: Session, role: GraphRole, sample: Sample) -> Check:
    """Run one sample through ``session`` and compare. Never raises on a mismatch.

    The ``core`` graph is compared in [0, 1]; the ``image`` graph against the reference
    clamped and rounded to 256 levels.
    """
    expected = sample.expected
    actual = run_padded(bundle, session, role, sample)
    limits = limits_of(bundle, session.info, role, sample.kind)
    if role == "core":
        got = compare(expected, actual)
        return Check(sample, role, session.info, got, limits, actual, expected)
    levels = np.rint(np.clip(expected, 0, 1).astype(np.float64) * 255).transpose(0, 2, 3, 1)
    got = compare(levels / 255, actual / 255)
    return Check(sample, role, session.info, got, limits, actual, levels)


def run_padded(bundle: Bundle, session: Session, role: GraphRole, sample: Sample) -> Array:
    """A sample through a session, padded to the grid and cropped back."""
    spec, pixels = bundle.manifest.image, sample.pixels
    size = Size(*pixels.shape[1:3])
    padded = pad_image(pixels, grid_size(size, spec), spec.pad_mode)
    high = size.scaled(spec.scale)
    name = session.inputs[0].name
    if role == "image":
        result = session.infer({name: np.ascontiguousarray(padded)})[session.outputs[0].name]
        return result[:, : high.height, : high.width]
    values = (padded.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)
    result = session.infer({name: np.ascontiguousarray(values)})[session.outputs[0].name]
    return result[:, :, : high.height, : high.width]


def check_all(bundle: Bundle, session: Session, role: GraphRole) -> Iterator[Check]:
    for sample in samples_for(bundle, session):
        yield check_sample(bundle, session, role, sample)


def require_verified(bundle: BundledNetwork, session: Session, role: GraphRole) -> str:
    """Check the session unless this machine has done so before: float32 on the smallest
    sample, lower precision on all, since what it loses depends on the picture.

    Gives the verdict in words. Raises ``FidelityError`` with the numbers. A failure of
    float32 is looked at again next time, since the machine may have been repaired; one of
    lower precision is kept, see ``known_failure``.
    """
    info = session.info
    known = _read_verdict(bundle, info, role)
    if known and known.passed:
        return f"verified before: {known.words}"
    found = outcomes(bundle, session, role, smallest=info.precision == "float32")
    worst = min(found, key=lambda outcome: (outcome.passed, outcome.comparison.psnr))
    words = f"{worst.comparison} ({worst.limits})"
    if not worst.passed:
        error = FidelityError(
            f"{info} does not reproduce the reference of {bundle.name}",
            found=f"{worst.comparison} on sample {worst.name} ({role} graph)",
            expected=str(worst.limits),
            hint="use another backend; `pixelrt verify` shows all samples",
        )
        if info.precision != "float32":
            _keep_verdict(bundle, info, role, _Verdict(str(error), passed=False))
        raise error
    unkept = _keep_verdict(bundle, info, role, _Verdict(words, passed=True))
    return f"verified now: {words}{unkept}"


def known_failure(bundle: BundledNetwork, info: BackendInfo, role: GraphRole) -> str:
    """Why a lower precision is known not to do for this graph here, or an empty string."""
    known = _read_verdict(bundle, info, role)
    return known.words if known and not known.passed else ""


def verified_before(bundle: BundledNetwork, info: BackendInfo, role: GraphRole) -> bool:
    """Whether this graph passed in this way on this machine."""
    known = _read_verdict(bundle, info, role)
    return known is not None and known.passed


@dataclass(frozen=True)
class _Verdict:
    words: str
    passed: bool


def _read_verdict(bundle: BundledNetwork, info: BackendInfo, role: GraphRole) -> _Verdict | None:
    """What is known of this bundle, backend and machine; nothing where it cannot be read."""
    try:
        raw = json.loads(verdict_path(bundle, info, role).read_bytes())
        return _Verdict(str(raw["verdict"]), raw["passed"] is True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep_verdict(
    bundle: BundledNetwork, info: BackendInfo, role: GraphRole, verdict: _Verdict
) -> str:
    """Write the verdict; where the cache cannot be written, say so instead of failing."""
    path = verdict_path(bundle, info, role)
    text = {"verdict": verdict.words, "passed": verdict.passed, "backend": str(info)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(text).encode())
    except (OSError, OutputError) as exc:
        return f" (will be checked again next time: {exc})"
    return ""


def verdict_path(bundle: BundledNetwork, info: BackendInfo, role: GraphRole) -> Path:
    """Where the verdict of this bundle, backend and machine is kept."""
    what = [info.name, info.version, info.device, info.precision, info.engine]
    what += [info.kept, bundle.component.name]
    limits = [str(limits_of(bundle, info, role, kind)) for kind in LOW_MIN_PSNR]
    key = json.dumps([pixelrt.__version__, bundle.sha256, role, *what, *limits, machine_id()])
    return cache_folder() / "verdicts" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def machine_id() -> str:
    """What arithmetic depends on: system, architecture and processor model."""
    return f"{platform.system()} {platform.machine()} {processor_name()}"
