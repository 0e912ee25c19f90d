"""Loading plans by TensorRT's real runtime; without a GPU up to where it asks for one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pixelrt.bundle import Bundle, open_bundle
from pixelrt.engines.build import BuildOptions, build_plan
from pixelrt.engines.make import Request, make_plan
from pixelrt.errors import BackendError
from pixelrt.manifest import FileEntry
from pixelrt.plans.profiles import parse_profile
from pixelrt.plans.store import ENGINES, StoredPlan, plan_at, write_plan
from pixelrt.plans.target import Capability, Target, system_name
from pixelrt.plans.tensorrt import TensorRT, listening, load_tensorrt, logger_of
from pixelrt.runtime.backends.onnxruntime import OnnxRuntimeCpu
from pixelrt.runtime.backends.tensorrt import Machine, TensorRTBackend
from pixelrt.runtime.backends.trt_loading import load_plan
from pixelrt.runtime.device.cuda import Cuda, RealCuda
from pixelrt.runtime.load import bundle_path
from pixelrt.runtime.pipelines.image import ImageModel
from tests.engines.support import required_tensorrt
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_tensorrt import FakeTensorRT, Net, digest
from tests.runtime.plan_cases import GPU, INFO, facts_of, image_net

PROFILE = "1x32x32,1x64x64,1x96x96"

USED = {
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        "create_execution_context",
        "create_serialization_config",
        "get_tensor_dtype",
        "get_tensor_format",
        "get_tensor_location",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
        "num_optimization_profiles",
        "refittable",
        "serialize_with_config",
    ),
    "IExecutionContext": (
        "active_optimization_profile",
        "execute_async_v3",
        "get_tensor_shape",
        "infer_shapes",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
        "update_device_memory_size_for_shapes",
    ),
    "OnnxParserRefitter": ("refit_from_file",),
    "Refitter": ("get_all_weights", "get_missing_weights", "refit_cuda_engine"),
    "ISerializationConfig": ("clear_flag", "set_flag"),
    "SerializationFlag": ("EXCLUDE_WEIGHTS", "INCLUDE_REFIT"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "TensorLocation": ("DEVICE",),
    "TensorFormat": ("LINEAR",),
}
RTX_ONLY = {
    "ICudaEngine": ("create_runtime_config",),
    "IRuntimeConfig": (
        "set_execution_context_allocation_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
    ),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
}


@pytest.fixture(scope="module")
def trt() -> TensorRT:
    return required_tensorrt()


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    try:
        yield RealCuda()
    except BackendError:
        fake = FakeCuda()
        yield fake
        fake.assert_clean()


def holds(data: bytes, spec: Any = None) -> StoredPlan:
    net = spec or image_net("image", PROFILE)
    facts = facts_of(net, {"net.plan": data})
    return StoredPlan(facts, "a file", lambda: {"net.plan": memoryview(data)})


def missing_names(module: Any, used: dict[str, tuple[str, ...]]) -> list[str]:
    return [
        f"{kind}.{name}"
        for kind, names in used.items()
        for name in names
        if not hasattr(getattr(module, kind, None), name)
    ]


def test_the_calls_are_there(trt: TensorRT) -> None:
    assert not missing_names(trt.module, USED)


def test_the_calls_of_tensorrt_for_rtx_are_there() -> None:
    try:
        rtx = load_tensorrt("tensorrt-rtx")
    except BackendError as exc:
        pytest.skip(f"no Python module of TensorRT for RTX: {exc}")
    assert not missing_names(rtx.module, USED)
    assert not missing_names(rtx.module, RTX_ONLY)


@pytest.mark.parametrize("data", [b"\x7fELF and no plan at all" * 40, b"x"])
def test_a_foreign_file_gets_tensorrts_words(trt: TensorRT, cuda: Cuda, data: bytes) -> None:
    with pytest.raises(BackendError, match="could not load the plan in a file") as caught:
        load_plan(trt, cuda, holds(data), INFO)
    assert "runtime.cpp" in caught.value.found


def test_a_real_plan_is_loaded_or_the_reason_is_told(
    trt: TensorRT, cuda: Cuda, srgan_bundle: Bundle
) -> None:
    graph = srgan_bundle.component.graph("image")
    options = BuildOptions((parse_profile(PROFILE),))
    built = build_plan(srgan_bundle.path(graph.file), graph.inputs, options, trt=trt)
    for data in (built.plan[: len(built.plan) // 2], built.plan):
        whole = data == built.plan
        if whole and isinstance(cuda, RealCuda):
            load_plan(trt, cuda, holds(data), INFO).close()
            continue
        with pytest.raises(BackendError, match="could not load") as caught:
            load_plan(trt, cuda, holds(data), INFO)
        assert caught.value.found != "nothing was said"
        if whole:
            assert "cudaError 35" in caught.value.found


def test_what_is_said_is_heard_by_the_thread_that_asked(trt: TensorRT) -> None:
    """A build listens to the process, a run to its own thread."""
    logger = logger_of(trt.module)
    error = trt.module.ILogger.ERROR
    heard: dict[str, list[str]] = {}
    ready, go = threading.Barrier(2), threading.Barrier(2)

    def run() -> None:
        with listening(trt.module) as told:
            ready.wait()
            logger.log(error, "run")
            go.wait()
            heard["run"] = list(told.errors)

    before = len(logger.told.errors)
    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    logger.log(error, "build")
    go.wait()
    thread.join()
    assert heard["run"] == ["run"]
    assert logger.told.errors[before:] == ["build"]
    with listening(trt.module) as outer:
        with listening(trt.module) as inner:
            logger.log(error, "inner")
        logger.log(error, "outer")
    assert (inner.errors, outer.errors) == (["inner"], ["outer"])


# --- what `pixelrt build` writes is what is read ---------------------------------------------


@pytest.fixture
def demo(tmp_path: Path) -> Bundle:
    """The shipped bundle, where plans can be written into it."""
    shutil.copytree(bundle_path("demo"), tmp_path / "demo.pixelrt")
    return open_bundle(tmp_path / "demo.pixelrt")


@pytest.fixture
def written(demo: Bundle, trt: TensorRT) -> Path:
    options = BuildOptions((parse_profile(PROFILE),), precision="float16")
    here = Target(trt.flavour, trt.version, (Capability(9, 0),), GPU, "13.0", system_name())
    facts, files, _ = make_plan(Request(demo, "image", options, here), trt)
    path = demo.root / ENGINES / str(here) / "image.plan"
    write_plan(path, facts, files)
    return path


def backend_at(path: Path, trt: TensorRT, cuda: Cuda) -> TensorRTBackend:
    machine = Machine(
        installed=lambda _: True,
        load=lambda _: trt,
        cuda=lambda: cuda,
        target=lambda *_: plan_at(path).facts.bound_to,
    )
    return TensorRTBackend(trt.flavour, machine=machine)


def test_a_plan_that_was_built_is_found_and_given_to_tensorrt(
    demo: Bundle, written: Path, trt: TensorRT, cuda: Cuda
) -> None:
    backend = backend_at(written, trt, cuda)
    (offer,) = backend.offers(demo, "image")
    assert offer.info.engine == plan_at(written).facts.sha256[:12]
    assert offer.info.precision == "float16"
    if isinstance(cuda, RealCuda):
        pytest.skip("with a GPU, tests/gpu goes on from here")
    with pytest.raises(BackendError, match="could not load the plan") as caught:
        offer.open()
    assert "cudaError 35" in caught.value.found


def test_its_facts_and_samples_drive_a_run(
    demo: Bundle, written: Path, trt: TensorRT, photo: Any
) -> None:
    """Real facts and samples; in place of the engine, the bundle's graph on the fakes."""
    from onnxruntime import InferenceSession

    graph = demo.component.graph("image")
    session = InferenceSession(demo.path(graph.file), providers=["CPUExecutionProvider"])

    def network(images: Any) -> Any:
        return session.run(None, {graph.inputs[0].name: images})[0]

    facts = plan_at(written).facts
    net = Net("demo", graph.inputs[0], graph.outputs[0], facts.shapes())
    files = {name: bytes(data) for name, data in plan_at(written).read().items()}
    files[facts.plan] = net.plan()
    entry = FileEntry(digest(net.plan()), len(net.plan()))
    entries = {**facts.files, facts.plan: entry}
    write_plan(written, msgspec.structs.replace(facts, files=entries), files)
    fake = FakeCuda()
    world = FakeTensorRT(fake, {"demo": network}, version=facts.target.version)
    picture = photo[:180, :230]
    with (
        ImageModel(demo, backends=(backend_at(written, world.trt, fake),)) as model,
        ImageModel(demo, backends=(OnnxRuntimeCpu(),)) as plain,
    ):
        result = model(picture, streams=2)
        assert [one.name for one in model.session().samples] == ["photo-1x64x64"]
        assert (1, 64, 64, 3) in world.executed
        assert np.abs(result.astype(int) - plain(picture)).max() <= 1
        assert len(model.plan(180, 230)) > 1
    fake.assert_clean()
