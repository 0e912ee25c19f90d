"""OpenVINO through onnxruntime: what is offered, what really runs, and what is kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from pixelrt.bundle import Bundle, open_bundle
from pixelrt.cache import cache_folder
from pixelrt.errors import BackendError, OutOfMemoryError
from pixelrt.geometry import Size
from pixelrt.manifest import Graph, GraphVariant
from pixelrt.plans.cache import PlanCache
from pixelrt.plans.seal import Artefact
from pixelrt.runtime.backends import (
    openvino,
    openvino_cache,
    openvino_package,
    openvino_plugin,
    openvino_session,
)
from pixelrt.runtime.backends.openvino import (
    OnnxRuntimeOpenVino,
    OpenVino,
    openvino_here,
    precisions,
)
from pixelrt.runtime.backends.openvino_package import (
    ENDS,
    SUMS,
    PackageSource,
    load_package,
    staying,
)
from pixelrt.runtime.backends.openvino_plugin import (
    PROVIDER,
    Plugin,
    Settings,
    load_plugin,
    session_options,
)
from pixelrt.runtime.backends.openvino_session import OpenVinoSession, open_openvino
from pixelrt.runtime.backends.openvino_source import OrtEngine, PluginSource, Source
from pixelrt.runtime.backends.ort_assignment import NO_FALLBACK, require_whole
from pixelrt.runtime.backends.select import BACKENDS, Choice, open_session
from pixelrt.runtime.load import bundle_path, load
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.planning import RunOptions, plan_image, with_memory_share
from pixelrt.runtime.verify import verdict_path


@dataclass(frozen=True)
class Route:
    """One of the two ways to OpenVINO."""

    backend: OnnxRuntimeOpenVino | OpenVino
    source_of: Callable[[Bundle, Graph, Settings], Source]

    def source(self, bundle: Bundle, precision: str = "float32", role: Any = "core") -> Source:
        graph = bundle.component.graph(role)
        return self.source_of(bundle, graph, Settings(precision, threads=2))

    def open(self, bundle: Bundle, role: Any, precision: str = "auto") -> Any:
        return open_session(bundle, role, Choice(precision=precision), (self.backend,)).session


@pytest.fixture
def plugin() -> Plugin:
    """Skips where onnxruntime's plugin does not take the processor: the other way is tested."""
    try:
        return load_plugin()
    except BackendError as exc:
        if "does not take this processor" not in exc.message:
            raise
        pytest.skip(f"onnxruntime's plugin takes Intel's processors alone: {exc.found}")


@pytest.fixture(params=["onnxruntime-openvino", "openvino"])
def route(request: pytest.FixtureRequest) -> Route:
    if request.param == "openvino":
        return Route(OpenVino(threads=2), partial(PackageSource, package=load_package()))
    loaded = request.getfixturevalue("plugin")
    return Route(OnnxRuntimeOpenVino(threads=2), partial(PluginSource, plugin=loaded))


@pytest.fixture
def demo() -> Bundle:
    return open_bundle(bundle_path("demo"))


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((1, 3, height, width), np.float32)


# --- what is offered ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "flags", "expected"),
    [
        ("FP32 BF16", "avx2", "float32"),
        ("FP32 BF16", "avx2 avx512f", "float32"),
        ("FP32 BF16", "avx512f avx512_bf16", "bfloat16 float32"),
        ("FP32 BF16 FP16", "avx512_fp16 amx_bf16", "bfloat16 float32 float16"),
        ("FP32 BF16 FP16", "avx512_fp16 amx_bf16 amx_fp16", "float16 bfloat16 float32"),
        ("FP32 BF16 FP16", "", "float32"),
        ("FP32", "avx512_bf16 amx_fp16", "float32"),
    ],
)
def test_what_the_processor_multiplies_goes_first(
    capabilities: str, flags: str, expected: str
) -> None:
    found = precisions(frozenset(capabilities.split()), frozenset(flags.split()))
    assert " ".join(found) == expected


def test_auto_takes_openvino_before_plain_onnxruntime(demo: Bundle) -> None:
    last = [backend.name for backend in BACKENDS][-3:]
    assert last == ["onnxruntime-openvino", "openvino", "onnxruntime-cpu"]
    opened = open_session(demo, "image", Choice(), BACKENDS[-3:])
    with opened.session as session:
        assert session.info.name == openvino_here().name
        assert "verified now" in opened.verdict


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("onnxruntime", "onnxruntime is not installed"),
        (openvino_plugin.PACKAGE, "onnxruntime-ep-openvino is not installed"),
    ],
)
def test_a_missing_package_is_named(
    package: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = openvino_plugin.importlib.util.find_spec
    monkeypatch.setattr(
        openvino_plugin.importlib.util,
        "find_spec",
        lambda name: None if name == package else find(name),
    )
    reason = OnnxRuntimeOpenVino().missing()
    assert words in reason
    assert "pip install 'pixelrt[cpu]'" in reason


def test_a_library_that_does_not_load(
    demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "plugin.so"
    broken.write_bytes(b"\x7fELF and no more")
    package = openvino_plugin.importlib.import_module(openvino_plugin.PACKAGE)
    monkeypatch.setattr(package, "get_library_path", lambda: str(broken))
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    with pytest.raises(BackendError, match="could not load OpenVINOExecutionProvider") as caught:
        OnnxRuntimeOpenVino().offers(demo, "core")
    assert "plugin.so" in str(caught.value)
    assert "install it again: pip install 'pixelrt[cpu]'" in caught.value.hint


def test_a_package_without_its_library(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError("no library for this processor")

    package = openvino_plugin.importlib.import_module(openvino_plugin.PACKAGE)
    monkeypatch.setattr(package, "get_library_path", missing)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    with pytest.raises(BackendError, match="could not load") as caught:
        OnnxRuntimeOpenVino().offers(demo, "core")
    assert caught.value.found == "no library for this processor"


def test_an_old_onnxruntime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(BackendError, match="too old") as caught:
        load_plugin()
    assert "1.24" in str(caught.value)
    assert "pip install 'pixelrt[cpu]'" in caught.value.hint
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.0")
    monkeypatch.setattr(openvino_plugin, "_cpu_device", lambda: None)
    # recent enough: what is found wrong now is the processor
    with pytest.raises(BackendError, match="does not take this processor"):
        load_plugin()


def test_a_plugin_that_is_registered_already_is_used(plugin: Plugin) -> None:
    """A program that registered it itself, and threads that all come first."""
    script = (
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import onnxruntime as ort, onnxruntime_ep_openvino as package\n"
        "if sys.argv[1] == 'before':\n"
        "    ort.register_execution_provider_library('mine', package.get_library_path())\n"
        "from pixelrt.runtime.backends.openvino_plugin import load_plugin\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    plugins = list(pool.map(lambda _: load_plugin(), range(8)))\n"
        "names = [device.ep_name for device in ort.get_ep_devices()]\n"
        "print(names.count('OpenVINOExecutionProvider'), len({p.version for p in plugins}))\n"
    )
    for when in ("before", "after"):
        command = [sys.executable, "-c", script, when]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["1", "1"]


def test_a_processor_that_the_plugin_does_not_take(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` says so and goes on with OpenVINO's own package."""
    monkeypatch.setattr(openvino_plugin, "_cpu_device", lambda: None)
    with pytest.raises(BackendError, match="does not take this processor") as caught:
        OnnxRuntimeOpenVino().offers(demo, "core")
    assert "pip install openvino" in caught.value.hint
    assert openvino_here().name == "openvino"
    opened = open_session(demo, "core", Choice(), BACKENDS[-3:])
    with opened.session as session:
        assert session.info.name == "openvino"
    assert "does not take" in opened.passed_over[0].reason


def test_without_openvinos_package(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_plugin, "_cpu_device", lambda: None)
    monkeypatch.setattr(openvino_package.importlib.util, "find_spec", lambda name: None)
    assert OpenVino().missing() == "openvino is not installed; pip install openvino"
    with pytest.raises(BackendError, match="no OpenVINO here"):
        openvino_here()


def test_a_package_that_does_not_load(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match="openvino could not be loaded") as caught:
        OpenVino().offers(demo, "core")
    assert "pip install openvino" in caught.value.hint


# --- what really runs -----------------------------------------------------------------


def test_openvino_computes_every_node(plugin: Plugin, demo: Bundle) -> None:
    source = PluginSource(
        demo, demo.component.graph("core"), Settings("float32", threads=2), plugin
    )
    parts = source._load(source.path).session.get_provider_graph_assignment_info()
    assert {part.ep_name for part in parts} == {"OpenVINOExecutionProvider"}


def test_a_graph_that_openvino_cannot_take_whole_is_refused(
    route: Route, tmp_path: Path, demo: Bundle
) -> None:
    """``Det`` has kernels in onnxruntime and none in OpenVINO."""
    made = route.source_of(*unsupported(tmp_path, demo))
    with pytest.raises(BackendError, match="could not load"):
        made.open()
    assert "Det" in (tmp_path / "graphs" / "core.onnx").read_bytes().decode("latin-1")


def test_a_node_that_went_elsewhere_is_named(plugin: Plugin, tmp_path: Path, demo: Bundle) -> None:
    """The second proof: here onnxruntime may run on its own kernels what OpenVINO leaves."""
    made = PluginSource(*unsupported(tmp_path, demo), plugin)
    options = session_options(made.plugin, made.settings)
    options.add_session_config_entry(NO_FALLBACK, "0")
    path = str(made.bundle.path(made.graph.file))
    session = onnxruntime.InferenceSession(path, sess_options=options)
    with pytest.raises(BackendError, match=f"{PROVIDER} does not run the whole graph") as caught:
        require_whole(session, PROVIDER)
    assert "(Det): assigned to CPUExecutionProvider" in caught.value.found


def unsupported(folder: Path, like: Bundle) -> tuple[Bundle, Graph, Settings]:
    (folder / "graphs").mkdir()
    image = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, "H", "W"])
    result = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Relu", ["pixels"], ["r"]),
        helper.make_node("Det", ["r"], ["output"]),
    ]
    graph = helper.make_graph(nodes, "g", [image], [result])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(
        helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "graphs/core.onnx"
    )
    core = like.component.graph("core")
    fake = Bundle(folder, like.manifest, like.sha256)
    return fake, replace_data(core), Settings("float32", 2)


def replace_data(graph: Graph) -> Graph:
    return Graph(graph.role, "graphs/core.onnx", graph.inputs, graph.outputs, [])


def test_what_claims_to_be_low_and_is_full_is_refused(route: Route, demo: Bundle) -> None:
    """OpenVINO takes the precision as a hint: here it is compiled as float32."""
    full = route.source(demo, "float32")
    for role in ("core", "image"):
        made = replace(full, graph=demo.component.graph(role))  # type: ignore[arg-type]
        info = route.backend.offers(demo, "core")[0].info
        with pytest.raises(BackendError, match="does not compute in bfloat16"):
            open_openvino(made, replace(info, precision="bfloat16"))


def test_lower_precisions_differ_from_full(route: Route, demo: Bundle) -> None:
    """Each precision that this processor offers gives other values than float32."""
    x = noise(32, 32)
    full = run(route.source(demo), x)
    for offer in route.backend.offers(demo, "core"):
        with offer.open() as session:
            values = session.infer({session.inputs[0].name: x})[session.outputs[0].name]
        error = float(np.abs(values - full).max())
        assert (error == 0) == (offer.info.precision == "float32")
        assert error < 0.05


def test_one_shape_of_tokens_makes_no_large_constants(tokens: Bundle) -> None:
    """Mask and bias of a layer would be one, for every window of the image: here 8 MB each."""
    made = PackageSource(
        tokens,
        tokens.component.graph("core", "openvino"),
        Settings("float32", threads=2),
        load_package(),
    )
    any_shape, one_shape = (len(one._compile()) for one in (made, made.fixed((1, 3, 128, 128))))
    assert one_shape < any_shape + 1_000_000


# --- parts in float32 -----------------------------------------------------------------


@pytest.fixture
def tokens(make_bundle: Callable[..., Bundle]) -> Bundle:
    """A small Swin2SR, which has graphs made for OpenVINO."""
    return make_bundle("swin2sr", {"embed_dim": 12, "depths": [2], "num_heads": [2]})


def test_parts_in_float32_come_between_bfloat16_and_float32(
    tokens: Bundle, demo: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "processor_flags", lambda: frozenset({"avx512_bf16"}))
    infos = [offer.info for offer in OpenVino().offers(tokens, "core")]
    assert [info.arithmetic for info in infos] == [
        "bfloat16", "bfloat16 with float32 first and last convolution",
        "bfloat16 with float32 convolutions and sums", "float32",
    ]  # fmt: skip
    assert "bfloat16 with float32 convolutions and sums" in str(infos[2])
    assert len({verdict_path(tokens, info, "core") for info in infos}) == 4
    alone = [offer.info.arithmetic for offer in OpenVino().offers(demo, "core")]
    assert alone == ["bfloat16", "float32"]  # all its products are convolutions


def test_onnxruntimes_plugin_cannot_be_told_of_parts(
    tokens: Bundle, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "processor_flags", lambda: frozenset({"amx_bf16"}))
    infos = [offer.info for offer in OnnxRuntimeOpenVino().offers(tokens, "core")]
    assert not any(info.kept for info in infos)


def test_parts_really_stay_in_float32(tokens: Bundle) -> None:
    """The counters of OpenVINO say so, and the results come nearer to float32."""
    offers = {offer.info.arithmetic: offer for offer in OpenVino(threads=2).offers(tokens, "core")}
    if "bfloat16" not in offers:
        pytest.skip("this processor multiplies no bfloat16")
    x, results, ran = noise(64, 64), {}, {}
    for arithmetic, offer in offers.items():
        with offer.open() as session:
            assert isinstance(session, OpenVinoSession)
            results[arithmetic] = infer(session, x)
            engine: Any = session._session
            ran[arithmetic] = kernels(engine.compiled)
    low, full = "bfloat16", "float32"
    ends, sums = (f"bfloat16 with float32 {kept}" for kept in (ENDS, SUMS))
    assert ran[low] == {"Convolution": {"bf16"}, "FullyConnected": {"bf16"}}
    assert ran[ends] == {"Convolution": {"f32", "bf16"}, "FullyConnected": {"bf16"}}
    assert ran[sums] == {"Convolution": {"f32"}, "FullyConnected": {"bf16"}}
    assert ran[full] == {"Convolution": {"f32"}, "FullyConnected": {"f32"}}
    errors = [np.square(results[one] - results[full]).mean() for one in (low, ends, sums)]
    assert 0 < errors[1] < 0.9 * errors[0]
    assert 0 < errors[2] < 0.8 * errors[0]


def test_what_stays_in_float32() -> None:
    types = {
        "x": "Parameter", "first": "Convolution", "bias": "Add", "product": "MatMul", "sum": "Add",
        "middle": "Convolution", "last": "Convolution", "end": "Add", "mean": "Add", "y": "Result",
    }  # fmt: skip
    names = list(types)
    edges = list(pairwise(names))
    assert staying(types, edges, ENDS) == {"first", "bias", "last", "end", "mean"}
    assert staying(types, edges, SUMS) == set(names) - {"x", "product", "y"}


def kernels(compiled: Any) -> dict[str, set[str]]:
    """The precisions of the products of a compiled graph, by type."""
    found: dict[str, set[str]] = {"Convolution": set(), "FullyConnected": set()}
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {name: node.get_rt_info()[name].astype(str) for name in FACTS}
        if facts["layerType"] in found:
            found[facts["layerType"]].add(facts["runtimePrecision"])
    return found


FACTS = ("layerType", "runtimePrecision")


def test_shapes_and_threads(route: Route, demo: Bundle) -> None:
    """Four threads through one session at three sizes give what one thread gives."""
    with route.open(demo, "core", "float32") as session:
        name, out = session.inputs[0].name, session.outputs[0].name
        images = [noise(16 + 8 * (k % 3), 24, k) for k in range(12)]
        alone = [session.infer({name: image})[out] for image in images]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda image: session.infer({name: image})[out], images))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other)
        with pytest.raises(BackendError, match=r"\(1, 4, 8, 8\)"):
            session.infer({name: np.zeros((1, 4, 8, 8), np.float32)})
    with pytest.raises(BackendError, match="closed"):
        session.infer({name: images[0]})


def test_too_little_memory_is_called_so(route: Route) -> None:
    """A limit on the address space stands in for a small machine."""
    script = (
        "import resource\n"
        "from pathlib import Path\n"
        "import numpy as np, pixelrt\n"
        "from pixelrt.errors import OutOfMemoryError\n"
        f"model = pixelrt.load('demo', backend='{route.backend.name}')\n"
        "model(np.zeros((32, 32, 3), np.uint8))\n"
        "size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 200 * 2**20,) * 2)\n"
        "try:\n"
        "    model(np.zeros((2000, 2000, 3), np.uint8), tile='off')\n"
        "except OutOfMemoryError as error:\n"
        "    print('told:', error.message)\n"
        "model(np.zeros((32, 32, 3), np.uint8))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "told: " in done.stdout
    assert "2000, 2000" in done.stdout


def shape_of(engine: Any) -> tuple[int, ...]:
    """Of the first input, as the library has it."""
    if isinstance(engine, OrtEngine):
        return tuple(engine.session.get_inputs()[0].shape)
    return tuple(engine.compiled.input(0).shape)


def test_memory_that_runs_out_while_a_graph_is_compiled(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(self: PackageSource, path: str) -> Any:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(PackageSource, "_compiled", no_room)
    graph = demo.component.graph("core")
    made = PackageSource(demo, graph, Settings("float32", threads=2), load_package())
    with pytest.raises(OutOfMemoryError, match="ran out of memory"):
        made.open()


# --- one shape ------------------------------------------------------------------------


def full_session(route: Route, bundle: Bundle) -> OpenVinoSession:
    (full,) = (o for o in route.backend.offers(bundle, "core") if o.info.precision == "float32")
    session = full.open()
    assert isinstance(session, OpenVinoSession)
    return session


def infer(session: OpenVinoSession, x: Any) -> Any:
    return session.infer({session.inputs[0].name: x})[session.outputs[0].name]


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Compiling for one shape pays at once; gives the shapes that graphs were opened for."""
    monkeypatch.setattr(openvino_session, "FIXED_GAIN", float("inf"))
    opened: list[tuple[int, ...]] = []
    open_source = Source.open

    def seen(self: Source) -> Any:
        opened.append(self.settings.shape)
        return open_source(self)

    monkeypatch.setattr(Source, "open", seen)
    return opened


def test_one_shape_is_compiled_for_once_it_pays(
    route: Route, demo: Bundle, shapes: list[tuple[int, ...]]
) -> None:
    wide, high = noise(16, 40), noise(40, 16)
    with full_session(route, demo) as session:
        values = [infer(session, wide) for _ in range(3)]
        assert shapes == [(), wide.shape]
        assert shape_of(session._session) == wide.shape
        for one in values[1:]:
            np.testing.assert_allclose(one, values[0], atol=1e-5)
        np.testing.assert_allclose(infer(session, high), run(route.source(demo), high), atol=1e-5)
        del shapes[-1]  # that of the line above
        assert shapes == [(), wide.shape, (), high.shape]
        assert len(blobs()) == 1


def test_a_shape_is_not_compiled_for_before_it_pays(
    route: Route, demo: Bundle, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_session, "FIXED_GAIN", 0.19)
    with full_session(route, demo) as session:
        for _ in range(5):
            infer(session, noise(16, 16))
    assert shapes == [()]


def test_difference_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = noise(30, 41), noise(30, 41, 1)
    whole = openvino_session.difference(one, other)
    error = np.abs(one - other)
    np.testing.assert_allclose(whole, (error.max(), np.square(error).mean()), rtol=1e-5)
    monkeypatch.setattr(openvino_session, "BLOCK", 100)
    np.testing.assert_allclose(openvino_session.difference(one, other), whole, rtol=1e-5)
    other[0, 0, 29, 40] = np.nan
    assert openvino_session.difference(one, other)[0] == float("inf")
    levels = np.zeros((1, 2, 2, 3), np.uint8)
    assert openvino_session.difference(levels, levels + np.uint8(255)) == (255.0, 255.0**2)


@pytest.fixture(params=["other results", "does not open"])
def faulty(
    request: pytest.FixtureRequest, demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs for one shape have a few other weights, or are none at all."""
    made = Source.fixed
    shutil.copytree(demo.root / "graphs", tmp_path / "graphs")
    weights = np.fromfile(tmp_path / "graphs/weights.bin", np.float32)
    weights[1000:1200] *= 1.01
    weights.tofile(tmp_path / "graphs/weights.bin")
    altered = Bundle(tmp_path, demo.manifest, demo.sha256)

    def wrong(self: Source, shape: tuple[int, ...]) -> Source:
        fixed = made(self, shape)
        if request.param == "does not open":
            return replace(fixed, graph=Graph("core", "graphs/none.onnx", self.graph.inputs, []))
        return replace(fixed, bundle=altered)

    monkeypatch.setattr(Source, "fixed", wrong)


@pytest.mark.usefixtures("faulty")
def test_one_for_a_shape_that_differs_is_not_taken(
    route: Route, demo: Bundle, shapes: list[tuple[int, ...]]
) -> None:
    x = noise(24, 24)
    with full_session(route, demo) as session:
        right = infer(session, x)
        for _ in range(3):
            np.testing.assert_array_equal(infer(session, x), right)
    assert shapes == [(), x.shape, ()]


def infer_one_shape(session: OpenVinoSession, x: Any) -> Any:
    """Held against the top left 40x40, of which the demonstration network's halo of 12 is left."""
    name, same = session.inputs[0].name, (slice(None), slice(None), slice(56), slice(56))
    return session.infer_one_shape({name: x}, {name: x[:, :, :40, :40].copy()}, same)[
        session.outputs[0].name
    ]


def test_one_shape_that_is_asked_for_is_compiled_at_once_and_again(
    route: Route, demo: Bundle, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_session, "FIXED_GAIN", 0.0)
    x, other = noise(64, 80), noise(48, 40)
    with full_session(route, demo) as session:
        right = infer(session, x)
        np.testing.assert_allclose(infer_one_shape(session, x), right, atol=1e-5)
        np.testing.assert_allclose(infer_one_shape(session, x), right, atol=1e-5)
        assert shapes == [(), x.shape]
        infer(session, other)
        np.testing.assert_allclose(infer(session, x), right, atol=1e-5)
    assert shapes == [(), x.shape, (), x.shape]


@pytest.mark.usefixtures("faulty")
def test_one_shape_that_is_asked_for_and_differs_is_refused(
    route: Route, demo: Bundle, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_session, "FIXED_GAIN", 0.0)
    x = noise(64, 80)
    with full_session(route, demo) as session:
        right = infer(session, x)
        with pytest.raises(BackendError, match=r"gives other results|could not load"):
            infer_one_shape(session, x)
        np.testing.assert_array_equal(infer(session, x), right)
    assert shapes == [(), x.shape, ()]


@pytest.mark.parametrize("role", ["image", "core"])
def test_tokens_take_larger_tiles_and_give_the_same(
    route: Route, tokens: Bundle, shapes: list[tuple[int, ...]], role: str
) -> None:
    """As if untiled: 1e-5 in float, one level in the picture."""
    halo, need = tokens.manifest.receptive_field.halo, tokens.manifest.memory
    assert halo is not None
    side = 2 * halo + 48
    options = RunOptions(max_memory=need.fixed + need.per_pixel * side**2)
    x = noise(320, 280) if role == "core" else None
    pixels = (noise(320, 280)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    with ImageModel(tokens, precision="float32", backends=(route.backend,)) as model:
        session = model.session(role)  # type: ignore[arg-type]
        usual = plan_image(
            Size(320, 280),
            with_memory_share(model.manifest, session.info.memory_share),
            options,
        )
        plan = model.plan(320, 280, max_memory=options.max_memory)
        assert len(plan) > 1
        assert plan.work < 0.9 * usual.work

        def run(options: RunOptions) -> Any:
            if x is not None:
                return model.run_core(x, options)
            return model.run_array(pixels, options).astype(int)

        tiled = run(options)
        tile = astuple(plan.tile)
        assert (1, *tile, 3) in shapes or (1, 3, *tile) in shapes
        assert np.abs(tiled - run(RunOptions(tile="off"))).max() <= (1e-5 if x is not None else 1)
        assert model.notes == ()


# --- what is kept ---------------------------------------------------------------------


def run(made: Source, x: Any) -> Any:
    graph = made.graph
    return made.open().run(tuple(graph.outputs), {graph.inputs[0].name: x})[graph.outputs[0].name]


def blobs() -> list[Path]:
    return sorted((cache_folder() / "openvino" / "entries").glob("*/artefact"))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a graph is compiled for the cache."""
    calls: list[int] = []
    for kind in (PluginSource, PackageSource):
        monkeypatch.setattr(kind, "_compile", _counted(kind._compile, calls))
    return calls


def _counted(compile_graph: Callable[[Any], bytes], calls: list[int]) -> Callable[[Any], bytes]:
    def counted(self: Any) -> bytes:
        calls.append(1)
        return compile_graph(self)

    return counted


def test_a_compiled_graph_is_kept_and_used(route: Route, demo: Bundle, compiled: list[int]) -> None:
    x = noise(24, 40)
    first, second = run(route.source(demo), x), run(route.source(demo), x)
    np.testing.assert_array_equal(first, second)
    assert len(compiled) == len(blobs()) == 1
    run(route.source(demo, role="image"), np.zeros((1, 8, 8, 3), np.uint8))
    assert len(compiled) == len(blobs()) == 2


def damage_flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("damage", [damage_flip, damage_cut, Path.unlink])
def test_a_damaged_one_is_compiled_again(
    route: Route, demo: Bundle, compiled: list[int], damage: Callable[[Path], None]
) -> None:
    x = noise(24, 40)
    right = run(route.source(demo), x)
    damage(blobs()[0])
    np.testing.assert_array_equal(run(route.source(demo), x), right)
    assert len(compiled) == 2
    run(route.source(demo), x)
    assert len(compiled) == 2


def test_one_that_openvino_refuses_gives_way_to_the_graph(route: Route, demo: Bundle) -> None:
    x = noise(24, 40)
    right = run(route.source(demo), x)
    cache = PlanCache(cache_folder() / "openvino")
    assert len(cache.clear()) == 1
    with cache.get_or_make(route.source(demo)._key(), lambda: Artefact(b"no model at all")):
        pass
    np.testing.assert_array_equal(run(route.source(demo), x), right)


def test_a_cache_that_cannot_be_written_is_done_without(
    route: Route, demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("PIXELRT_CACHE", str(blocked))
    assert run(route.source(demo), noise(16, 16)).shape == (1, 3, 32, 32)


def other_version(base: Source) -> Source:
    if isinstance(base, PluginSource):
        return replace(base, plugin=replace(base.plugin, version="1.9"))
    assert isinstance(base, PackageSource)
    return replace(base, package=replace(base.package, version="2025.1"))


def test_the_key_holds_what_decides_the_blob(
    route: Route, demo: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = route.source(demo)
    others = [
        replace(base, settings=Settings("bfloat16", 2)),
        replace(base, settings=Settings("float32", 3)),
        replace(base, graph=demo.component.graph("image")),
        other_version(base),
    ]
    keys = {one._key() for one in (base, *others)}
    files = dict(demo.manifest.files)
    entry = files["graphs/weights.bin"]
    files["graphs/weights.bin"] = type(entry)("0" * 64, entry.bytes)
    manifest = type(demo.manifest)(
        **{name: getattr(demo.manifest, name) for name in demo.manifest.__struct_fields__}
        | {"files": files}
    )
    keys.add(replace(base, bundle=Bundle(demo.root, manifest, demo.sha256))._key())
    monkeypatch.setattr(openvino_cache, "processor_name", lambda: "another")
    keys.add(base._key())
    monkeypatch.setattr(openvino_cache, "processor_flags", lambda: frozenset({"amx_fp16"}))
    keys.add(base._key())
    assert len(keys) == 8


def test_large_weights_are_compiled_each_time(
    route: Route, demo: Bundle, compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_cache, "WEIGHTS_PER_GRAPH_BYTE", 0)
    run(route.source(demo), noise(16, 16))
    assert compiled == []
    assert blobs() == []


def test_a_run_says_backend_and_precision(route: Route, photo: Any) -> None:
    name = route.backend.name
    with load("demo", backend=name, precision="float32") as model:
        model(photo[:20, :30])
        told = str(model.info)
    assert told.startswith(f"{name} ")
    assert "float32" in told
    config = json.loads(Settings("float16", 3).load_config())["CPU"]
    assert config["INFERENCE_PRECISION_HINT"] == "f16"
    assert config["INFERENCE_NUM_THREADS"] == "3"


def test_the_graph_that_was_made_for_a_precision(demo: Bundle) -> None:
    plain = demo.component
    renamed = [
        msgspec.structs.replace(one, file=f"graphs/low-{one.role}.onnx") for one in plain.graphs
    ]
    variant = GraphVariant("openvino-low", renamed)
    component = msgspec.structs.replace(plain, variants=[variant])
    manifest = msgspec.structs.replace(demo.manifest, components=[component])
    bundle = Bundle(demo.root, manifest, demo.sha256)
    names = ("float32", "bfloat16")
    files = {name: openvino._graph(bundle, "core", name, frozenset()).file for name in names}
    assert files == {"float32": "graphs/core.onnx", "bfloat16": "graphs/low-core.onnx"}
    assert openvino._graph(demo, "core", "bfloat16", frozenset()).file == "graphs/core.onnx"
