"""``python -m benchmarks.diffusion``: networks of Stable Diffusion 1.5 at full size, diffusers' own
and pixelrt's in turn, and what a step takes outside of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.ceilings import measure_ceilings
from benchmarks.compare import ceilings_table, compared_table
from benchmarks.diffusion_parts import (
    CASES,
    OURS,
    PEERS,
    TINY,
    PartCase,
    export,
    make_jobs,
    multiply_adds,
    operations_of,
    overhead_rows,
)
from benchmarks.isolated import run_isolated
from benchmarks.pairs import QUICK, Effort, measure_pair, with_shares
from benchmarks.records import (
    Absent,
    Ceiling,
    Compared,
    DiffusionReport,
    OpenVinoCase,
    OpenVinoRow,
    Pair,
    origin,
    write_record,
)
from benchmarks.script import run_script, work_option
from benchmarks.table import render
from pixelrt.bench.schema import Subject
from pixelrt.cli.terminal import note
from pixelrt.errors import PixelrtError
from pixelrt.pipeline_bundle import PipelineBundle, open_pipeline

FULL: Mapping[str, Any] = {"like": "stable-diffusion-1.5"}
ROUNDS = 5
"""A round of the VAE is half a minute on two cores."""


@click.command()
@click.option("--peer", "peers", multiple=True, help="Part of a peer's name; default: all.")
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
@work_option
@click.option("--quick", is_flag=True, help="Tiny networks: to see that it works.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(peers: tuple[str, ...], rounds: int, work: Path, quick: bool, output: Path | None) -> None:
    """Measure a UNet step and a VAE decode against every peer, interleaved, the operations that
    they are made of, and a step outside of them."""
    config, effort = (TINY, QUICK) if quick else (FULL, Effort(rounds))
    root = work / f"{'tiny' if quick else 'stable-diffusion-1.5'}.pixelrt"
    if not root.exists():
        note("exporting")
        run_isolated(export, config, root)
    bundle = open_pipeline(root)
    note("measuring ceilings")
    ceilings = measure_ceilings(quick=quick)
    click.echo(ceilings_table(ceilings))
    words = peers or tuple(one.name for one in PEERS)
    compared: list[Compared] = []
    operations: list[OpenVinoCase] = []
    overhead: list[OpenVinoRow] = []
    for case in CASES:
        done, counted = measure_case(case, config, bundle, words, effort, ceilings)
        click.echo(compared_table(done))
        compared.append(done)
        operations.append(counted)
        if case.network == "unet" and done.pairs:
            step = done.pairs[0].ours.seconds.p50
            overhead = run_isolated(overhead_rows, root, step)
        record = DiffusionReport(
            origin=origin("benchmarks.diffusion"),
            quick=quick,
            ceilings=ceilings,
            cases=compared,
            operations=operations,
            overhead=overhead,
        )
        if output is not None:  # after each case: what was measured is not lost
            write_record(output, record)
    if not quick:
        click.echo(render([(output.name if output else "not written", record)]))


def measure_case(
    case: PartCase,
    config: Mapping[str, Any],
    bundle: PipelineBundle,
    words: tuple[str, ...],
    effort: Effort,
    ceilings: list[Ceiling],
) -> tuple[Compared, OpenVinoCase]:
    note(f"{case.title}: the float32 route")
    with tempfile.TemporaryDirectory(prefix="pixelrt-diffusion-") as place:
        jobs = make_jobs(case, config, bundle.root, Path(place))
        adds = run_isolated(multiply_adds, jobs.whole.network, jobs.whole.image)
        pairs: list[Pair] = []
        absent: list[Absent] = []
        for peer in (one for one in PEERS if any(word in one.name for word in words)):
            note(f"{case.title}: {peer.name}")
            try:
                pair = measure_pair(peer, OURS, jobs, effort)
            except PixelrtError as exc:
                absent.append(Absent(peer.name, OURS.name, _reason(exc)))
                continue
            pairs.append(with_shares(pair, adds, ceilings))
        note(f"{case.title}: operations")
        try:
            rows = run_isolated(operations_of, bundle.root, case.network, jobs.whole.image)
        except PixelrtError as exc:
            rows = [OpenVinoRow("operations", "", {}, reason=_reason(exc))]
    name = f"{bundle.manifest.name} {case.title}, {jobs.part_size}"
    width, height = jobs.part_size.width, jobs.part_size.height
    subject = subject_of(bundle)
    return (
        Compared(name, subject, width, height, adds, pairs, absent),
        OpenVinoCase(name, subject, width, height, rows),
    )


def subject_of(bundle: PipelineBundle) -> Subject:
    manifest = bundle.manifest
    seed = f", random, seed {manifest.source.seed}"
    weights = manifest.source.name + seed
    return Subject(manifest.name, manifest.family, manifest.variant, weights, 1, bundle.sha256)


def _reason(exc: PixelrtError) -> str:
    return " ".join(f"{exc.message}; {exc.found}".split()).rstrip("; ")


if __name__ == "__main__":
    run_script(main)
