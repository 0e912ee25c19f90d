"""onnxruntime's providers for NVIDIA's GPUs, on fakes of onnxruntime and of CUDA."""

from __future__ import annotations

import gc
import os
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError, FidelityError, OutOfMemoryError
from pixelrt.manifest import GraphVariant
from pixelrt.runtime.backends.onnxruntime_cuda import CudaProvider
from pixelrt.runtime.backends.onnxruntime_device import OrtDeviceBackend, OrtMachine
from pixelrt.runtime.backends.onnxruntime_rtx import RtxProvider
from pixelrt.runtime.backends.select import BACKENDS, open_session
from pixelrt.runtime.device.memory import PageableMemoryWarning
from pixelrt.runtime.device.resources import Stream
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.spec import ReceptiveField
from tests.bundles import image_spec, nearest, write_bundle
from tests.runtime.device_cases import on_device, pictures, read_back
from tests.runtime.fake_cuda import FakeCuda, Hazard
from tests.runtime.fake_onnxruntime import CPU, CUDA, RTX, SHAPES, FakeOrt, Node, network, plugin

PLUGINS = {"onnxruntime_ep_cuda": CUDA, "onnxruntime_ep_nv_tensorrt_rtx": RTX}


def backend(
    provider: Any, ort: FakeOrt, *plugins: str, absent: tuple[str, ...] = ()
) -> OrtDeviceBackend:
    """On a machine with onnxruntime, cuda-bindings and these plugins."""
    there = {"onnxruntime", "cuda.bindings", *plugins} - set(absent)

    def load(name: str) -> Any:
        if name not in there:
            raise ImportError(f"No module named {name!r}")
        return ort if name == "onnxruntime" else plugin(PLUGINS[name])

    return OrtDeviceBackend(provider, OrtMachine(there.__contains__, load, lambda: ort.cuda))


def cuda_backend(ort: FakeOrt) -> OrtDeviceBackend:
    return backend(CudaProvider(), ort)


def rtx_world(cuda: FakeCuda, **facts: Any) -> FakeOrt:
    return FakeOrt(cuda, network(RTX), builtin=(CPU,), offered={RTX: 1}, **facts)


def rtx_backend(ort: FakeOrt, *, graphs: bool = False) -> OrtDeviceBackend:
    return backend(RtxProvider(graphs=graphs), ort, "onnxruntime_ep_nv_tensorrt_rtx")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    spec = image_spec(multiple=4, minimum=8)
    return write_bundle(tmp_path / "double.pixelrt", spec, ReceptiveField(4, 4))


def test_the_order_of_auto() -> None:
    assert [one.name for one in BACKENDS] == [
        "tensorrt",
        "tensorrt-rtx",
        "onnxruntime-tensorrt-rtx",
        "onnxruntime-cuda",
        "onnxruntime-openvino",
        "openvino",
        "onnxruntime-cpu",
    ]


@pytest.mark.parametrize("kind", ["cuda", "cuda plugin", "rtx", "rtx graphs"])
@pytest.mark.parametrize("seed", range(3))
def test_images_come_out_right(bundle: Bundle, kind: str, seed: int) -> None:
    cuda = FakeCuda(seed)
    if kind.startswith("rtx"):
        one = rtx_backend(rtx_world(cuda), graphs=kind == "rtx graphs")
    elif kind == "cuda plugin":
        ort = FakeOrt(cuda, network(CUDA), builtin=(CPU,), offered={CUDA: 1})
        one = backend(CudaProvider(), ort, "onnxruntime_ep_cuda")
    else:
        one = cuda_backend(FakeOrt(cuda, (*SHAPES, *network(CUDA))))
    image = pictures(40, 29, 3)
    expected = nearest(2)(image[None])[0]
    with ImageModel(bundle, backends=(one,)) as model:
        for tile in ("off", 16):
            for _ in range(3):
                np.testing.assert_array_equal(model(image, tile=tile), expected)
        wide = model(image.astype(np.float32) / np.float32(255), tile=16)
        np.testing.assert_allclose(wide, expected / np.float32(255), atol=1e-6)
        with Stream(cuda) as theirs, on_device(cuda, image, theirs) as array:
            result = model.run_device(array, tile=16)
            np.testing.assert_array_equal(read_back(cuda, result), expected)
            del result
        assert model.notes == ()
    gc.collect()
    cuda.assert_clean()


def test_what_the_cuda_session_is_opened_with(bundle: Bundle, capsys: Any) -> None:
    cuda = FakeCuda()
    ort = FakeOrt(cuda, network(CUDA))
    with open_session(bundle, "image", None, (cuda_backend(ort),)).session as session:
        (state,) = ort.sessions
        assert int(state.options["user_compute_stream"]) in cuda.streams
        assert state.options["use_tf32"] == "0"
        assert state.options["device_id"] == "0"
        assert session.info.precision == "float32"
        assert session.info.name == "onnxruntime-cuda"
        assert "session.disable_cpu_ep_fallback" not in state.entries
        assert {run["disable_synchronize_execution_providers"] for run in state.runs} == {"1"}
    assert state.stream_when_closed
    assert capsys.readouterr().out == "", "what libraries say is no result"
    cuda.assert_clean()


def test_a_graph_that_was_made_for_the_backend_is_taken(bundle: Bundle) -> None:
    (component,) = bundle.manifest.components
    own = [msgspec.structs.replace(graph, file="graphs/own.onnx") for graph in component.graphs]
    (bundle.root / "graphs" / "own.onnx").write_bytes(b"own")
    variant = GraphVariant("onnxruntime-cuda", own)
    component = msgspec.structs.replace(component, variants=[variant])
    manifest = msgspec.structs.replace(bundle.manifest, components=[component])
    ort = FakeOrt(FakeCuda(), network(CUDA))
    one = cuda_backend(ort).offers(Bundle(bundle.root, manifest, "other"), "image")[0]
    one.open().close()
    assert ort.sessions[0].path.endswith("graphs/own.onnx")


def test_what_the_rtx_session_is_opened_with(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda()
    ort = rtx_world(cuda)
    one = rtx_backend(ort, graphs=True)
    for override, precision in (("", "tf32"), ("0", "float32")):
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
        with open_session(bundle, "image", None, (one,)).session as session:
            state = ort.sessions[-1]
            options = state.options
            assert options["has_user_compute_stream"] == "1"
            assert int(options["user_compute_stream"]) in cuda.streams
            assert options["nv_profile_min_shapes"] == "image:1x8x8x3"
            assert options["nv_profile_opt_shapes"] == "image:1x256x256x3"
            assert options["nv_profile_max_shapes"] == "image:1x512x512x3"
            assert options["enable_cuda_graph"] == "1"
            assert state.entries["session.disable_cpu_ep_fallback"] == "1"
            folder = Path(options["nv_runtime_cache_path"])
            assert folder.is_dir()
            assert folder.stat().st_mode & 0o777 == 0o700
            assert session.info.precision == precision
            assert [str(profile) for profile in session.profiles] == ["1x8x8,1x256x256,1x512x512"]
    assert ort.registered == [(RTX, f"/plugins/lib{RTX}.so")]
    cuda.assert_clean()


def test_a_recorded_graph_belongs_to_one_shape_and_one_set_of_addresses(bundle: Bundle) -> None:
    cuda = FakeCuda()
    ort = rtx_world(cuda)
    with ImageModel(bundle, backends=(rtx_backend(ort, graphs=True),)) as model:
        for side in (16, 24, 16):
            model(pictures(side, 20, 3), tile="off")
    numbers = [run["cuda_graph_annotation_id"] for run in ort.sessions[0].runs]
    # the sample, then three images of two shapes: the third is replayed
    assert len(set(numbers)) == 3
    assert numbers[1] == numbers[3]
    ort.sessions.clear()
    with ImageModel(bundle, backends=(rtx_backend(ort),)) as model:
        model(pictures(16, 20, 3))
    assert "cuda_graph_annotation_id" not in ort.sessions[0].runs[0]


def test_a_cache_that_others_may_write_to_is_refused(bundle: Bundle) -> None:
    ort = rtx_world(FakeCuda())
    with open_session(bundle, "image", None, (rtx_backend(ort),)).session:
        folder = Path(ort.sessions[0].options["nv_runtime_cache_path"])
    folder.chmod(0o777)
    with pytest.raises(BackendError, match="open to others") as caught:
        rtx_backend(ort).offers(bundle, "image")[0].open()
    assert "777" in str(caught.value)
    folder.rmdir()
    folder.parent.rmdir()
    folder.parent.write_text("in the way")
    with pytest.raises(BackendError, match="cannot be made"):
        rtx_backend(ort).offers(bundle, "image")[0].open()


BIG = ({"float": [1, 3, 64, 64]},)
LARGE_SHAPE = ({"int64": [65]}, {"int64": [4]})


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (Node("resize", "Resize", CPU, BIG), "resize (Resize)"),
        (Node("", "Mul", CPU, BIG), " (Mul)"),
        (Node("mask", "Expand", CPU, LARGE_SHAPE), "mask (Expand)"),
        (Node("scale", "Cast", CPU, ({"float": [4]}, {"int64": [4]})), "scale (Cast)"),
        (Node("norm", "Mean", "DnnlExecutionProvider"), "assigned to DnnlExecutionProvider"),
    ],
)
def test_a_network_that_is_not_wholly_on_the_gpu_is_refused(
    bundle: Bundle, extra: Node, words: str
) -> None:
    cuda = FakeCuda()
    ort = FakeOrt(cuda, (*SHAPES, *network(CUDA), extra))
    with pytest.raises(BackendError, match="does not run the whole graph") as caught:
        cuda_backend(ort).offers(bundle, "image")[0].open()
    assert words in caught.value.found
    assert "height" not in caught.value.found
    gc.collect()
    assert ort.sessions[0].stream_when_closed
    cuda.assert_clean()


def test_many_nodes_on_the_cpu_are_counted(bundle: Bundle) -> None:
    extra = tuple(Node(f"n{i}", "Conv", CPU) for i in range(20))
    with pytest.raises(BackendError, match=r"n7 \(Conv\) and 12 more: run by CPU"):
        cuda_backend(FakeOrt(FakeCuda(), (*extra, *network(CUDA)))).offers(bundle, "image")[
            0
        ].open()


@pytest.mark.parametrize(
    ("nodes", "words"), [(network(CPU), r"conv_in \(Conv\), conv_out"), ((), "every node")]
)
def test_a_provider_that_is_there_and_got_nothing(bundle: Bundle, nodes: Any, words: str) -> None:
    with pytest.raises(BackendError, match=f"{words}.*assigned to the CPU"):
        cuda_backend(FakeOrt(FakeCuda(), nodes)).offers(bundle, "image")[0].open()


def test_the_rtx_provider_takes_all_or_nothing(bundle: Bundle) -> None:
    cuda = FakeCuda()
    ort = rtx_world(cuda)
    ort.nodes = (*SHAPES, *network(RTX))
    with pytest.raises(BackendError, match="could not load") as caught:
        rtx_backend(ort).offers(bundle, "image")[0].open()
    assert "default CPU EP" in caught.value.found
    cuda.assert_clean()


def test_a_provider_that_onnxruntime_left_out(bundle: Bundle) -> None:
    """As it does where libcudnn is missing: with a line on standard error."""
    cuda = FakeCuda()
    ort = FakeOrt(cuda, network(CPU), given=(CPU,))
    with pytest.raises(BackendError, match="left CUDAExecutionProvider out") as caught:
        cuda_backend(ort).offers(bundle, "image")[0].open()
    assert "CPUExecutionProvider" in caught.value.found
    cuda.assert_clean()


def test_onnxruntimes_own_fallback_is_off(bundle: Bundle) -> None:
    cuda = FakeCuda()
    ort = FakeOrt(cuda, network(CUDA), load_error="CUDA failure 35")
    with pytest.raises(BackendError, match="could not load graphs") as caught:
        cuda_backend(ort).offers(bundle, "image")[0].open()
    assert "CUDA failure 35" in caught.value.found
    cuda.assert_clean()


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("CUDA failure 2: out of memory", OutOfMemoryError),
        ("Failed to allocate memory for requested buffer of size 4096", OutOfMemoryError),
        ("CUDA failure 700: an illegal memory access", BackendError),
    ],
)
def test_a_run_that_fails(bundle: Bundle, words: str, kind: type[Exception]) -> None:
    cuda = FakeCuda()
    ort = FakeOrt(cuda, network(CUDA))
    with ImageModel(bundle, backends=(cuda_backend(ort),), verify=False) as model:
        model(pictures(16, 16, 3))
        ort.run_error = words
        with pytest.raises(kind) as caught:
            model(pictures(16, 16, 3))
        assert words in str(caught.value)
        ort.run_error = ""
        model(pictures(16, 16, 3))
    cuda.assert_clean()


def test_wrong_results_are_refused(bundle: Bundle) -> None:
    cuda = FakeCuda()
    with pytest.raises(FidelityError):
        open_session(bundle, "image", None, (cuda_backend(FakeOrt(cuda, network(CUDA), wrong=9)),))
    gc.collect()
    cuda.assert_clean()


@pytest.mark.parametrize(
    ("provider", "absent", "plugins", "words"),
    [
        (CudaProvider(), ("onnxruntime",), (), "pixelrt[cuda]"),
        (CudaProvider(), ("cuda.bindings",), (), "pixelrt[cuda]"),
        (CudaProvider(), (), (), "no CUDA provider; pip uninstall onnxruntime"),
        (CudaProvider(), (), ("onnxruntime_ep_cuda",), ""),
        (RtxProvider(), ("onnxruntime",), ("onnxruntime_ep_nv_tensorrt_rtx",), "pixelrt[rtx]"),
        (RtxProvider(), (), (), "pixelrt[rtx]"),
        (RtxProvider(), ("cuda.bindings",), ("onnxruntime_ep_nv_tensorrt_rtx",), "pixelrt[rtx]"),
        (RtxProvider(), (), ("onnxruntime_ep_nv_tensorrt_rtx",), ""),
    ],
)
def test_what_is_missing_is_named_with_its_extra(
    provider: Any, absent: tuple[str, ...], plugins: tuple[str, ...], words: str
) -> None:
    ort = FakeOrt(FakeCuda(), (), builtin=(CPU,))
    said = backend(provider, ort, *plugins, absent=absent).missing()
    assert words in said if words else said == ""


def test_a_machine_without_a_gpu_says_so() -> None:
    def no_gpu() -> Any:
        raise BackendError("no CUDA device", found="no driver", hint="install one")

    ort = FakeOrt(FakeCuda(), ())
    machine = OrtMachine(lambda _: True, lambda _: ort, no_gpu)
    for provider in (CudaProvider(), RtxProvider()):
        said = OrtDeviceBackend(provider, machine).missing()
        assert said == "no CUDA device; no driver; install one"


def test_an_onnxruntime_that_cannot_tell_what_runs_where(bundle: Bundle) -> None:
    ort = FakeOrt(FakeCuda(), network(CUDA), __version__="1.23.2")
    with pytest.raises(BackendError, match="cannot tell") as caught:
        cuda_backend(ort).offers(bundle, "image")
    assert caught.value.expected == "1.24 or later"


def test_a_gpu_that_the_provider_does_not_take(bundle: Bundle) -> None:
    ort = rtx_world(FakeCuda())
    ort.offered = {RTX: 0}
    with pytest.raises(BackendError, match="does not take the GPU") as caught:
        rtx_backend(ort).offers(bundle, "image")
    assert "compute capability 0.0" in caught.value.found
    ort.offered = {RTX: 3}
    ort.cuda.device_count = lambda: 3  # type: ignore[method-assign]
    assert rtx_backend(ort).offers(bundle, "image")


def test_a_library_that_does_not_load(bundle: Bundle) -> None:
    ort = rtx_world(FakeCuda(), register_error="libcuda.so.1: cannot open shared object file")
    with pytest.raises(BackendError, match="could not load") as caught:
        rtx_backend(ort).offers(bundle, "image")
    assert "driver" in caught.value.hint
    ort.register_error = ""
    assert rtx_backend(ort).offers(bundle, "image")
    ort.register_error = "it would be registered twice"
    assert rtx_backend(ort).offers(bundle, "image")


@pytest.mark.usefixtures("quick_collection")
@pytest.mark.parametrize("lose_device", [False, True], ids=["once", "device lost"])
def test_every_failing_call_leaves_nothing_behind(bundle: Bundle, lose_device: bool) -> None:
    def case(cuda: FakeCuda) -> None:
        one = cuda_backend(FakeOrt(cuda, (*SHAPES, *network(CUDA))))
        with ImageModel(bundle, backends=(one,), verify=False) as model:
            model(pictures(12, 12, 3))

    whole = FakeCuda()
    case(whole)
    for k in range(len(whole.calls)):
        cuda = FakeCuda(k, fail_at=k, lose_device=lose_device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PageableMemoryWarning)
            try:
                case(cuda)
            except Hazard as exc:
                pytest.fail(f"{exc}, after call {k}, {whole.calls[k]}, failed")
            except BackendError:
                pass
        gc.collect()
        cuda.finish()
        cuda.host = (1 << len(cuda.operations)) - 1 if lose_device else cuda.host
        cuda.assert_clean()


def test_nothing_stays_in_the_folder_for_temporary_files(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    ort = FakeOrt(FakeCuda(), (*SHAPES, *network(CUDA)))
    cuda_backend(ort).offers(bundle, "image")[0].open().close()
    assert os.listdir(place) == []  # noqa: PTH208 - names are enough
