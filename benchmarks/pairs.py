"""Two contenders in turn: A B A B, each in its own process, over one image."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from benchmarks.cases import Case, bundle_of
from benchmarks.ceilings import ceiling_of
from benchmarks.contenders import Contender, Job, Pixels
from benchmarks.isolated import run_isolated
from benchmarks.records import Ceiling, Pair, Side
from benchmarks.worker import Worker
from pixelrt.bench.reference import compare_output, open_reference, reference_route
from pixelrt.bench.scenes import scene
from pixelrt.bench.statistics import judge, percentile, summarise
from pixelrt.bench.steady import WarmupLimits
from pixelrt.bundle import Bundle, open_bundle
from pixelrt.errors import BackendError
from pixelrt.geometry import Size, TilePlan
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.runtime.machine import usable_cpus
from pixelrt.runtime.pipelines.image import ImageModel

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


Fidelity = Callable[[Path, Path, Path, Literal["grid", "library"]], tuple[float | None, str]]
"""Of bundle, input and output; see ``output_fidelity``."""


@dataclass(frozen=True)
class Jobs:
    """The whole image, and the part of it that peers which cannot tile are given."""

    bundle: Bundle | PipelineBundle
    whole: Job
    part: Job
    parts: int
    part_size: Size
    folder: Path
    fidelity: Fidelity = field(default_factory=lambda: output_fidelity)

    def job(self, contender: Contender) -> tuple[Job, int]:
        return (self.whole, 1) if contender.whole else (self.part, self.parts)


def make_jobs(case: Case, bundle: Bundle, folder: Path, peer_tile: Size | None = None) -> Jobs:
    """Of an image in tiles peers are given one: of ``peer_tile``, where that suits them, side by
    side without any halo, else of pixelrt's plan."""
    plan = run_isolated(plan_of, bundle.root, case.size) if case.tiled else None
    image = scene(case.size)
    own = plan.tile if plan else case.size
    part, parts = own, len(plan) if plan else 1
    if plan and peer_tile:
        part = peer_tile
        parts = math.prod(
            math.ceil(side / step)
            for side, step in zip(astuple(case.size), astuple(part), strict=True)
        )
    for name, size in (("whole", case.size), ("tile", own), ("part", part)):
        np.save(folder / f"{name}.npy", image[: size.height, : size.width])
    job = Job(case.network, bundle.root, folder / "part.npy", usable_cpus())
    whole = replace(job, image=folder / "whole.npy", part=folder / "tile.npy")
    return Jobs(bundle, whole, job, parts, part, folder)


def measure_pair(peer: Contender, ours: Contender, jobs: Jobs, effort: Effort) -> Pair:
    """A B A B ...; the ratio is taken in every round, so what slows both does not matter.

    An image in tiles takes minutes: one run is a turn, and none is run in vain.
    """
    lead = 1 if jobs.parts == 1 else 0
    (job_a, parts_a), (job_b, parts_b) = jobs.job(peer), jobs.job(ours)
    with Worker(peer, job_a, effort.limits) as a, Worker(ours, job_b, effort.limits) as b:
        counts = [runs_of(w, effort) if lead else 1 for w in (a, b)]
        turns = tuple(
            partial(turn_of, w, runs, effort.pause) for w, runs in zip((a, b), counts, strict=True)
        )
        times = interleave(turns, effort.rounds, lead)
        left = [value * parts_a for value in times[0]]
        right = [value * parts_b for value in times[1]]
        sides = (
            _side(peer, a, left, parts_a, jobs, job_a),
            _side(ours, b, right, parts_b, jobs, job_b),
        )
    ratios = [x / y for x, y in zip(left, right, strict=True)]
    low, middle, high = (percentile(ratios, share) for share in (25, 50, 75))
    return Pair(*sides, len(ratios), middle, low, high)


def interleave(
    turns: tuple[Callable[[], float], ...], rounds: int, lead: int = 1
) -> list[list[float]]:
    """``turns`` one after the other, ``rounds`` times, after ``lead`` rounds that do not count."""
    times: list[list[float]] = [[] for _ in turns]
    for number in range(lead + rounds):
        for index, turn in enumerate(turns):
            seconds = turn()
            if number >= lead:
                times[index].append(seconds)
    return times


def runs_of(worker: Worker, effort: Effort) -> int:
    """Runs that fill a turn."""
    warm = worker.ready.warmup
    each = max(1e-6, (warm.seconds - warm.first) / max(1, warm.runs - 1))
    return max(1, math.ceil(effort.turn / each))


def turn_of(worker: Worker, runs: int, pause: float) -> float:
    """Median seconds of one run."""
    time.sleep(pause)
    return percentile(worker.run(runs), 50)


def _side(
    contender: Contender, worker: Worker, times: list[float], parts: int, jobs: Jobs, job: Job
) -> Side:
    output = jobs.folder / "output.npy"
    peak = worker.save(output)
    fidelity = run_isolated(jobs.fidelity, jobs.bundle.root, job.image, output, contender.pad)
    stability = judge(times, warmed_up=worker.ready.warmup.steady)
    extra = f"; one of {parts} tiles was run, the image is {parts} times that" if parts > 1 else ""
    return Side(
        name=contender.name,
        settings=contender.settings,
        precision=worker.ready.precision,
        kept=worker.ready.kept,
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

    def share(side: Side) -> Side:
        top = ceiling_of(ceilings, side.precision)
        value = 2.0 * adds / side.seconds.p50 / top if top else None
        return msgspec.structs.replace(side, share=value)

    return msgspec.structs.replace(pair, peer=share(pair.peer), ours=share(pair.ours))


# --- done in processes of their own ---------------------------------------------------


def export(case: Case, folder: Path) -> Bundle:
    return bundle_of(case.network, folder)


def plan_of(bundle: Path, size: Size) -> TilePlan:
    """How pixelrt cuts an image on the backend that it chooses."""
    with ImageModel(open_bundle(bundle)) as model:
        return model.plan(size.height, size.width)


def count_multiply_adds(bundle: Path, size: Size) -> int:
    """Of the float graph for one image of ``size``."""
    import onnx_ir as ir

    from pixelrt.engines.calibrate import measure_shapes
    from pixelrt.engines.flops import multiply_adds
    from pixelrt.grid import grid_size

    opened = open_bundle(bundle)
    spec, graph = opened.manifest.image, opened.component.graph("core")
    padded = grid_size(size, spec)
    model = ir.load(opened.path(graph.file))
    feed = np.zeros((1, spec.channels_in, padded.height, padded.width), np.float32)
    shapes = measure_shapes(model, {graph.inputs[0].name: feed})
    return sum(multiply_adds(model.graph, shapes).values())


def output_fidelity(
    bundle: Path, image: Path, output: Path, pad: Literal["grid", "library"] = "grid"
) -> tuple[float | None, str]:
    """PSNR of an output against the float32 route on the same image with the same padding,
    and what was compared."""
    opened = open_bundle(bundle)
    pixels: Pixels = np.load(image)
    picture: Pixels = np.load(output)
    high = Size(*pixels.shape[:2]).scaled(opened.manifest.image.scale)
    if picture.shape[:2] != (high.height, high.width):
        found = f"{picture.shape[1]}x{picture.shape[0]}"
        raise BackendError("the output has the wrong size", found=found, expected=str(high))
    with open_reference(opened) as model:
        result = compare_output(opened.manifest, pixels, picture, reference_route(model, pad))
    padded = ", padded as the library does" if pad == "library" else ""
    return result.psnr, result.note + padded
