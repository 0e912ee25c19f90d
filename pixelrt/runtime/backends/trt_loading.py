"""From a stored plan to an engine: digests, TensorRT, weights, and its facts held against it."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.errors import InputError, UsageError
from pixelrt.pipeline_bundle import INPUT, OUTPUT
from pixelrt.plans.axis_profiles import AxisProfile, lengths_of
from pixelrt.plans.facts import PlanFacts, PlanSample
from pixelrt.plans.profiles import Profile, tensor_shape
from pixelrt.plans.refit import AGAIN, put_weights, runtime_for
from pixelrt.plans.store import StoredPlan
from pixelrt.plans.tensorrt import TensorRT, Told, listening
from pixelrt.runtime.backends.base import Array, BackendInfo, Sample, TensorSample
from pixelrt.runtime.backends.trt_engine import Loaded, TensorRTEngine, failure, letting_go
from pixelrt.runtime.backends.trt_network import TensorRTNetwork
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
ONNX = ".onnx"

Files = Mapping[str, memoryview]


def load_plan(trt: TensorRT, cuda: Cuda, plan: StoredPlan, info: BackendInfo) -> TensorRTEngine:
    """Read a plan for images, prove it to be the one that was written, and load it.

    Raises ``InputError`` for a plan that is damaged or is not what its facts say;
    ``BackendError`` (``OutOfMemoryError``) with TensorRT's words where it does not load.
    """
    with letting_go():
        facts, files = plan.facts, plan.read()
        samples = tuple(_sample(one, files, plan) for one in facts.samples)
        return TensorRTEngine(_load(trt, cuda, plan, files), cuda, facts, info, samples)


def load_network(
    trt: TensorRT, cuda: Cuda, plan: StoredPlan, info: BackendInfo, *, graphs: bool = True
) -> TensorRTNetwork:
    """The same for a network of a pipeline."""
    with letting_go():
        facts, files = plan.facts, plan.read()
        samples = tuple(_tensors(one, files, plan) for one in facts.samples)
        loaded = _load(trt, cuda, plan, files)
        return TensorRTNetwork(loaded, cuda, facts, info, samples, graphs=graphs)


def _load(trt: TensorRT, cuda: Cuda, plan: StoredPlan, files: Files) -> Loaded:
    facts = plan.facts
    cuda.activate()
    with listening(trt.module) as told:
        runtime = runtime_for(trt, facts, told)
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
    return Loaded(trt, engine, keep=runtime)


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
    with tempfile.TemporaryDirectory(prefix="pixelrt-refit-") as folder:
        # what was checked is what is read: copies, with external weights beside the graph
        for name, data in files.items():
            if name != facts.plan:
                Path(folder, name).write_bytes(data)
        put_weights(trt, engine, Path(folder, graphs[0]), told, place)


def _arrays(sample: PlanSample, files: Files, plan: StoredPlan) -> dict[str, Array]:
    try:
        with np.load(io.BytesIO(files[sample.file]), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
        raise InputError(
            f"{sample.file} of the plan in {plan.place} is no sample", found=str(exc), hint=AGAIN
        ) from exc


def _tensors(sample: PlanSample, files: Files, plan: StoredPlan) -> TensorSample:
    graph, arrays = plan.facts.graph, _arrays(sample, files, plan)
    tensors = [(INPUT, one) for one in graph.inputs] + [(OUTPUT, one) for one in graph.outputs]
    kinds = {prefix + one.name: one.dtype for prefix, one in tensors}
    found = {name: str(array.dtype) for name, array in arrays.items()}
    problem = "" if found == kinds else f"{found}, not {kinds}"
    if not problem:
        shapes = {one.name: arrays[prefix + one.name].shape for prefix, one in tensors}
        try:
            lengths_of([one for _, one in tensors], shapes)
        except UsageError as exc:
            problem = str(exc)
    if problem:
        where = f"{sample.file} of the plan in {plan.place}"
        raise InputError(f"{where} is no sample", found=problem, hint=AGAIN)
    return TensorSample(
        sample.name,
        {one.name: arrays[INPUT + one.name] for one in graph.inputs},
        {one.name: arrays[OUTPUT + one.name] for one in graph.outputs},
    )


def _sample(sample: PlanSample, files: Files, plan: StoredPlan) -> Sample:
    arrays = _arrays(sample, files, plan)
    if not {"input", "output"} <= arrays.keys():
        raise InputError(
            f"{sample.file} of the plan in {plan.place} is no sample",
            found=", ".join(arrays),
            expected="input and output",
            hint=AGAIN,
        )
    pixels, expected = arrays["input"], arrays["output"]
    right = pixels.ndim == expected.ndim == 4
    right = right and (str(pixels.dtype), str(expected.dtype)) == ("uint8", "float32")
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
    single = len(facts.graph.inputs) == len(facts.graph.outputs) == 1
    if not single and not facts.graph.network:
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
    profiles: Sequence[Profile | AxisProfile]
    profiles = facts.axis_profiles() if facts.graph.network else facts.shapes()
    differences = (_profile_difference(engine, one, profiles) for one in facts.graph.inputs)
    return next(filter(None, differences), "")


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


def _profile_difference(
    engine: Any, spec: TensorSpec, profiles: Sequence[Profile | AxisProfile]
) -> str:
    dims = tuple(engine.get_tensor_shape(spec.name))
    if all(isinstance(axis, int) for axis in spec.shape):
        return ""
    if -1 not in dims:
        only = {tensor_shape(spec, shape) for profile in profiles for shape in profile.shapes}
        if only != {dims}:
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
