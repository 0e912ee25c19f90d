"""Plans of a pipeline's network on the fakes: several tensors, lengths, pieces, proof, failures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pixelrt.engines.tensors import encode_tensors
from pixelrt.errors import BackendError, FidelityError, InputError, OutOfMemoryError, UsageError
from pixelrt.pipeline_bundle import PipelineBundle, PipelineNetwork
from pixelrt.plans.axis_profiles import parse_axes
from pixelrt.plans.facts import PlanGraph, PlanSample
from pixelrt.plans.store import write_plan
from pixelrt.runtime.backends.base import PlannedSession
from pixelrt.runtime.backends.select import Choice, Opened, open_session
from pixelrt.runtime.backends.tensorrt import TensorRTBackend
from pixelrt.runtime.device.memory import PageableMemoryWarning
from pixelrt.runtime.in_segments import fits
from pixelrt.runtime.networks import Networks
from pixelrt.runtime.planning import RunOptions
from tests.pipelines import (
    LATENTS,
    NOISE,
    POOLED,
    TENSORS,
    mixing,
    network_feeds,
    write_pipeline,
)
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_tensorrt import FakeTensorRT, Net
from tests.runtime.plan_cases import facts_of, machine_of
from tests.segments.small import network as in_pieces

DYNAMIC = "B=1,2,4 h=2,3,8 w=2,4,8 T=1,5,10"


def net(*profiles: str, **more: Any) -> Net:
    return Net(
        "mixing",
        LATENTS,
        NOISE,
        tuple(map(parse_axes, profiles)),
        more=(TENSORS[1:], (POOLED,)),
        **more,
    )


def answers(feeds: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(("noise", "pooled"), mixing(*feeds.values()), strict=True))


@dataclass
class Desk:
    """A machine with a fake GPU, and plans of the network ``unet``."""

    bundle: PipelineBundle
    cuda: FakeCuda = field(default_factory=FakeCuda)
    function: Any = mixing
    graphs: bool = True

    def __post_init__(self) -> None:
        self.world = FakeTensorRT(self.cuda, {"mixing": self.function})

    @property
    def network(self) -> PipelineNetwork:
        return self.bundle.network("unet")

    @property
    def backend(self) -> TensorRTBackend:
        return TensorRTBackend(
            "tensorrt", graphs=self.graphs, machine=machine_of(lambda: self.world)
        )

    def build(self, made: Net, name: str = "net", **changes: Any) -> Path:
        """Write a plan with a sample at the optimum of its first profile."""
        network = self.network
        (graph,) = network.component.graphs
        feeds = network_feeds(**made.profiles[0].shapes[1].lengths)
        files = {f"{name}.plan": made.plan(), "sample-0.npz": encode_tensors(feeds, answers(feeds))}
        files |= changes.pop("beside", {})
        facts = facts_of(
            made,
            files,
            plan=f"{name}.plan",
            graph=PlanGraph(
                "network",
                network.files[graph.file].sha256,
                [],
                list(made.sources),
                list(made.results),
                "unet",
            ),
            bundle=network.sha256,
            samples=[PlanSample("unet at its best", "sample-0.npz")],
        )
        path = network.root / "engines" / f"desk-{name}" / f"{name}.plan"
        write_plan(path, msgspec.structs.replace(facts, **changes), files)
        return path

    def open(self, **more: Any) -> Opened:
        return open_session(self.network, "network", Choice(**more), (self.backend,))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(write_pipeline(tmp_path / "small.pixelrt"))


def check(session: Any, **lengths: int) -> None:
    feeds = network_feeds(**lengths)
    found = session.infer(feeds)
    for name, wanted in answers(feeds).items():
        np.testing.assert_array_equal(found[name], wanted)


def test_named_tensors_at_lengths_of_the_profile(desk: Desk) -> None:
    desk.build(net(DYNAMIC))
    opened = desk.open()
    with opened.session as session:
        assert isinstance(session, PlannedSession)
        assert (session.info.name, session.info.precision) == ("tensorrt", "float16")
        assert opened.verdict.startswith("verified now")
        assert not opened.passed_over
        for lengths in ({"h": 3, "w": 4, "T": 5}, {"h": 8, "w": 2, "T": 1}):
            for count in (1, 2, 4):
                check(session, B=count, **lengths)
    desk.cuda.assert_clean()


def test_the_steps_of_a_run_are_recorded(desk: Desk) -> None:
    """A set of lengths runs, is recorded, and is replayed; others beside it do not disturb."""
    desk.build(net(DYNAMIC))
    with desk.open().session as session:
        for step in range(5):
            check(session, B=2, h=8, w=8, T=1)
            check(session, B=1, h=2, w=2, T=10)
            assert len(desk.cuda.executables) == (2 if step else 0)
        executed = len(desk.world.executed)
        check(session, B=2, h=8, w=8, T=1)
        assert len(desk.world.executed) == executed, "replayed, not queued anew"
        for side in range(2, 9):  # more than are kept
            check(session, B=1, h=side, w=2, T=1)
        check(session, B=2, h=8, w=8, T=1)
    desk.cuda.assert_clean()


def test_without_graphs_where_they_cannot_be(desk: Desk) -> None:
    desk.world.capturable = False
    desk.build(net(DYNAMIC))
    with desk.open().session as session:
        for _ in range(4):
            check(session, B=2, h=8, w=8, T=1)
    desk.cuda.assert_clean()


@pytest.mark.parametrize(
    ("profile", "count", "rows"),
    [
        (DYNAMIC, 9, [3, 3, 3]),
        (DYNAMIC, 7, [4, 4]),
        ("B=2 h=2,3,8 w=2,4,8 T=1,5,10", 3, [2, 2]),
        ("B=2 h=2,3,8 w=2,4,8 T=1,5,10", 1, [2]),
    ],
)
def test_more_or_fewer_pictures_than_a_profile_takes(
    desk: Desk, profile: str, count: int, rows: list[int]
) -> None:
    desk.build(net(profile))
    desk.graphs = False
    with desk.open().session as session:
        desk.world.executed.clear()
        check(session, B=count, h=3, w=4, T=5)
        assert [shape[0] for shape in desk.world.executed] == rows
    desk.cuda.assert_clean()


def test_the_tuned_profile_is_taken(desk: Desk) -> None:
    desk.build(net("B=1,1,4 h=2,8,8 w=2,8,8 T=1,5,10", "B=1,1,2 h=2,3,4 w=2,3,4 T=1,5,10"))
    with desk.open().session as session:
        check(session, B=1, h=3, w=3, T=5)
        check(session, B=1, h=8, w=8, T=5)
        check(session, B=3, h=3, w=3, T=5)
    desk.cuda.assert_clean()


def test_a_plan_of_one_shape(desk: Desk) -> None:
    """The bundle's own sample does not fit; the plan's does."""
    desk.build(net("B=1 h=8 w=6 T=7", static=True))
    opened = desk.open()
    with opened.session as session:
        assert opened.verdict.startswith("verified now")
        check(session, B=1, h=8, w=6, T=7)
        check(session, B=3, h=8, w=6, T=7)
        with pytest.raises(UsageError, match="B=1 h=8 w=5 T=7 is outside every profile"):
            session.infer(network_feeds(B=1, h=8, w=5, T=7))
    desk.cuda.assert_clean()


def test_inputs_that_are_none(desk: Desk) -> None:
    desk.build(net(DYNAMIC))
    with desk.open().session as session:
        feeds = network_feeds(B=1, h=3, w=3, T=5)
        with pytest.raises(UsageError, match="an input is not ids"):
            session.infer({name: v for name, v in feeds.items() if name != "ids"})
        with pytest.raises(BackendError, match="another type than ids int64"):
            session.infer({**feeds, "ids": feeds["ids"].astype(np.int32)})
        with pytest.raises(UsageError, match="h=9"):
            session.infer(network_feeds(B=1, h=9, w=3, T=5))
        session.close()
        session.close()
        with pytest.raises(BackendError, match="closed"):
            session.infer(feeds)
    desk.cuda.assert_clean()


# --- proof ----------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [DYNAMIC, "B=1 h=8 w=6 T=7"])
def test_a_plan_that_is_wrong_on_this_gpu_is_not_used(desk: Desk, profile: str) -> None:
    def wrong(*inputs: Any) -> tuple[Any, Any]:
        noise, words = mixing(*inputs)
        return noise * np.float32(0.8), words

    desk.function = wrong
    desk.__post_init__()
    desk.build(net(profile, static=profile != DYNAMIC))
    for executed in (True, False):
        desk.world.executed.clear()
        with pytest.raises(FidelityError, match="does not reproduce the reference"):
            desk.open()
        assert bool(desk.world.executed) == executed, "known to fail, it is not loaded again"
    desk.cuda.assert_clean()


def test_no_plan_says_how_to_build_one(desk: Desk) -> None:
    with pytest.raises(BackendError, match="has no plan of this bundle") as caught:
        desk.open(backend="tensorrt")
    said = f"pixelrt build {desk.bundle.root} --backend tensorrt --network unet"
    assert said in str(caught.value)


def test_plans_of_other_networks_are_not_taken(desk: Desk) -> None:
    (graph,) = desk.network.component.graphs
    other = PlanGraph("network", "f" * 64, [], graph.inputs, graph.outputs, "vae_decoder")
    desk.build(net(DYNAMIC), graph=other)
    with pytest.raises(BackendError) as caught:
        desk.open(backend="tensorrt")
    assert "another graph" not in str(caught.value)
    desk.build(net(DYNAMIC), graph=msgspec.structs.replace(other, network="unet"))
    with pytest.raises(BackendError, match=r"another graph than graphs/unet\.onnx"):
        desk.open(backend="tensorrt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"profiles": ["B=1,2,4 h=2,3,8 w=2,4,8 T=1,5,9"]}, "profile 0 is"),
        ({"profiles": [DYNAMIC, "B=1 h=8 w=8 T=5"]}, "1 profiles, not 2"),
    ],
)
def test_an_engine_that_is_not_what_its_facts_say(
    desk: Desk, change: dict[str, Any], said: str
) -> None:
    desk.build(net(DYNAMIC), **change)
    with pytest.raises(InputError, match=said):
        desk.open(backend="tensorrt")
    desk.cuda.assert_clean()


def test_tensors_of_another_type(desk: Desk) -> None:
    made = net(DYNAMIC)
    pixels, ids, scale = made.more[0]
    facts = made.plan()
    narrow = replace(made, more=((pixels, replace(ids, dtype="float32"), scale), made.more[1]))
    path = desk.build(made, beside={"net.plan": narrow.plan()})
    assert path.read_bytes() != facts
    with pytest.raises(InputError, match="ids is FLOAT, not int64"):
        desk.open(backend="tensorrt")


def test_a_sample_of_other_tensors(desk: Desk) -> None:
    feeds = network_feeds(B=1, h=3, w=3, T=5)
    outputs = answers(feeds)
    cases = (
        (encode_tensors({**feeds, "extra": feeds["scale"]}, outputs), "in.extra"),
        (encode_tensors(feeds, {**outputs, "noise": outputs["noise"][:, :, :2]}), "noise"),
        (b"no zip", "no sample"),
    )
    for data, said in cases:
        desk.build(net(DYNAMIC), beside={"sample-0.npz": data})
        with pytest.raises(InputError, match="is no sample") as caught:
            desk.open(backend="tensorrt")
        assert said in str(caught.value)
    desk.cuda.assert_clean()


# --- failures ------------------------------------------------------------------------------


def test_memory_is_given_back_for_other_lengths(desk: Desk) -> None:
    desk.build(net(DYNAMIC, work_per_pixel=100))
    desk.cuda = FakeCuda(memory=300_000)
    desk.__post_init__()
    with desk.open().session as session:
        for side in (2, 4, 6, 8, 4, 8):
            check(session, B=2, h=side, w=8, T=5)
    desk.cuda.assert_clean()


def test_too_little_memory_is_said(desk: Desk) -> None:
    desk.build(net(DYNAMIC, work_per_pixel=100))
    desk.cuda = FakeCuda(memory=60_000)
    desk.__post_init__()
    with desk.open().session as session:
        check(session, B=1, h=2, w=2, T=5)
        with pytest.raises(OutOfMemoryError):
            session.infer(network_feeds(B=4, h=8, w=8, T=10))
        check(session, B=1, h=2, w=2, T=5)
    desk.cuda.assert_clean()


@pytest.mark.parametrize("lose_device", [False, True])
def test_every_call_that_fails_is_told_and_leaves_nothing(desk: Desk, lose_device: bool) -> None:
    desk.build(net(DYNAMIC))

    def run() -> str:
        try:
            with desk.open().session as session:
                for _ in range(3):
                    check(session, B=5, h=3, w=4, T=5)
                check(session, B=1, h=4, w=4, T=5)
                return ""
        except BackendError as exc:
            return str(exc)

    run()  # the verdict is known from here on
    desk.cuda = FakeCuda(1)
    desk.__post_init__()
    assert not run()
    heard, calls = 0, len(desk.cuda.calls)
    for k in range(calls):
        desk.cuda = FakeCuda(1, fail_at=k, lose_device=lose_device)
        desk.__post_init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PageableMemoryWarning)
            words = run()
        heard += "planted failure" in words
        if lose_device:
            desk.cuda.finish()
        desk.cuda.assert_clean()
    assert heard > calls / 2


@pytest.mark.parametrize(
    "call",
    [
        "create_execution_context",
        "set_optimization_profile_async",
        "set_input_shape",
        "update_device_memory_size_for_shapes",
        "set_tensor_address",
        "execute_async_v3",
    ],
)
def test_what_tensorrt_refuses_is_told(desk: Desk, call: str) -> None:
    desk.build(net("B=1,1,4 h=2,8,8 w=2,8,8 T=1,5,10", "B=1,1,2 h=2,3,4 w=2,3,4 T=1,5,10"))
    desk.world.refuse = call
    with pytest.raises(BackendError, match=f"planted refusal of {call}"):
        desk.open(backend="tensorrt")
    desk.world.refuse = ""
    with desk.open(backend="tensorrt").session as session:
        check(session, B=1, h=3, w=3, T=5)
    desk.cuda.assert_clean()


def test_a_plan_is_not_cut_by_what_segments_would_need(desk: Desk) -> None:
    given, little = {"pixels": np.zeros((1, 2, 8, 8), np.float32)}, RunOptions(max_memory=1)
    desk.build(net(DYNAMIC))
    with desk.open(backend="tensorrt").session as session:
        assert fits(in_pieces(), given, little, session)
    assert not fits(in_pieces(), given, little, None)


def test_a_pipeline_runs_its_networks_on_plans(desk: Desk) -> None:
    desk.build(net(DYNAMIC))
    with Networks(desk.bundle, backends=(desk.backend,)) as networks:
        feeds = network_feeds(B=2, h=3, w=3, T=5)
        np.testing.assert_array_equal(networks.run("unet", feeds)["noise"], answers(feeds)["noise"])
        assert networks.used["unet"].name == "tensorrt"
    desk.cuda.assert_clean()
