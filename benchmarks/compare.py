"""``python -m benchmarks.compare``: peers and pixelrt side by side, in turn, in one run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from benchmarks.cases import CASES, PHOTO_CASES, QUICK_CASES, Case, choose_cases
from benchmarks.ceilings import measure_ceilings
from benchmarks.contenders import Contender, ours_for, peers_for
from benchmarks.isolated import run_isolated
from benchmarks.pairs import (
    QUICK,
    ROUNDS,
    Effort,
    count_multiply_adds,
    export,
    make_jobs,
    measure_pair,
    with_shares,
)
from benchmarks.records import (
    Absent,
    Ceiling,
    Compared,
    CompareReport,
    Pair,
    origin,
    write_record,
)
from benchmarks.script import run_script, work_option
from pixelrt.bench.harness import subject_of
from pixelrt.cli.bench_table import aligned, bytes_text, seconds_text
from pixelrt.cli.terminal import note
from pixelrt.errors import PixelrtError
from pixelrt.fidelity import PSNR_CEILING
from pixelrt.geometry import Size

PEER_TILES = {"swin2sr": Size(128, 128)}
"""Windows of a large tile do not fit into the caches of a processor: PyTorch takes up to four
times as long for each pixel of tiles as large as pixelrt's."""


@click.command()
@click.option("--case", "words", multiple=True, help="Part of a case's name; default: all.")
@click.option("--peer", "peers", multiple=True, help="Part of a peer's name; default: all.")
@click.option("--photo", is_flag=True, help="Also 12 megapixels in tiles. Takes hours.")
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
@work_option
@click.option("--quick", is_flag=True, help="A tiny network: to see that it works.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    words: tuple[str, ...],
    peers: tuple[str, ...],
    photo: bool,
    rounds: int,
    work: Path,
    quick: bool,
    output: Path | None,
) -> None:
    """Measure every case against every peer, interleaved, with the ceilings of this machine."""
    cases = choose_cases(words, QUICK_CASES if quick else (*CASES, *(PHOTO_CASES if photo else ())))
    effort = QUICK if quick else Effort(rounds)
    note("measuring ceilings")
    ceilings = measure_ceilings(quick=quick)
    click.echo(ceilings_table(ceilings))
    done: list[Compared] = []
    for case in cases:
        chosen = [
            one for one in peers_for(case.network) if not peers or any(p in one.name for p in peers)
        ]
        compared = compare_case(case, chosen, work, effort, ceilings)
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
        jobs = make_jobs(case, bundle, Path(place), PEER_TILES.get(case.network.family))
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
        f"{seconds_text(ours.seconds.p50)} ({ours.arithmetic})",
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
    run_script(main)
