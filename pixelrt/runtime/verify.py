"""Hold a session against the reference outputs of its bundle."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixelrt.bundle import Bundle
from pixelrt.cache import cache_folder
from pixelrt.errors import FidelityError, OutputError
from pixelrt.fidelity import Comparison, compare
from pixelrt.files import atomic_write
from pixelrt.geometry import Size
from pixelrt.grid import grid_size, pad_image
from pixelrt.manifest import GraphRole, Reference
from pixelrt.runtime.backends.base import Array, BackendInfo, Session
from pixelrt.runtime.machine import processor_name

MACHINE_SLACK = 4.0
"""Another processor sums in another order: its error may be this many times the tolerance
that the export had to meet."""

LEVEL = 1.0 / 255.0
IMAGE_MIN_PSNR = 68.0
"""An image may differ by one level where a value lies on the edge between two; at 68 dB
that is one value in a hundred."""


@dataclass(frozen=True)
class Check:
    """One sample on one session, with what is needed to show it."""

    sample: Reference
    role: GraphRole
    info: BackendInfo
    comparison: Comparison
    max_abs: float
    min_psnr: float
    actual: Array
    expected: Array

    @property
    def passed(self) -> bool:
        got = self.comparison
        return not got.non_finite and got.max_abs <= self.max_abs and got.psnr >= self.min_psnr

    @property
    def limits(self) -> str:
        text = f"max abs at most {self.max_abs:.1e}"
        return text + (f", at least {self.min_psnr:.0f} dB" if self.min_psnr else "")


def check_sample(bundle: Bundle, session: Session, role: GraphRole, sample: Reference) -> Check:
    """Run one reference sample through ``session`` and compare. Never raises on a mismatch.

    The ``core`` graph is compared in [0, 1]; the ``image`` graph against the reference
    clamped and rounded to 256 levels.
    """
    pixels, expected = bundle.reference(sample)
    actual = run_padded(bundle, session, role, pixels)
    tolerance = bundle.manifest.tolerance.max_abs * MACHINE_SLACK
    if role == "core":
        got = compare(expected, actual)
        return Check(sample, role, session.info, got, tolerance, 0.0, actual, expected)
    levels = np.rint(np.clip(expected, 0, 1).astype(np.float64) * 255).transpose(0, 2, 3, 1)
    got = compare(levels / 255, actual / 255)
    return Check(sample, role, session.info, got, LEVEL * 1.001, IMAGE_MIN_PSNR, actual, levels)


def run_padded(
    bundle: Bundle, session: Session, role: GraphRole, pixels: NDArray[np.uint8]
) -> Array:
    """(1, H, W, C) uint8 through a session, padded to the grid and cropped back."""
    spec = bundle.manifest.image
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
    for sample in bundle.manifest.references:
        yield check_sample(bundle, session, role, sample)


def require_verified(bundle: Bundle, session: Session, role: GraphRole) -> str:
    """Check the smallest sample unless this machine has done so before.

    Gives the verdict in words. Raises ``FidelityError`` with the numbers. Only passed
    verdicts are kept, so that a repaired machine is looked at again.
    """
    path = verdict_path(bundle, session.info, role)
    known = _read_verdict(path)
    if known:
        return f"verified before: {known}"
    sample = min(bundle.manifest.references, key=lambda r: r.height * r.width)
    check = check_sample(bundle, session, role, sample)
    if not check.passed:
        raise FidelityError(
            f"{session.info} does not reproduce the reference of {bundle.manifest.name}",
            found=f"{check.comparison} on sample {sample.name} ({role} graph)",
            expected=check.limits,
            hint="use another backend; `pixelrt verify` shows all samples",
        )
    words = f"{check.comparison} ({check.limits})"
    unkept = _keep_verdict(path, words, session.info)
    return f"verified now: {words}{unkept}"


def _read_verdict(path: Path) -> str:
    """The verdict in words, or nothing where there is none that can be read."""
    try:
        return str(json.loads(path.read_bytes())["verdict"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _keep_verdict(path: Path, words: str, info: BackendInfo) -> str:
    """Write the verdict; where the cache cannot be written, say so instead of failing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps({"verdict": words, "backend": str(info)}).encode())
    except (OSError, OutputError) as exc:
        return f" (will be checked again next time: {exc})"
    return ""


def verdict_path(bundle: Bundle, info: BackendInfo, role: GraphRole) -> Path:
    """Where the verdict of this bundle, backend and machine is kept."""
    key = json.dumps(
        [bundle.sha256, role, info.name, info.version, info.device, info.precision, machine_id()]
    )
    return cache_folder() / "verdicts" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def machine_id() -> str:
    """What arithmetic depends on: system, architecture and processor model."""
    return f"{platform.system()} {platform.machine()} {processor_name()}"
