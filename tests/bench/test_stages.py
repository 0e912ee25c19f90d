"""Where the time goes, on a clock that only the stages move."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pixelrt.bench.harness import Bench
from pixelrt.bench.schema import STAGES
from pixelrt.bench.stages import StageClock, TimedBackend, TimedTileSession, timed
from pixelrt.runtime.backends.base import BackendInfo
from pixelrt.runtime.backends.fake import FakeBackend, FakeSession
from pixelrt.runtime.backends.select import Choice
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.planning import RunOptions
from pixelrt.spec import TensorSpec
from tests.bench.test_statistics import FakeClock
from tests.bundles import nearest, write_bundle


def test_every_instant_belongs_to_one_stage() -> None:
    clock = FakeClock()
    stages = StageClock(clock)
    stages.start("decode")
    clock.now += 1
    stages.enter("copy_in")
    clock.now += 2
    for done in (1, 2):
        with stages.computing():
            clock.now += 10
        clock.now += 3  # the core of the tile goes to its place
        stages.tiles_done(done, 2)
        clock.now += 0.5  # the next tile, then what is left to do
    stages.enter("encode")
    clock.now += 7
    assert stages.finish() == {
        "decode": 1, "copy_in": 2.5, "compute": 20, "copy_out": 6.5, "encode": 7,
    }  # fmt: skip


def test_what_a_running_graph_hides_does_not_count() -> None:
    clock = FakeClock()
    stages = StageClock(clock)
    stages.start("copy_in")
    with stages.computing():
        clock.now += 1
        stages.enter("copy_in")  # another thread prepares the next tile
        clock.now += 1
        with stages.computing():  # and a second graph runs beside the first
            clock.now += 1
        clock.now += 1
    clock.now += 0.25
    assert stages.finish() == {
        "decode": 0, "copy_in": 0, "compute": 4, "copy_out": 0.25, "encode": 0,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_stages_add_up_to_the_whole(seed: int) -> None:
    rng = random.Random(seed)
    clock = FakeClock()
    stages = StageClock(clock)
    stages.start("decode")
    began = clock.now
    for _ in range(200):
        clock.now += rng.random() * 1e-3
        if rng.random() < 0.5:
            stages.enter(rng.choice(STAGES))
        else:
            with stages.computing():
                clock.now += rng.random() * 1e-3
    assert sum(stages.finish().values()) == pytest.approx(clock.now - began, rel=1e-9)


def test_outside_an_image_nothing_is_booked() -> None:
    clock = FakeClock()
    stages = StageClock(clock)
    with stages.computing():  # a session that is verified
        clock.now += 5
    stages.start("decode")
    clock.now += 1
    assert sum(stages.finish().values()) == 1
    clock.now += 9
    stages.start("decode")
    assert sum(stages.finish().values()) == 0


def test_a_model_tells_its_stages(tmp_path: Path) -> None:
    """A network that takes 2 s for a tile: all of it is compute, the rest takes no time."""
    clock = FakeClock()
    stages = StageClock(clock)

    def slow(tiles: np.ndarray[object, np.dtype[np.uint8]]) -> object:
        clock.now += 2
        return nearest()(tiles)

    backend = FakeBackend({"image": slow, "core": slow})
    bundle = write_bundle(tmp_path / "b.pixelrt")
    with ImageModel(bundle, backends=(TimedBackend(backend, stages),), verify=False) as model:
        stages.start("copy_in")
        image = np.zeros((200, 100, 3), np.uint8)
        model.run_array(image, RunOptions(tile=100), stages.tiles_done)
        found = stages.finish()
    assert found["compute"] == 4
    assert sum(found.values()) == 4


def test_closing_a_bench_closes_the_sessions_inside(tmp_path: Path) -> None:
    backend = FakeBackend({"image": nearest(), "core": nearest()})
    bundle = write_bundle(tmp_path / "b.pixelrt")
    backend.functions = {"image": nearest(), "core": lambda x: x.repeat(2, 2).repeat(2, 3)}
    with Bench(bundle, Choice(), backends=(backend,), route=lambda pixels: pixels):
        pass
    assert len(backend.sessions) == 2
    assert all(session.closed for session in backend.sessions)


def test_a_session_that_moves_tiles_itself_goes_on_doing_so() -> None:
    """It is found by its methods, and its whole flow is compute."""
    clock = FakeClock()
    stages = StageClock(clock)

    class Moving(FakeSession):
        notes = ("not pinned",)

        def run_tiles(self, images: str, *, scale: int) -> None:
            clock.now += 4 * scale

    spec = TensorSpec("x", "uint8", ("N", "H", "W", 3))
    info = BackendInfo("fake", "1", "none", "float32")
    plain = timed(FakeSession(nearest(), (spec,), (spec,), info), stages)
    moving = timed(Moving(nearest(), (spec,), (spec,), info), stages)
    assert not hasattr(plain, "run_tiles")
    assert isinstance(moving, TimedTileSession)
    stages.start("copy_in")
    moving.run_tiles("images", scale=2)
    assert stages.finish()["compute"] == 8
    assert moving.notes == ("not pinned",)


def test_what_an_offer_says_of_itself_stays(tmp_path: Path) -> None:
    backend = FakeBackend(
        {"image": nearest(), "core": nearest()}, precisions=("float16", "float32")
    )
    bundle = write_bundle(tmp_path / "b.pixelrt")
    inside = backend.offers(bundle, "image")
    outside = TimedBackend(backend, StageClock()).offers(bundle, "image")
    assert [replace(o, open=None) for o in outside] == [replace(o, open=None) for o in inside]  # type: ignore[arg-type]
