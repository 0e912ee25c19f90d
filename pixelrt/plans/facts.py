"""What stands beside a plan: enough to know whether it may be used, and for what.

A plan ``NAME.plan`` has ``NAME.plan.json`` beside it. A plan is executable code, so it is
read only where these facts are sealed, name the plan's digest, and fit the graph and GPU.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from pixelrt.errors import InputError, UsageError
from pixelrt.manifest import FileEntry, GraphRole
from pixelrt.plans.axis_profiles import AxisProfile, parse_axes
from pixelrt.plans.profiles import Profile, parse_profile
from pixelrt.plans.target import Capability, Flavour, Target
from pixelrt.spec import TensorSpec

FORMAT = 1
SUFFIX = ".plan"
MAX_BYTES = 16 * 1024 * 1024

PlanPrecision = Literal["float32", "float16", "bfloat16"]


class PlanGraph(msgspec.Struct, frozen=True, omit_defaults=True):
    """The graph of the bundle that a plan was made from, by digest.

    ``network``: its name in a pipeline, empty for a bundle of one network.
    """

    role: GraphRole
    sha256: str
    weights: list[str]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    network: str = ""


class PlanTarget(msgspec.Struct, frozen=True):
    """``Target`` as JSON has it."""

    flavour: Flavour
    version: str
    capabilities: list[str]
    gpu: str = ""
    cuda: str = ""
    system: str = ""


class PlanSample(msgspec.Struct, frozen=True, omit_defaults=True):
    """Inputs at a size that the plan takes, and what the float32 graph gives for them.

    ``file`` (npz, beside the plan). A picture of ``height`` and ``width``: ``input`` uint8
    (N, H, W, C), ``output`` float32 (N, C', scale*H, scale*W). For a network of a pipeline, which
    has neither, ``in.NAME`` and ``out.NAME`` as in ``manifest.NetworkSample``.
    """

    name: str
    file: str
    height: int = 0
    width: int = 0


class PlanFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``NAME.plan.json``. ``files``: the plan and what stands beside it, by name.

    ``key``: the cache key of the build (``plans/target.py``). ``target_db``: least PSNR
    against float32 that was asked for; 0 for a float32 plan.
    """

    format: int
    plan: str
    key: str
    target: PlanTarget
    graph: PlanGraph
    profiles: list[str]
    precision: PlanPrecision
    target_db: float
    options: dict[str, Any]
    conversion: dict[str, Any]
    bundle: str
    samples: list[PlanSample]
    seconds: float
    warnings: list[str]
    report: dict[str, Any]
    made_by: dict[str, str]
    files: dict[str, FileEntry]

    @property
    def sha256(self) -> str:
        """Of the plan."""
        return self.files[self.plan].sha256

    @property
    def bound_to(self) -> Target:
        told = self.target
        capabilities = tuple(map(Capability.parse, told.capabilities))
        return Target(told.flavour, told.version, capabilities, told.gpu, told.cuda, told.system)

    def shapes(self) -> tuple[Profile, ...]:
        """Of a plan for images."""
        return tuple(parse_profile(text) for text in self.profiles)

    def axis_profiles(self) -> tuple[AxisProfile, ...]:
        """Of a plan for a network of a pipeline."""
        return tuple(parse_axes(text) for text in self.profiles)

    def seal(self) -> str:
        """SHA-256 over all facts: an altered one no longer fits it."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class _Sealed(msgspec.Struct, frozen=True):
    facts: PlanFacts
    seal: str


def encode_facts(facts: PlanFacts) -> bytes:
    """Facts and their seal as indented JSON."""
    raw = msgspec.json.encode(_Sealed(facts, facts.seal()))
    return msgspec.json.format(raw, indent=1) + b"\n"


def decode_facts(raw: bytes, path: Path) -> PlanFacts:
    """Facts that fit their seal and name their own files. ``path`` is for messages.

    Raises ``InputError`` saying what is wrong.
    """
    try:
        sealed = msgspec.json.decode(raw, type=_Sealed)
        facts = sealed.facts
        _ = facts.bound_to, facts.axis_profiles() if facts.graph.network else facts.shapes()
    except (msgspec.MsgspecError, UsageError, ValueError, RecursionError) as exc:
        raise InputError(f"{path} does not describe a plan", found=str(exc), hint=_AGAIN) from exc
    problem = ""
    if facts.format != FORMAT:
        problem = f"format {facts.format}, not {FORMAT}"
    elif facts.seal() != sealed.seal:
        problem = "it was altered: it does not fit its seal"
    elif facts.plan not in facts.files:
        problem = f"{facts.plan} is not among its files"
    elif odd := [name for name in facts.files if Path(name).name != name or "\\" in name]:
        problem = f"it names {odd[0]!r}, which is not beside it"
    elif missing := [one.file for one in facts.samples if one.file not in facts.files]:
        problem = f"{missing[0]} is not among its files"
    if problem:
        raise InputError(f"{path} does not describe a plan", found=problem, hint=_AGAIN)
    return facts


_AGAIN = "build the plan again with `pixelrt build`"
