"""What a plan is bound to: TensorRT, CUDA, GPU, system; and the key that says all of it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pixelrt.errors import BackendError, UsageError

Flavour = Literal["tensorrt", "tensorrt-rtx"]

RTX_CAPABILITIES = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""GPUs that TensorRT for RTX builds for ahead of time."""
RTX_DEFAULT = ("sm86", "sm89", "sm120")
"""Where a TensorRT for RTX plan without a target runs."""
CAPABILITIES = (
    "sm75",
    "sm80",
    "sm86",
    "sm87",
    "sm88",
    "sm89",
    "sm90",
    "sm100",
    "sm103",
    "sm110",
    "sm120",
    "sm121",
)
"""Compute capabilities that TensorRT 10 and 11 know, Jetson's (sm87, sm110) among them."""


@dataclass(frozen=True, order=True)
class Capability:
    """A compute capability: 8.9 is ``sm89``."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Capability:
        """From ``sm89`` or ``8.9``. Raises ``ValueError``."""
        match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.lower())
        if not match:
            raise ValueError(f"{text!r} is no compute capability")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"sm{self.major}{self.minor}"


@dataclass(frozen=True)
class Target:
    """What a plan is bound to. ``gpu`` and ``cuda`` are empty where it was built without one."""

    flavour: Flavour
    version: str
    capabilities: tuple[Capability, ...]
    gpu: str = ""
    cuda: str = ""
    system: str = ""

    def __str__(self) -> str:
        parts = [self.flavour, self.version, "+".join(map(str, self.capabilities)), self.system]
        return "-".join(part for part in parts if part)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "capabilities": [str(c) for c in self.capabilities]}


@dataclass(frozen=True)
class CacheKey:
    """Everything that decides what a build gives.

    ``options``: every builder option by name, profiles and precision among them; values
    must be JSON. ``weights``: sha256 of every external weight file of the graph.
    """

    graph: str
    weights: tuple[str, ...]
    options: Mapping[str, Any]
    target: Target

    def key(self) -> str:
        """Hexadecimal SHA-256; equal for equal keys on every machine and in every run."""
        parts = {
            "graph": self.graph,
            "weights": list(self.weights),
            "options": dict(self.options),
            "target": self.target.as_json(),
        }
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def parse_capabilities(text: str, flavour: Flavour) -> tuple[Capability, ...]:
    """``sm86,sm89,sm120`` (or ``8.6``) sorted and without repetition.

    Raises ``UsageError`` naming those that ``flavour`` knows.
    """
    known = RTX_CAPABILITIES if flavour == "tensorrt-rtx" else CAPABILITIES
    found = {_parse_capability(part.strip(), known, flavour) for part in text.split(",")}
    return tuple(sorted(found))


def _parse_capability(part: str, known: Sequence[str], flavour: Flavour) -> Capability:
    with contextlib.suppress(ValueError):
        capability = Capability.parse(part)
        if str(capability) in known:
            return capability
    raise UsageError(
        f"{flavour} builds for no target {part!r}",
        expected=f"some of {', '.join(known)}",
        hint="`nvidia-smi --query-gpu=compute_cap --format=csv` shows a GPU's: 8.9 is sm89",
    )


def system_name() -> str:
    """``linux-x86_64``: plans do not move between systems."""
    return f"{platform.system()}-{platform.machine()}".lower()


def ahead_of_time(
    flavour: Flavour, version: str, capabilities: tuple[Capability, ...] = ()
) -> Target:
    """The target of a plan that is built without looking at a GPU."""
    chosen = capabilities
    if not chosen and flavour == "tensorrt-rtx":
        chosen = parse_capabilities(",".join(RTX_DEFAULT), flavour)
    return Target(flavour, version, chosen, system=system_name())


def mismatch(plan: Target, here: Target, options: Mapping[str, Any]) -> str:
    """Why a plan cannot run ``here``, or an empty string where nothing speaks against it.

    ``options``: those of its build; compatibility that was asked for widens what fits.
    """
    if plan.flavour != here.flavour:
        return f"it is for {plan.flavour}, this is {here.flavour}"
    if plan.system != here.system:
        return f"it was built on {plan.system}, this is {here.system}"
    if problem := _version_mismatch(plan, here, bool(options.get("version_compatible"))):
        return problem
    return _device_mismatch(plan, here, str(options.get("hardware_compatibility", "none")))


def _version_mismatch(plan: Target, here: Target, compatible: bool) -> str:
    words = f"it was built by {plan.flavour} {plan.version}, this is {here.version}"
    if plan.version != here.version:
        # version-compatible plans run on their own version and later ones (TensorRT's guide)
        if not compatible:
            return words
        if _numbers(here.version) < _numbers(plan.version):
            return f"{words}, an earlier one"
    if plan.cuda and here.cuda and plan.cuda.split(".")[0] != here.cuda.split(".")[0]:
        return f"it was built for CUDA {plan.cuda}, this is {here.cuda}"
    return ""


def _device_mismatch(plan: Target, here: Target, compatibility: str) -> str:
    (capability,) = here.capabilities
    gpu = f"{here.gpu or 'a GPU'} ({capability})"
    wanted = " or ".join(map(str, plan.capabilities))
    if compatibility == "ampere_plus":
        old = capability < Capability(8, 0)
        return f"it runs on Ampere and later GPUs, this is {gpu}" if old else ""
    if capability not in plan.capabilities:
        return f"it was built for {plan.gpu or 'GPUs'} ({wanted}), this is {gpu}"
    if compatibility == "none" and plan.gpu and here.gpu and plan.gpu != here.gpu:
        return f"it was tuned for {plan.gpu}, this is {gpu}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def detect_target(flavour: Flavour, version: str, device: int = 0) -> Target:
    """The target that is this machine's GPU number ``device``.

    Raises ``BackendError`` with CUDA's own words where there is no driver or no GPU.
    """
    cuda = _cuda_runtime()
    count = _call(cuda, "cudaGetDeviceCount")
    if device >= count:
        raise BackendError(f"there is no GPU number {device}", found=f"{count} GPUs")
    facts = _call(cuda, "cudaGetDeviceProperties", device)
    version_number = _call(cuda, "cudaRuntimeGetVersion")
    return Target(
        flavour,
        version,
        (Capability(facts.major, facts.minor),),
        facts.name.split(b"\0")[0].decode(errors="replace"),
        f"{version_number // 1000}.{version_number % 1000 // 10}",
        system_name(),
    )


def _cuda_runtime() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as exc:
        raise BackendError(
            "cuda-bindings is not installed",
            found=str(exc),
            hint="pip install 'pixelrt[tensorrt]'",
        ) from exc


def _call(cuda: Any, name: str, *arguments: Any) -> Any:
    """A CUDA runtime call's result; its error text in a ``BackendError``."""
    error, *results = getattr(cuda, name)(*arguments)
    if int(error):
        words = cuda.cudaGetErrorString(error)[1].decode()
        raise BackendError(
            "this machine's GPU could not be asked what it is",
            found=f"{name}: CUDA error {int(error)}, {words}",
            expected="an NVIDIA GPU with a driver",
            hint="TensorRT for RTX builds without a GPU: --backend tensorrt-rtx --target sm89",
        )
    return results[0]
