"""Other weights for an engine that was built to take some.

Without its weights a plan gets them when it is loaded; with them it gets another network's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pixelrt.errors import BackendError, InputError
from pixelrt.plans.facts import PlanFacts
from pixelrt.plans.tensorrt import TensorRT, Told, logger_of

AGAIN = "build it again with `pixelrt build`"


def runtime_for(trt: TensorRT, facts: PlanFacts, told: Told) -> Any:
    """An ``IRuntime`` for a plan. Raises ``BackendError`` where TensorRT does not start."""
    try:
        runtime = trt.module.Runtime(logger_of(trt.module))
    except (TypeError, RuntimeError) as exc:  # the bindings' words for a null pointer say nothing
        raise BackendError(f"{trt} could not start", found=f"{told.words} ({exc})") from exc
    if facts.options.get("version_compatible"):
        # such a plan carries the code that runs it; it is ours, its digest was checked
        runtime.engine_host_code_allowed = True
    return runtime


def put_weights(
    trt: TensorRT,
    engine: Any,
    graph: Path,
    told: Told,
    place: str,
    needed: Iterable[str] = (),
) -> None:
    """Put the weights of an ONNX file, external ones beside it, into the engine of a plan.

    ``needed``: weights that TensorRT has to know as replaceable: those it does not know it
    would leave as they are, without a word. ``place``: the plan in words. Raises ``InputError``
    where the weights do not fit.
    """
    module, logger = trt.module, logger_of(trt.module)
    refitter = module.Refitter(engine, logger)
    lasting = sorted(set(needed).difference(refitter.get_all_weights()) if needed else ())
    if lasting:
        raise InputError(
            f"TensorRT cannot replace all that differs in the plan in {place}",
            found=_some(lasting),
            hint="build a plan of its own: leave --refit-from out",
        )
    parser = module.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        missing = _some(refitter.get_missing_weights())
        raise InputError(
            f"the weights of {graph.name} do not fit the plan in {place}",
            found=told.words + (f"; missing: {missing}" if missing else ""),
            hint=AGAIN,
        )


def _some(names: list[str], most: int = 3) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
