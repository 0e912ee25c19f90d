"""Whether a picture is cut, and into what, by the memory of where it runs, on fakes of a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrt.geometry import Size
from pixelrt.manifest import FileEntry, PipelineManifest, Source
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.runtime import in_segments, planning
from pixelrt.runtime.backends.select import Choice
from pixelrt.runtime.device.planning import DEVICE_SHARE
from pixelrt.runtime.networks import Networks
from pixelrt.runtime.planning import RunOptions
from pixelrt.segments import Tiling, run_segments, whole_need
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_onnxruntime import CUDA, SHAPES, FakeOrt
from tests.runtime.fake_onnxruntime import network as nodes
from tests.runtime.test_onnxruntime_device import cuda_backend
from tests.segments.small import FUNCTIONS, network, untiled

SIDE = 24
NEED = whole_need(network(), Size(SIDE, SIDE))
GIVEN = {"pixels": np.random.default_rng(1).random((1, 2, SIDE, SIDE), np.float32)}
WHOLE = "graphs/whole.onnx"


def function(path: str, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
    name = Path(path).stem
    return (untiled(feeds["pixels"]) if name == "whole" else FUNCTIONS[name](feeds),)


@pytest.fixture
def bundle(tmp_path: Path) -> PipelineBundle:
    """Of one network in segments; graphs are names of functions."""
    one = network()
    graphs = [WHOLE, *(segment.graph.file for segment in one.segments)]
    for folder in ("graphs", "reference"):
        (tmp_path / folder).mkdir()
    for file in graphs:
        (tmp_path / file).write_bytes(b"graph")
    np.savez(
        tmp_path / "reference" / "s.npz",
        **{"in.pixels": GIVEN["pixels"], "out.out": untiled(GIVEN["pixels"])},
    )
    manifest = PipelineManifest(
        format=2,
        name="small",
        family="stable-diffusion",
        variant="made",
        settings={},
        source=Source("random", "0", seed=0),
        networks=[one],
        fidelity=[],
        made_by={},
        files={file: FileEntry("", 1) for file in [*graphs, "reference/s.npz"]},
    )
    return PipelineBundle(tmp_path, manifest, "ab" * 32)


class Desk:
    """A host with ``host`` bytes free and a GPU with ``device``."""

    def __init__(
        self,
        bundle: PipelineBundle,
        monkeypatch: pytest.MonkeyPatch,
        host: int,
        device: int,
        **options: Any,
    ) -> None:
        monkeypatch.setattr(planning, "available_memory", lambda: host)
        monkeypatch.setattr(in_segments, "run_segments", self._run_segments)
        self.cuda = FakeCuda(memory=device)
        self.tilings: list[Tiling] = []
        self.ort = FakeOrt(self.cuda, (*SHAPES, *nodes(CUDA)), function=function)
        self.networks = Networks(
            bundle,
            Choice(),
            verify=False,
            backends=(cuda_backend(self.ort),),
            options=RunOptions(**options),
        )

    def run(self) -> tuple[str, ...]:
        """What ran it."""
        found = self.networks.run("whole", GIVEN)["out"]
        np.testing.assert_allclose(found, untiled(GIVEN["pixels"]), atol=1e-4)
        return tuple(self.networks.used)

    def _run_segments(self, *arguments: Any) -> Any:
        self.tilings.append(arguments[3])
        return run_segments(*arguments)


PLENTY, LITTLE = 20 * NEED, NEED // 2


def test_a_host_with_little_memory_does_not_cut_what_a_gpu_has_room_for(
    bundle: PipelineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(bundle, monkeypatch, host=LITTLE, device=PLENTY)
    assert desk.run() == ("whole",)


def test_what_does_not_fit_on_the_gpu_is_cut_for_it(
    bundle: PipelineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(bundle, monkeypatch, host=PLENTY, device=LITTLE)
    assert desk.run() == ("whole in tiles",)
    (tiling,) = desk.tilings
    assert tiling == Tiling(int(LITTLE * DEVICE_SHARE), None, waiting=PLENTY // 4)


def test_a_limit_is_the_devices(bundle: PipelineBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(bundle, monkeypatch, host=PLENTY, device=PLENTY, max_memory=LITTLE)
    assert desk.run() == ("whole in tiles",)
    assert desk.tilings == [Tiling(LITTLE, None, waiting=LITTLE // 2)]


def test_what_a_run_left_on_the_gpu_is_there_for_the_next(
    bundle: PipelineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(bundle, monkeypatch, host=PLENTY, device=2 * NEED)
    desk.ort.takes = lambda path, _: NEED + NEED // 2 if path.endswith(WHOLE) else 0
    assert desk.run() == ("whole",)
    assert desk.cuda.memory_info()[0] < NEED
    assert desk.run() == ("whole",)
    desk.networks.close()
    assert desk.cuda.used("device") == 0


@pytest.mark.parametrize("missing", ["", "no GPU"])
def test_nothing_is_opened_where_there_is_no_gpu(
    bundle: PipelineBundle, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """The host decides by itself, before anything is loaded."""
    desk = Desk(bundle, monkeypatch, host=LITTLE, device=PLENTY)
    backend = desk.networks._backends[0]
    monkeypatch.setattr(type(backend), "missing", lambda _: missing)
    assert desk.networks._in_tiles("whole", GIVEN) is bool(missing)
    assert [Path(one.path).stem for one in desk.ort.sessions] == ([] if missing else ["whole"])
