"""Reading, running and writing beside one another: order, bounds, errors, memory."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelrt.bundle import Bundle
from pixelrt.cli import flow
from pixelrt.cli.flow import BESIDE_SHARE, Outcome, Settings, run_overlapped
from pixelrt.cli.jobs import Job
from pixelrt.errors import BackendError, ImageError, OutputError
from pixelrt.runtime.backends.fake import FakeBackend
from pixelrt.runtime.images.read import Picture
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.planning import RunOptions
from pixelrt.spec import ReceptiveField
from tests.bundles import nearest, write_bundle

PATIENCE_S = 20


def settings(**options: Any) -> Settings:
    return Settings(RunOptions(**options), None, 95, 10**8, overwrite=True, quiet=True)


class Model:
    """Stands in for a model; ``run_picture`` calls ``during(number of the picture)``."""

    scale = 1

    def __init__(self, during: Any = lambda _: None) -> None:
        self.during = during
        self.count = 0

    def run_picture(self, picture: Picture, options: Any, progress: Any) -> Picture:
        self.count += 1
        self.during(self.count)
        return replace(picture, pixels=picture.pixels.copy())


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    made = []
    for k in range(6):
        source = tmp_path / f"{k}.png"
        Image.fromarray(np.full((10 + k, 12, 3), 40 * k, np.uint8)).save(source)
        made.append(Job(source, tmp_path / "out" / f"{k}.png"))
    return made


def run(model: Any, jobs: list[Job], given: Settings | None = None) -> list[Outcome]:
    told: list[Outcome] = []
    run_overlapped(model, jobs, given or settings(), told.append)
    return told


def test_the_next_is_read_and_the_last_written_while_one_runs(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network of each picture waits for the next one's decoder, and the writer of each
    for the next one's network: this ends only where they are beside one another."""
    read = [threading.Event() for _ in jobs]
    running = [threading.Event() for _ in jobs]
    read_picture, write_picture = flow.read_picture, flow.write_picture

    def reading(path: Path, **options: Any) -> Picture:
        read[int(path.stem)].set()
        return read_picture(path, **options)

    def writing(path: Path, picture: Picture, **options: Any) -> Any:
        after = int(path.stem) + 1
        assert after == len(jobs) or running[after].wait(PATIENCE_S)
        return write_picture(path, picture, **options)

    def during(count: int) -> None:
        running[count - 1].set()
        assert count == len(jobs) or read[count].wait(PATIENCE_S)
        assert count + 1 >= len(jobs) or not read[count + 1].is_set()

    monkeypatch.setattr(flow, "read_picture", reading)
    monkeypatch.setattr(flow, "write_picture", writing)
    told = run(Model(during), jobs)
    assert [outcome.line.split()[0] for outcome in told] == [str(job.source) for job in jobs]
    for job in jobs:
        np.testing.assert_array_equal(
            np.asarray(Image.open(job.source)), np.asarray(Image.open(job.target))
        )


def test_errors_keep_their_place(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged input, an output that cannot be written and an error of the network."""
    jobs[1].source.write_bytes(b"no picture")
    write_picture = flow.write_picture

    def writing(path: Path, picture: Picture, **options: Any) -> Any:
        if path == jobs[3].target:
            raise OutputError("disk full")
        return write_picture(path, picture, **options)

    def during(count: int) -> None:
        if count == 5:  # the last but the damaged one
            raise ImageError("odd picture")

    monkeypatch.setattr(flow, "write_picture", writing)
    told = run(Model(during), jobs)
    errors = [type(outcome.error).__name__ if outcome.error else "" for outcome in told]
    assert errors == ["", "ImageError", "", "OutputError", "", "ImageError"]
    assert sorted(path.name for path in jobs[0].target.parent.iterdir()) == [
        "0.png",
        "2.png",
        "4.png",
    ]


@pytest.mark.parametrize("error", [BackendError("gone"), KeyboardInterrupt()])
def test_what_stops_everything_leaves_whole_files(jobs: list[Job], error: BaseException) -> None:
    def during(count: int) -> None:
        if count == 3:
            raise error

    told: list[Outcome] = []
    with pytest.raises(type(error)):
        run_overlapped(Model(during), jobs, settings(), told.append)  # type: ignore[arg-type]
    assert [outcome.line.split()[0] for outcome in told] == [str(job.source) for job in jobs[:2]]
    assert sorted(path.name for path in jobs[0].target.parent.iterdir()) == ["0.png", "1.png"]
    assert not [thread for thread in threading.enumerate() if "pixelrt" in thread.name]


def tiled_model(tmp_path: Path) -> tuple[ImageModel, FakeBackend]:
    def core(x: Any) -> Any:
        return nearest()(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    backend = FakeBackend({"core": core, "image": nearest()})
    bundle: Bundle = write_bundle(
        tmp_path / "m.pixelrt", field=ReceptiveField(1, 2, {}), per_pixel=1000
    )
    return ImageModel(bundle, backends=(backend,)), backend


def test_pictures_beside_the_network_count(jobs: list[Job], tmp_path: Path) -> None:
    """Tiles are smaller by the share of the two pictures that stand beside the network."""
    model, backend = tiled_model(tmp_path)
    limit = 120_000
    run(model, jobs, settings(max_memory=limit))
    tiles = [h * w * 1000 for _, h, w, _ in backend.sessions[0].calls[1:]]
    assert max(tiles) <= limit - 2 * (limit // BESIDE_SHARE)


def test_where_a_picture_needs_all_memory_nothing_stands_beside(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest tile is 5x5: it fits into the limit, but not beside two pictures."""
    model, backend = tiled_model(tmp_path)
    read: list[str] = []
    read_picture = flow.read_picture

    def reading(path: Path, **options: Any) -> Picture:
        assert threading.current_thread() is threading.main_thread()
        read.append(path.name)
        return read_picture(path, **options)

    monkeypatch.setattr(flow, "read_picture", reading)
    told = run(model, jobs, settings(max_memory=26_000))
    assert not [outcome.error for outcome in told if outcome.error]
    assert read == [job.source.name for job in jobs]
    assert {call[1:3] for call in backend.sessions[0].calls[1:]} == {(5, 5)}


def test_a_picture_too_large_to_stand_beside_is_read_in_its_turn(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.zeros((400, 400, 3), np.uint8)).save(jobs[2].source)
    read: list[tuple[str, bool]] = []
    decoded = flow._read

    def reading(path: Path, *rest: Any) -> Any:
        found = decoded(path, *rest)
        read.append((path.name, threading.current_thread() is threading.main_thread()))
        return found

    monkeypatch.setattr(flow, "_read", reading)
    monkeypatch.setattr(flow, "memory_budget", lambda _: BESIDE_SHARE * 100_000)
    assert len(run(Model(), jobs)) == 6
    assert [name for name, alone in read if alone] == ["0.png", "2.png"]
    assert [name for name, alone in read if not alone] == ["1.png", "3.png", "4.png", "5.png"]
