"""Options of schedulers: read from a ``scheduler_config.json``, checked, immutable."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from pixelrt.errors import InputError

Spacing = Literal["linspace", "leading", "trailing"]
Prediction = Literal["epsilon", "sample", "v_prediction"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Variance = Literal["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"]
FinalSigma = Literal["zero", "sigma_min"]

FOREIGN_KEYS = frozenset(
    (
        "flow_shift",
        "rho",
        "shift_terminal",
        "sigma_data",
        "sigma_schedule",
        "solver_p",
        "time_shift_type",
        "use_dynamic_shifting",
        "use_flow_sigmas",
    )
)
"""Options that only schedulers have which are not here, and none of ours understands."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that every scheduler has.

    ``not_implemented``: options that only this one value of is implemented.
    ``synonyms``: values of other schedulers' configurations and what they mean here.
    """

    not_implemented: ClassVar[Mapping[str, Any]] = {}
    synonyms: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    num_train_timesteps: int = 1000
    prediction_type: Prediction = "epsilon"


@dataclass(frozen=True, kw_only=True)
class BetaOptions(Options):
    """How much noise the training added at each timestep, and which timesteps are taken."""

    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    trained_betas: tuple[float, ...] | None = None
    timestep_spacing: Spacing = "leading"
    steps_offset: int = 0


@dataclass(frozen=True, kw_only=True)
class ThresholdOptions:
    """Dynamic thresholding of the predicted sample (Saharia et al., 2205.11487)."""

    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ClipOptions(ThresholdOptions):
    """Clamping of the predicted sample. Thresholding goes first where both are set."""

    clip_sample: bool = True
    clip_sample_range: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SigmaOptions:
    """Which noise levels a run passes through, instead of those of its timesteps."""

    rescale_betas_zero_snr: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: FinalSigma = "zero"


Some = TypeVar("Some", bound=Options)


def read_options(kind: type[Some], config: Mapping[str, Any], owner: str, shared: Set[str]) -> Some:
    """The options of ``owner`` in ``config``; defaults where it says nothing.

    Keys that begin with an underscore say where a configuration comes from and are passed
    over. So are those in ``shared``, options of other schedulers: a configuration holds its
    neighbours' options too, as diffusers' ``from_config`` leaves them. Raises ``InputError``
    for an unknown key, a value of the wrong type and a value that is not implemented; it
    names the option.
    """
    defaulted = set(config.get("_use_default_values", ()))
    given = {k: v for k, v in config.items() if not k.startswith("_") and k not in defaulted}
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    for key, value in given.items():
        if key in kind.not_implemented and value != kind.not_implemented[key]:
            raise InputError(
                f"{owner}: the option {key} is not implemented",
                found=repr(value),
                expected=repr(kind.not_implemented[key]),
                hint="choose another scheduler",
            )
        if key not in known and key not in shared and key not in FOREIGN_KEYS:
            raise InputError(
                f"{owner}: unknown option {key!r}",
                found=repr(value),
                hint="remove it from the scheduler's configuration",
            )
    values = {
        key: _value(key, given[key], hints[key], kind.synonyms.get(key, {}), owner)
        for key in known & given.keys()
    }
    options = kind(**values)
    _check(options, owner)
    return options


def _value(key: str, value: Any, hint: Any, synonyms: Mapping[str, str], owner: str) -> Any:
    if value is None and hint is bool:  # as configurations write "off"
        return False
    if isinstance(value, str):
        value = synonyms.get(value, value)
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError:
        raise InputError(
            f"{owner}: this value of the option {key} is not implemented",
            found=repr(value),
            expected=_described(hint),
        ) from None


def _described(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _check(options: Options, owner: str) -> None:
    if options.num_train_timesteps < 1:
        raise InputError(
            f"{owner}: the option num_train_timesteps must be positive",
            found=str(options.num_train_timesteps),
        )
    if isinstance(options, BetaOptions):
        betas = options.trained_betas
        if betas is not None and len(betas) != options.num_train_timesteps:
            raise InputError(
                f"{owner}: the option trained_betas must hold a value for each timestep",
                found=str(len(betas)),
                expected=str(options.num_train_timesteps),
            )
    if isinstance(options, SigmaOptions):
        names = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
        chosen = [name for name in names if getattr(options, name)]
        if len(chosen) > 1:
            raise InputError(
                f"{owner}: only one of the options {', '.join(names)} can be true",
                found=", ".join(chosen),
            )
