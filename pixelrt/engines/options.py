"""How to build a plan, and what is known to be impossible before the build is begun."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pixelrt.engines.report import Precision
from pixelrt.errors import BackendError, InputError, UsageError
from pixelrt.plans.axis_profiles import AxisProfile
from pixelrt.plans.facts import PlanFacts
from pixelrt.plans.profiles import Profile
from pixelrt.plans.target import Capability, Target, ahead_of_time, detect_target
from pixelrt.plans.tensorrt import TensorRT

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
LEVELS = range(6)


@dataclass(frozen=True)
class BuildOptions:
    """How to build. What a field costs or needs is checked by ``check_options``.

    ``workspace``: bytes of scratch memory that a layer may use; ``None``: TensorRT's default.
    ``level``: 0 (fast build) to 5 (fast engine); ``None``: TensorRT's default, 3.
    ``capabilities``: GPUs to build for, TensorRT for RTX only; empty: its default set.
    ``precision``: what the graph was converted to; TensorRT takes the graph's own types.
    ``timing_cache``: what an earlier build with the same TensorRT on the same GPU gave.
    """

    profiles: tuple[Profile | AxisProfile, ...]
    precision: Precision = "float32"
    capabilities: tuple[Capability, ...] = ()
    workspace: int | None = None
    level: int | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    strip_plan: bool = False
    refit: bool = False
    dla_core: int | None = None
    tf32: bool = True
    max_aux_streams: int | None = None
    timing_cache: bytes = b""

    @property
    def static(self) -> bool:
        return len(self.profiles) == 1 and self.profiles[0].static

    def as_json(self) -> dict[str, Any]:
        """All that decides what the plan is: every field but the timing cache."""
        facts = {**asdict(self), "profiles": [str(profile) for profile in self.profiles]}
        facts["capabilities"] = [str(capability) for capability in self.capabilities]
        del facts["timing_cache"]
        return facts


def target_of(options: BuildOptions, trt: TensorRT) -> Target:
    """What a plan built with ``options`` on this machine is bound to.

    TensorRT for RTX looks at no GPU; TensorRT needs one. Raises ``BackendError``.
    """
    if trt.flavour == "tensorrt-rtx":
        return ahead_of_time(trt.flavour, trt.version, options.capabilities)
    return detect_target(trt.flavour, trt.version)


def check_options(options: BuildOptions, trt: TensorRT) -> None:
    """Raise ``UsageError`` for options that cannot work, ``BackendError`` for those that
    this TensorRT or this machine cannot carry out."""
    if not options.profiles:
        raise UsageError("a plan needs at least one profile")
    if options.level is not None and options.level not in LEVELS:
        raise UsageError(
            "the optimisation level is out of range", found=str(options.level), expected="0 to 5"
        )
    if options.workspace is not None and options.workspace < 1:
        raise UsageError("the workspace must hold something", found=f"{options.workspace} bytes")
    if trt.flavour == "tensorrt-rtx":
        _check_rtx(options, trt)
    elif options.capabilities:
        raise UsageError(
            "TensorRT builds for the GPU of this machine only",
            found=f"targets {', '.join(map(str, options.capabilities))}",
            hint="leave --target out, or build with --backend tensorrt-rtx",
        )
    if options.dla_core is not None:
        _check_dla(options)
    if options.strip_plan or options.refit:
        gpu_for("a plan whose weights can be stripped or refitted is built", trt)


def _check_rtx(options: BuildOptions, trt: TensorRT) -> None:
    unknown = {
        "hardware compatibility": options.hardware_compatibility != "none",
        "version compatibility": options.version_compatible,
        "DLA": options.dla_core is not None,
    }
    asked = [name for name, wanted in unknown.items() if wanted]
    if asked:
        raise UsageError(
            f"TensorRT for RTX has no {' and no '.join(asked)}",
            hint="its plans name their GPUs instead: --target sm86,sm89,sm120",
        )
    if options.capabilities and not hasattr(trt.module.IBuilderConfig, "set_compute_capability"):
        raise BackendError(
            f"the Python bindings of {trt} cannot choose the GPUs to build for",
            found="no IBuilderConfig.set_compute_capability",
            hint="leave --target out for a plan that runs on sm86, sm89 and sm120",
        )


def _check_dla(options: BuildOptions) -> None:
    if options.precision != "float16":
        raise UsageError(
            "a DLA computes in float16",
            found=options.precision,
            hint="convert the graph to float16, or build for the GPU",
        )
    if not all(profile.static for profile in options.profiles):
        raise UsageError(
            "a DLA takes fixed shapes only",
            found="; ".join(map(str, options.profiles)),
            hint="build with --static",
        )
    if options.hardware_compatibility != "none" or options.version_compatible:
        raise UsageError("a plan for a DLA is bound to its Jetson and its TensorRT version")


def has_gpu(trt: TensorRT) -> bool:
    """Whether this machine has a GPU that CUDA can use."""
    try:
        detect_target(trt.flavour, trt.version)
    except BackendError:
        return False
    return True


def gpu_for(what: str, trt: TensorRT) -> Target:
    """This machine's GPU. Raises ``BackendError`` saying ``what`` is done with one only."""
    try:
        return detect_target(trt.flavour, trt.version)
    except BackendError as exc:
        raise BackendError(f"{what} with a GPU only", found=exc.found) from exc


def options_of(facts: PlanFacts) -> BuildOptions:
    """The options that a plan was built with. Raises ``InputError`` for those of another version
    of pixelrt."""
    names = {one.name for one in fields(BuildOptions)} - {"timing_cache"}
    told = {name: facts.options[name] for name in names & facts.options.keys()}
    told["profiles"] = facts.axis_profiles() if facts.graph.network else facts.shapes()
    told["capabilities"] = tuple(map(Capability.parse, told.get("capabilities", ())))
    options = BuildOptions(**told)
    if missing := sorted(names - facts.options.keys()):
        raise InputError(
            "the plan was built by another version of pixelrt",
            found=f"nothing is said of {', '.join(missing)}",
            hint="build it again with `pixelrt build`",
        )
    return options
