"""From a stored plan to an engine: digests, TensorRT, weights, and its facts held against it."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.errors import BackendError, InputError
from pixelrt.plans.facts import PlanFacts, PlanSample
from pixelrt.plans.profiles import Profile, tensor_shape
from pixelrt.plans.store import StoredPlan
from pixelrt.plans.tensorrt import TensorRT, Told, listening, logger_of
from pixelrt.runtime.backends.base import BackendInfo, Sample
from pixelrt.runtime.backends.trt_engine import TensorRTEngine, failure, letting_go
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.spec import TensorSpec

DTYPES = {
    "UINT8": "uint8",
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "INT8": "int8",
}
AGAIN = "build it again with `pixelrt build`"
ONNX = ".onnx"

Files = Mapping[str, memoryview]


def load_plan(trt: TensorRT, cuda: Cuda, plan: StoredPlan, info: BackendInfo) -> TensorRTEngine:
    """Read a plan, prove it to be the one that was written, and load it.

    Raises ``InputError`` for a plan that is damaged or is not what its facts say;
    ``BackendError`` (``OutOfMemoryError``) with TensorRT's words where it does not load.
    """
    with letting_go():
        return _load(trt, cuda, plan, info)


def _load(trt: TensorRT, cuda: Cuda, plan: StoredPlan, info: BackendInfo) -> TensorRTEngine:
    facts, files = plan.facts, plan.read()
    samples = tuple(_sample(one, files, plan) for one in facts.samples)
    cuda.activate()
    with listening(trt.module) as told:
        runtime = _runtime(trt, facts, told)
        engine = runtime.deserialize_cuda_engine(files[facts.plan])
        if engine is None:
            raise failure(f"{trt} could not load the plan in {plan.place}", told)
        if facts.options.get("strip_plan"):
            _refit(trt, engine, facts, files, plan.place, told)
    problem = _difference(trt.module, engine, facts)
    if problem:
        raise InputError(
            f"the plan in {plan.place} is not what its facts say", found=problem, hint=AGAIN
        )
    return TensorRTEngine(trt, cuda, engine, facts, info, samples, keep=runtime)


def _runtime(trt: TensorRT, facts: PlanFacts, told: Told) -> Any:
    try:
        runtime = trt.module.Runtime(logger_of(trt.module))
    except (TypeError, RuntimeError) as exc:  # the bindings' words for a null pointer say nothing
        raise BackendError(f"{trt} could not start", found=f"{told.words} ({exc})") from exc
    if facts.options.get("version_compatible"):
        # such a plan carries the code that runs it; it is ours, its digest was checked
        runtime.engine_host_code_allowed = True
    return runtime


def _refit(
    trt: TensorRT, engine: Any, facts: PlanFacts, files: Files, place: str, told: Told
) -> None:
    """Put the weights of the graph beside a stripped plan into it."""
    graphs = [name for name in facts.files if name.endswith(ONNX)]
    if len(graphs) != 1:
        raise InputError(
            f"the plan in {place} was stripped of its weights",
            found=f"{len(graphs)} graphs beside it",
            expected="the one ONNX graph that it was built from",
            hint=AGAIN,
        )
    module, logger = trt.module, logger_of(trt.module)
    refitter = module.Refitter(engine, logger)
    parser = module.OnnxParserRefitter(refitter, logger)
    with tempfile.TemporaryDirectory(prefix="pixelrt-refit-") as folder:
        # what was checked is what is read: copies, with external weights beside the graph
        for name, data in files.items():
            if name != facts.plan:
                Path(folder, name).write_bytes(data)
        parsed = parser.refit_from_file(str(Path(folder, graphs[0])))
        if not parsed or not refitter.refit_cuda_engine():
            missing = ", ".join(refitter.get_missing_weights()[:3])
            raise InputError(
                f"the weights of {graphs[0]} do not fit the plan in {place}",
                found=told.words + (f"; missing: {missing}" if missing else ""),
                hint=AGAIN,
            )


def _sample(sample: PlanSample, files: Files, plan: StoredPlan) -> Sample:
    try:
        with np.load(io.BytesIO(files[sample.file]), allow_pickle=False) as arrays:
            pixels, expected = arrays["input"], arrays["output"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
        raise InputError(
            f"{sample.file} of the plan in {plan.place} is no sample", found=str(exc), hint=AGAIN
        ) from exc
    right = pixels.ndim == expected.ndim == 4
    right = right and (pixels.dtype, expected.dtype) == (np.uint8, np.float32)
    if not right or pixels.shape[1:3] != (sample.height, sample.width):
        raise InputError(
            f"{sample.file} of the plan in {plan.place} is no sample",
            found=f"{pixels.dtype} {pixels.shape} and {expected.dtype} {expected.shape}",
            expected=f"uint8 (N, {sample.height}, {sample.width}, C) and float32 (N, C, H, W)",
            hint=AGAIN,
        )
    return Sample(sample.name, pixels, expected)


def _difference(module: Any, engine: Any, facts: PlanFacts) -> str:
    """In what an engine differs from its facts, or an empty string."""
    if len(facts.graph.inputs) != 1 or len(facts.graph.outputs) != 1:
        return "more than one input or output"
    modes = module.TensorIOMode
    expected = {one.name: (one, modes.INPUT) for one in facts.graph.inputs}
    expected |= {one.name: (one, modes.OUTPUT) for one in facts.graph.outputs}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    if set(names) != set(expected):
        return f"tensors {', '.join(sorted(names))}, not {', '.join(sorted(expected))}"
    for name, (spec, mode) in expected.items():
        if engine.get_tensor_mode(name) != mode:
            return f"{name} is no {mode.name.lower()}"
        if problem := _tensor_difference(module, engine, spec):
            return problem
    return _profile_difference(engine, facts.graph.inputs[0], facts.shapes())


def _tensor_difference(module: Any, engine: Any, spec: TensorSpec) -> str:
    kind = engine.get_tensor_dtype(spec.name).name
    if DTYPES.get(kind, kind) != spec.dtype:
        return f"{spec.name} is {kind}, not {spec.dtype}"
    if engine.get_tensor_location(spec.name) != module.TensorLocation.DEVICE:
        return f"{spec.name} is not in device memory"
    if engine.get_tensor_format(spec.name) != module.TensorFormat.LINEAR:
        return f"{spec.name} is not contiguous"
    dims = tuple(engine.get_tensor_shape(spec.name))
    fixed = [axis if isinstance(axis, int) else None for axis in spec.shape]
    if len(dims) != len(fixed) or any(
        want is not None and found != want for found, want in zip(dims, fixed, strict=True)
    ):
        return f"{spec.name} has shape {dims}, not {spec}"
    return ""


def _profile_difference(engine: Any, spec: TensorSpec, profiles: tuple[Profile, ...]) -> str:
    dims = tuple(engine.get_tensor_shape(spec.name))
    if -1 not in dims:
        wanted = [tensor_shape(spec, profile.shapes[0]) for profile in profiles]
        if len(profiles) != 1 or not profiles[0].static or wanted[0] != dims:
            return f"it takes {dims} only, not {'; '.join(map(str, profiles))}"
        return ""
    if engine.num_optimization_profiles != len(profiles):
        return f"{engine.num_optimization_profiles} profiles, not {len(profiles)}"
    for index, profile in enumerate(profiles):
        found = [tuple(one) for one in engine.get_tensor_profile_shape(spec.name, index)]
        wanted = [tensor_shape(spec, shape) for shape in profile.shapes]
        if found != wanted:
            return f"profile {index} is {found}, not {profile}"
    return ""
