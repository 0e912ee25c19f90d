"""Peers in turn: the machinery on contenders that sleep, then the real ones once."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ceilings, compare, pairs
from benchmarks.cases import CASES, PHOTO_CASES, QUICK_CASES, TINY, Case, choose_cases
from benchmarks.contenders import PEERS, PIXELRT, Job, ours_for, peers_for
from benchmarks.gpu import turn_rows
from benchmarks.isolated import run_isolated
from benchmarks.pairs import QUICK, Jobs, interleave, measure_pair, with_shares
from benchmarks.records import Ceiling, CompareReport, decode_record, read_record
from benchmarks.script import run_command
from benchmarks.worker import Worker
from pixelrt.bench.steady import WarmupLimits
from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError, PixelrtError, UsageError
from pixelrt.fidelity import PSNR_CEILING
from pixelrt.geometry import Size
from tests.benchmarks.sleepers import BROKEN, BUG, CRASH, sleeper, telling
from tests.bundles import write_bundle

ROOT = Path(__file__).parents[2]
LIMITS = WarmupLimits(0.0, max_runs=3)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """A made-up image and the bundle that repeats pixels; a part of it four times."""
    bundle = write_bundle(tmp_path / "made.pixelrt")
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    for name, pixels in (("whole", image), ("part", image[:8, :12])):
        np.save(tmp_path / f"{name}.npy", pixels)
    whole, part = (
        Job(TINY, bundle.root, tmp_path / f"{name}.npy", 1) for name in ("whole", "part")
    )
    return Jobs(bundle, whole, part, 4, Size(8, 12), tmp_path)


def close(*_: object) -> tuple[float, str]:
    return 70.0, "made up"


def test_turns_are_interleaved() -> None:
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = interleave((lambda: turn("a"), lambda: turn("b")), 3)
    assert "".join(order) == "abababab"
    assert found == [[3, 5, 7], [4, 6, 8]]  # the first round does not count
    order.clear()
    assert interleave((lambda: turn("a"), lambda: turn("b")), 1, lead=0) == [[1], [2]]


def test_a_pair_has_its_ratio_and_the_parts_count(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "run_isolated", close)
    found = measure_pair(sleeper(0.02), sleeper(0.04, whole=True), jobs, QUICK)
    assert found.peer.parts == 4
    assert found.ours.parts == 1
    assert found.peer.seconds.p50 == pytest.approx(4 * 0.02, rel=0.5)
    assert found.ratio == pytest.approx(2.0, rel=0.6)
    assert found.low <= found.ratio <= found.high
    assert "one of 4 tiles was run" in found.peer.note
    assert found.peer.peak_memory > 0


def test_an_image_in_tiles_warms_up_with_one_and_runs_as_often_as_asked(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "run_isolated", close)
    log = tmp_path / "log"
    whole = dataclasses.replace(jobs.whole, part=jobs.part.image)
    effort = dataclasses.replace(QUICK, rounds=1, turn=0.1)
    measure_pair(sleeper(0.0), telling(log), dataclasses.replace(jobs, whole=whole), effort)
    assert log.read_text().split() == ["8x12"] * QUICK.limits.max_runs + ["16x24"]


def test_shares_are_of_the_ceiling_of_the_precision(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "run_isolated", close)
    pair = measure_pair(sleeper(0.01, whole=True), sleeper(0.01, whole=True), jobs, QUICK)
    tops = [
        Ceiling("a", "float32", 1e9, ""),
        Ceiling("b", "float32", 4e9, ""),
        Ceiling("c", "bfloat16", 9e9, ""),
    ]
    found = with_shares(pair, 10_000_000, tops).peer
    assert found.share == pytest.approx(2e7 / found.seconds.p50 / 4e9)
    assert with_shares(pair, 1, []).peer.share is None


@pytest.mark.parametrize(
    ("who", "words"),
    [(BROKEN, "this one never works"), (BUG, "ZeroDivisionError: a bug"), (CRASH, "exit code 7")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_peer_that_fails_says_why(who: object, words: str, jobs: Jobs) -> None:
    with pytest.raises(BackendError, match=words), Worker(who, jobs.whole, LIMITS):  # type: ignore[arg-type]
        pass


def test_a_worker_ends_with_its_block(jobs: Jobs) -> None:
    with Worker(sleeper(0.0), jobs.whole, LIMITS) as worker:
        assert len(worker.run(3)) == 3
        process = worker._process
        assert process.is_alive()
    assert process.exitcode == 0


def test_everybody_in_turn_with_failures_as_rows(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.gpu.run_isolated", close)
    case = Case(TINY, Size(16, 24))
    contenders = (CRASH, sleeper(0.02, whole=True), BROKEN, sleeper(0.04, whole=True))
    rows = turn_rows(case, jobs.bundle, contenders, QUICK, tmp_path)
    by_name = {row.name: row for row in rows}
    assert sorted(by_name) == ["broken", "crash", "sleeps 0.02", "sleeps 0.04"]
    assert "exit code 7" in by_name["crash"].reason
    assert by_name["broken"].seconds is None
    assert by_name["sleeps 0.04"].facts["times sleeps 0.02"] == pytest.approx(2, rel=0.6)


def test_a_wrong_output_is_found(srgan_bundle: Bundle, tmp_path: Path) -> None:
    """By the float32 route on the very image."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    np.save(tmp_path / "image.npy", image)
    from pixelrt.bench.reference import open_reference, reference_route

    with open_reference(srgan_bundle) as model:
        right = reference_route(model)(image)
    wrong = right.copy()
    wrong[7, 8] ^= 0x80
    for name, output in (("right", right), ("wrong", wrong)):
        np.save(tmp_path / f"{name}.npy", output)
    paths = [tmp_path / f"{name}.npy" for name in ("image", "right", "wrong")]
    assert pairs.output_fidelity(srgan_bundle.root, paths[0], paths[1])[0] == PSNR_CEILING
    assert (pairs.output_fidelity(srgan_bundle.root, paths[0], paths[2])[0] or 0) < 50
    with pytest.raises(BackendError, match="wrong size"):
        pairs.output_fidelity(srgan_bundle.root, paths[0], paths[0])


def test_peers_and_who_they_are_held_against() -> None:
    names = [one.name for one in PEERS]
    assert len(set(names)) == len(names)
    openvino = [one for one in PEERS if one.name.startswith("openvino")]
    assert [ours_for(one).name for one in openvino] == 2 * [
        "pixelrt float32", "pixelrt bfloat16", "pixelrt float16",
    ]  # fmt: skip
    assert all(ours_for(one) is PIXELRT[0] for one in PEERS if "openvino" not in one.name)
    assert "transformers processor + model" in [one.name for one in peers_for(CASES[0].network)]
    assert "transformers processor + model" not in [one.name for one in peers_for(TINY)]
    assert all(one.settings for one in (*PEERS, *PIXELRT))


def test_cases_are_chosen_by_words() -> None:
    assert [c.name for c in choose_cases(("resnet9",), CASES)] == [
        "cyclegan-resnet9 256x256", "cyclegan-resnet9 1024x1024",
    ]  # fmt: skip
    assert len(choose_cases((), CASES)) == 6
    with pytest.raises(UsageError, match="no case"):
        choose_cases(("nix",), CASES)


def test_peers_are_given_one_tile_of_what_is_tiled(srgan_bundle: Bundle, tmp_path: Path) -> None:
    case = Case(TINY, Size(2000, 3000), tiled=True)
    plan = pairs.plan_of(srgan_bundle.root, case.size)
    found = pairs.make_jobs(case, srgan_bundle, tmp_path)
    assert found.parts == len(plan) > 1
    assert found.part.load().shape == (plan.tile.height, plan.tile.width, 3)
    assert found.whole.load().shape == (2000, 3000, 3)
    assert found.whole.load_part().shape == found.part.load().shape
    assert all(one.tiled for one in PHOTO_CASES)
    found = pairs.make_jobs(case, srgan_bundle, tmp_path, Size(128, 192))
    assert found.parts == 16 * 16
    assert found.part.load().shape == (128, 192, 3)
    assert found.whole.load_part().shape == (plan.tile.height, plan.tile.width, 3)


def test_multiply_adds_of_the_graph(srgan_bundle: Bundle) -> None:
    """A network without whole-image parts: twice the pixels, twice the products."""
    one, two = (pairs.count_multiply_adds(srgan_bundle.root, Size(16, width)) for width in (16, 32))
    assert two == 2 * one > 0


def test_ceilings() -> None:
    assert ceilings.memory_copy(1 << 16, 0.01) > 0
    assert ceilings.torch_product("float32", 32, 0.01) > 0
    failing = ceilings._measured("x", "float32", fails)
    assert failing.per_second == 0
    assert "no such library" in failing.reason


def fails() -> float:
    raise ImportError("no such library")


def dies() -> None:
    os._exit(9)


def raises() -> None:
    raise BackendError("words", found="more words")


def test_isolated_calls_give_back_what_happened() -> None:
    with pytest.raises(BackendError, match="process was ended"):
        run_isolated(dies)
    with pytest.raises(PixelrtError) as found:
        run_isolated(raises)
    assert found.value.found == "more words"


ORPHANS = """
import sys
from benchmarks.isolated import run_isolated
from benchmarks.worker import Worker
from pixelrt.bench.steady import WarmupLimits
from tests.benchmarks.sleepers import PROCESS, says_and_sleeps

if sys.argv[1] == "isolated":
    run_isolated(says_and_sleeps)
Worker(PROCESS, None, WarmupLimits(0.0, max_runs=1)).run(1)
"""


@pytest.mark.parametrize("how", ["isolated", "worker"])
def test_a_process_ends_with_a_parent_that_is_killed(how: str) -> None:
    command = [sys.executable, "-c", ORPHANS, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
        assert not parent.stdout.read()  # closed by the last process that has it


@pytest.mark.slow
def test_the_real_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a tiny network: PyTorch, onnxruntime, pixelrt; OpenVINO where it is installed."""
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out.json"
    peers = ("torch eager float32", "onnxruntime bare", "session bare", "openvino float32")
    words = [word for peer in peers for word in ("--peer", peer)]
    arguments = ["--quick", "--work", str(tmp_path), "-o", str(out), *words]
    assert run_command(compare.main, arguments) == 0
    report = read_record(out)
    assert isinstance(report, CompareReport)
    assert report.quick
    (case,) = report.cases
    assert case.name == QUICK_CASES[0].name
    assert case.multiply_adds > 1_000_000
    measured = {pair.peer.name: pair for pair in case.pairs}
    assert {"torch eager float32", "onnxruntime bare", "pixelrt session bare"} <= set(measured)
    for pair in measured.values():
        for side in (pair.peer, pair.ours):
            assert (side.psnr or 0) > 55, side.name
            assert side.share is not None
    assert len(measured) + len(case.absent) == 4
    assert "onnxruntime bare" in capsys.readouterr().out
    assert decode_record(out.read_bytes(), "x") == report
