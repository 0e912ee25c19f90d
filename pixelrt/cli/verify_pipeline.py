"""``pixelrt verify`` for the networks of a pipeline."""

from __future__ import annotations

import click

from pixelrt.cli.bench_table import aligned
from pixelrt.cli.terminal import note
from pixelrt.errors import BackendError, CheckError, InputError
from pixelrt.pipeline_bundle import PipelineBundle, PipelineNetwork
from pixelrt.runtime.backends.base import Backend, BackendInfo, Offer
from pixelrt.runtime.backends.select import offers_of
from pixelrt.runtime.verify import Outcome, outcomes

Row = tuple[BackendInfo, str, Outcome]


def verify_pipeline(
    bundle: PipelineBundle, backends: tuple[Backend, ...], precision: str, *, named: bool
) -> int:
    """Every sample of every network on every backend that is there; gives the exit code.

    Of a backend's precisions the first that passes counts, as for a run. Raises
    ``BackendError`` where a backend that was asked for is not there (``named``), or none is.
    """
    rows: list[Row] = []
    absent: list[str] = []
    for backend in backends:
        for name in bundle.names():
            network = bundle.network(name)
            try:
                rows += _check(network, offers_of(backend, network, "network", precision), absent)
            except BackendError as exc:
                absent.append(f"{backend.name}, {name}: {exc.found or exc}")
    if absent and (named or not rows):
        raise BackendError("a backend cannot be used here", found="; ".join(absent))
    for words in absent:
        note(f"not checked  {words}")
    click.echo(_table(rows))
    failed = sum(not outcome.passed for _, _, outcome in rows)
    click.echo(f"{len(rows) - failed} of {len(rows)} checks passed")
    return CheckError.exit_code if failed else 0


def _check(network: PipelineNetwork, offers: tuple[Offer, ...], absent: list[str]) -> list[Row]:
    failed: list[Row] = []
    name = network.component.name
    for offer in offers:
        try:
            with offer.open() as session:
                found = [(offer.info, name, one) for one in outcomes(network, session, "network")]
        except (BackendError, InputError) as exc:
            absent.append(f"{offer.info.name} {offer.info.precision}, {name}: {exc}")
            continue
        if all(outcome.passed for _, _, outcome in found):
            return found
        failed += found
    return failed


def _table(rows: list[Row]) -> str:
    head = ("backend", "network", "sample", "max abs", "PSNR", "limit", "")
    lines = [
        (
            f"{info.name} {info.precision}",
            name,
            outcome.name,
            f"{outcome.comparison.max_abs:.1e}",
            f"{outcome.comparison.psnr:.1f} dB",
            str(outcome.limits),
            "ok" if outcome.passed else "FAILED",
        )
        for info, name, outcome in rows
    ]
    return aligned([head, *lines])
