"""``python -m benchmarks.compare``: peers and pixelrt side by side, in turn, in one run."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.cases import (
    CASES,
    PHOTO_CASES,
    QUICK_CASES,
    Case,
    bundle_of,
    choose_cases,
)
from benchmarks.ceilings import ceiling_of, measure_ceilings
from benchmarks.contenders import Contender, Job, Pixels, ours_for, peers_for
from benchmarks.isolated import run_isolated
from benchmarks.records import (
    Absent,
    Ceiling,
    Compared,
    CompareReport,
    Pair,
    Side,
    origin,
    write_record,
)
from benchmarks.worker import Worker
from pixelrt.bench.harness import subject_of
from pixelrt.bench.reference import compare_output, open_reference, reference_route
from pixelrt.bench.scenes import scene
from pixelrt.bench.statistics import judge, percentile, summarise
from pixelrt.bench.steady import WarmupLimits
from pixelrt.bundle import Bundle, open_bundle
from pixelrt.cache import cache_folder
from pixelrt.cli.bench_table import aligned, bytes_text, seconds_text
from pixelrt.cli.terminal import note
from pixelrt.errors import BackendError, PixelrtError
from pixelrt.fidelity import PSNR_CEILING
from pixelrt.geometry import Size, TilePlan
from pixelrt.runtime.machine import usable_cpus
from pixelrt.runtime.planning import RunOptions, plan_image

ROUNDS = 11
TURN_SECONDS = 0.25
"""A turn is at least this long: several runs where one is shorter."""
PAUSE_SECONDS = 0.05
"""Between turns: threads that wait for more work by spinning go to sleep."""


LIMITS = WarmupLimits(max_seconds=120.0)


@dataclass(frozen=True)
class Effort:
    rounds: int = ROUNDS
    turn: float = TURN_SECONDS
    pause: float = PAUSE_SECONDS
    limits: WarmupLimits = LIMITS


QUICK = Effort(2, 0.0, 0.0, WarmupLimits(0.0, max_seconds=1.0, max_runs=3))


@click.command()
@click.option("--case", "words", multiple=True, help="Part of a case's name; default: all.")
@click.option("--peer", "peers", multiple=True, help="Part of a peer's name; default: all.")
@click.option("--photo", is_flag=True, help="Also 12 megapixels in tiles. Takes hours.")
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for exported bundles.")
@click.option("--quick", is_flag=True, help="A tiny network: to see that it works.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    words: tuple[str, ...],
    peers: tuple[str, ...],
    photo: bool,
    rounds: int,
    work: Path | None,
    quick: bool,
    output: Path | None,
) -> None:
    """Measure every case against every peer, interleaved, with the ceilings of this machine."""
    cases = choose_cases(words, QUICK_CASES if quick else (*CASES, *(PHOTO_CASES if photo else ())))
    folder = work or cache_folder() / "benchmarks"
    effort = QUICK if quick else Effort(rounds)
    note("measuring ceilings")
    ceilings = measure_ceilings(quick=quick)
    click.echo(ceilings_table(ceilings))
    done: list[Compared] = []
    for case in cases:
        chosen = [
            one for one in peers_for(case.network) if not peers or any(p in one.name for p in peers)
        ]
        compared = compare_case(case, chosen, folder, effort, ceilings)
        click.echo(compared_table(compared))
        done.append(compared)
        if output is not None:  # after each case: hours are not lost to an interruption
            record = CompareReport(
                origin=origin("benchmarks.compare"), quick=quick, ceilings=ceilings, cases=done
            )
            write_record(output, record)


def compare_case(
    case: Case, peers: list[Contender], folder: Path, effort: Effort, ceilings: list[Ceiling]
) -> Compared:
    """Every peer of one case, each in turn with pixelrt."""
    note(f"{case.name}: exporting, counting")
    bundle = run_isolated(export, case, folder)
    with tempfile.TemporaryDirectory(prefix="pixelrt-compare-") as place:
        jobs = make_jobs(case, bundle, Path(place))
        counted = run_isolated(count_multiply_adds, bundle.root, jobs.part_size)
        adds = round(counted * case.size.pixels / jobs.part_size.pixels)
        pairs: list[Pair] = []
        absent: list[Absent] = []
        for peer in peers:
            note(f"{case.name}: {peer.name}")
            try:
                pair = measure_pair(peer, ours_for(peer), jobs, effort)
            except PixelrtError as exc:
                reason = " ".join(f"{exc.message}; {exc.found}".split()).rstrip("; ")
                absent.append(Absent(peer.name, ours_for(peer).name, reason))
                continue
            pairs.append(with_shares(pair, adds, ceilings))
    size = case.size
    subject = subject_of(bundle)
    return Compared(case.name, subject, size.width, size.height, adds, pairs, absent)


@dataclass(frozen=True)
class Jobs:
    """The whole image, and the part of it that peers which cannot tile are given."""

    bundle: Bundle
    whole: Job
    part: Job
    parts: int
    part_size: Size
    folder: Path

    def job(self, contender: Contender) -> tuple[Job, int]:
        return (self.whole, 1) if contender.whole else (self.part, self.parts)


def make_jobs(case: Case, bundle: Bundle, folder: Path) -> Jobs:
    plan = plan_image(case.size, bundle.manifest, RunOptions()) if case.tiled else None
    image = scene(case.size)
    part = image[: plan.tile.height, : plan.tile.width] if plan else image
    for name, pixels in (("whole", image), ("part", part)):
        np.save(folder / f"{name}.npy", pixels)
    whole, tile = (
        Job(case.network, bundle.root, folder / f"{name}.npy", usable_cpus())
        for name in ("whole", "part")
    )
    return Jobs(bundle, whole, tile, _count(plan), Size(*part.shape[:2]), folder)


def _count(plan: TilePlan | None) -> int:
    return len(plan) if plan else 1


def measure_pair(peer: Contender, ours: Contender, jobs: Jobs, effort: Effort) -> Pair:
    """A B A B ...; the ratio is taken in every round, so what slows both does not matter."""
    (job_a, parts_a), (job_b, parts_b) = jobs.job(peer), jobs.job(ours)
    with Worker(peer, job_a, effort.limits) as a, Worker(ours, job_b, effort.limits) as b:
        turns = tuple(partial(_turn, w, _runs(w, effort), effort.pause) for w in (a, b))
        times = interleave(turns, effort.rounds)
        left = [value * parts_a for value in times[0]]
        right = [value * parts_b for value in times[1]]
        sides = (
            _side(peer, a, left, parts_a, jobs, job_a),
            _side(ours, b, right, parts_b, jobs, job_b),
        )
    ratios = [x / y for x, y in zip(left, right, strict=True)]
    low, middle, high = (percentile(ratios, share) for share in (25, 50, 75))
    return Pair(*sides, len(ratios), middle, low, high)


def interleave(turns: tuple[Callable[[], float], ...], rounds: int) -> list[list[float]]:
    """``turns`` one after the other, ``rounds`` times, after a round that does not count."""
    times: list[list[float]] = [[] for _ in turns]
    for number in range(rounds + 1):
        for index, turn in enumerate(turns):
            seconds = turn()
            if number:
                times[index].append(seconds)
    return times


def _runs(worker: Worker, effort: Effort) -> int:
    """Runs that fill a turn."""
    warm = worker.ready.warmup
    each = max(1e-6, (warm.seconds - warm.first) / max(1, warm.runs - 1))
    return max(1, math.ceil(effort.turn / each))


def _turn(worker: Worker, runs: int, pause: float) -> float:
    """Median seconds of one run."""
    time.sleep(pause)
    return percentile(worker.run(runs), 50)


def _side(
    contender: Contender, worker: Worker, times: list[float], parts: int, jobs: Jobs, job: Job
) -> Side:
    output = jobs.folder / "output.npy"
    peak = worker.save(output)
    fidelity = run_isolated(output_fidelity, jobs.bundle.root, job.image, output)
    stability = judge(times, warmed_up=worker.ready.warmup.steady)
    extra = f"; one of {parts} tiles was run, the image is {parts} times that" if parts > 1 else ""
    return Side(
        name=contender.name,
        settings=contender.settings,
        precision=worker.ready.precision,
        note=worker.ready.note + extra,
        parts=parts,
        seconds=summarise(times),
        warmup=worker.ready.warmup,
        peak_memory=peak,
        psnr=fidelity[0],
        compared=fidelity[1],
        share=None,
        stable=stability.stable,
        reasons=list(stability.reasons),
    )


def with_shares(pair: Pair, adds: int, ceilings: list[Ceiling]) -> Pair:
    """The sides with what they do of the ceiling of their precision."""
    import msgspec

    def share(side: Side) -> Side:
        top = ceiling_of(ceilings, side.precision)
        value = 2.0 * adds / side.seconds.p50 / top if top else None
        return msgspec.structs.replace(side, share=value)

    return msgspec.structs.replace(pair, peer=share(pair.peer), ours=share(pair.ours))


# --- done in processes of their own ---------------------------------------------------


def export(case: Case, folder: Path) -> Bundle:
    return bundle_of(case.network, folder)


def count_multiply_adds(bundle: Path, size: Size) -> int:
    """Of the float graph for one image of ``size``."""
    import onnx_ir as ir

    from pixelrt.engines.calibrate import measure_shapes
    from pixelrt.engines.flops import multiply_adds
    from pixelrt.grid import grid_size

    opened = open_bundle(bundle)
    spec, graph = opened.manifest.image, opened.component.graph("core")
    padded = grid_size(size, spec)
    model = ir.external_data.load_to_model(ir.load(opened.path(graph.file)))
    feed = np.zeros((1, spec.channels_in, padded.height, padded.width), np.float32)
    shapes = measure_shapes(model, {graph.inputs[0].name: feed})
    return sum(multiply_adds(model.graph, shapes).values())


def output_fidelity(bundle: Path, image: Path, output: Path) -> tuple[float | None, str]:
    """PSNR of an output against the float32 route on the same image, and what was compared."""
    opened = open_bundle(bundle)
    pixels: Pixels = np.load(image)
    picture: Pixels = np.load(output)
    high = Size(*pixels.shape[:2]).scaled(opened.manifest.image.scale)
    if picture.shape[:2] != (high.height, high.width):
        found = f"{picture.shape[1]}x{picture.shape[0]}"
        raise BackendError("the output has the wrong size", found=found, expected=str(high))
    with open_reference(opened) as model:
        result = compare_output(opened.manifest, pixels, picture, reference_route(model))
    return result.psnr, result.note


# --- tables ---------------------------------------------------------------------------


def ceilings_table(ceilings: list[Ceiling]) -> str:
    rows = [("ceiling", "precision", "per second")]
    for one in ceilings:
        unit = "GB/s" if one.precision == "bytes" else "GFLOP/s"
        rows.append((one.what, one.precision, one.reason or f"{one.per_second / 1e9:.0f} {unit}"))
    return aligned([tuple(row) for row in rows])


def compared_table(compared: Compared) -> str:
    head = (
        *("peer", "its median", "pixelrt", "ratio", "quartiles", "its share", "ours"),
        *("its PSNR", "ours", "its peak", "ours", ""),
    )
    rows: list[tuple[str, ...]] = [head, *(_pair_row(pair) for pair in compared.pairs)]
    lines = [
        f"\n{compared.name}: {compared.multiply_adds / 1e9:.1f} G multiply-adds",
        aligned(rows),
    ]
    lines += [f"not measured  {one.peer} / {one.ours}: {one.reason}" for one in compared.absent]
    return "\n".join(lines)


def _pair_row(pair: Pair) -> tuple[str, ...]:
    peer, ours = pair.peer, pair.ours
    shaky = [side.name for side in (peer, ours) if not side.stable]
    return (
        peer.name,
        seconds_text(peer.seconds.p50),
        f"{seconds_text(ours.seconds.p50)} ({ours.precision})",
        f"{pair.ratio:.2f}x",
        f"{pair.low:.2f} to {pair.high:.2f}",
        *(_share_text(side.share) for side in (peer, ours)),
        *(decibels(side.psnr) for side in (peer, ours)),
        *(bytes_text(side.peak_memory) for side in (peer, ours)),
        f"UNSTABLE: {', '.join(shaky)}" if shaky else "",
    )


def _share_text(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.0%}"


def decibels(psnr: float | None) -> str:
    if psnr is None:
        return "not compared"
    return "identical" if psnr >= PSNR_CEILING else f"{psnr:.1f} dB"


if __name__ == "__main__":
    main()
