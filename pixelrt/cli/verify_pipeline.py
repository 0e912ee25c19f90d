"""``pixelrt verify`` for a pipeline: its networks, then the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import click

from pixelrt.bundle import BundledNetwork
from pixelrt.cli.bench_table import aligned
from pixelrt.cli.report_pipeline import write_pipeline_report
from pixelrt.cli.terminal import note
from pixelrt.errors import BackendError, CheckError, InputError
from pixelrt.manifest import GraphRole
from pixelrt.pipeline_bundle import PipelineBundle, PipelineNetwork
from pixelrt.runtime.backends.base import Backend, BackendInfo, Offer
from pixelrt.runtime.backends.select import offers_of
from pixelrt.runtime.in_segments import IN_TILES, PRECISION, SegmentedBackend
from pixelrt.runtime.networks import Networks
from pixelrt.runtime.planning import RunOptions
from pixelrt.runtime.verify import Outcome, outcomes
from pixelrt.runtime.whole import WholeCheck, check_whole

Row = tuple[BackendInfo, str, Outcome]


@dataclass
class Found:
    """What was checked, and why the rest was not: ``absent`` networks, ``unrun`` wholes."""

    networks: list[Row] = field(default_factory=list)
    wholes: list[tuple[str, WholeCheck]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    unrun: list[str] = field(default_factory=list)

    @property
    def verdicts(self) -> list[bool]:
        return [one.passed for _, _, one in self.networks] + [one.passed for _, one in self.wholes]


def verify_pipeline(
    bundle: PipelineBundle,
    backends: tuple[Backend, ...],
    precision: str,
    *,
    named: bool,
    report: Path | None = None,
) -> int:
    """Every sample of every network on every backend that is there, at once and in tiles, then
    the whole pipeline; gives the exit code.

    Of a backend's precisions the first that passes counts, as for a run; segments have only
    float32. Raises
    ``BackendError`` where a backend that was asked for is not there (``named``), or none is.
    """
    found = Found()
    for backend in backends:
        chosen = _check_networks(bundle, backend, precision, found)
        lacking = ", ".join(name for name in bundle.names() if name not in chosen)
        if not lacking:
            _check_whole(bundle, Chosen(backend.name, chosen), found)
        elif chosen:
            found.unrun.append(f"{backend.name}, the whole pipeline: {lacking} did not pass")
    if found.absent and (named or not found.networks):
        raise BackendError("a backend cannot be used here", found="; ".join(found.absent))
    if not bundle.manifest.references:
        found.unrun.append("the whole pipeline: the bundle has no reference of it")
    for words in (*found.absent, *found.unrun):
        note(f"not checked  {words}")
    click.echo(_network_table(found.networks))
    if found.wholes:
        click.echo(f"\n{_whole_table(found.wholes)}")
    for _, check in found.wholes:
        for reason in check.reasons:
            note(f"{check.name}: {reason}")
    if report is not None:
        write_pipeline_report(report, bundle, found.networks, found.wholes)
        note(f"report written to {report}")
    passed = sum(found.verdicts)
    click.echo(f"{passed} of {len(found.verdicts)} checks passed")
    return 0 if passed == len(found.verdicts) else CheckError.exit_code


def _check_networks(
    bundle: PipelineBundle, backend: Backend, precision: str, found: Found
) -> dict[str, Offer]:
    """By network, the offer that passed."""
    chosen: dict[str, Offer] = {}
    for name in bundle.names():
        network = bundle.network(name)
        if network.network.segments:
            _check_in_tiles(network, backend, found)
        try:
            offers = offers_of(backend, network, "network", precision)
        except BackendError as exc:
            found.absent.append(f"{backend.name}, {name}: {exc.found or exc}")
            continue
        rows, offer = _check(network, name, offers, found.absent)
        found.networks += rows
        if offer is not None:
            chosen[name] = offer
    return chosen


def _check_in_tiles(network: PipelineNetwork, backend: Backend, found: Found) -> None:
    title = f"{network.component.name} {IN_TILES}"
    try:
        offers = offers_of(SegmentedBackend(backend), network, "network", PRECISION)
        found.networks += _check(network, title, offers, found.absent)[0]
    except BackendError as exc:
        found.absent.append(f"{backend.name}, {title}: {exc.found or exc}")


def _check(
    network: PipelineNetwork, name: str, offers: tuple[Offer, ...], absent: list[str]
) -> tuple[list[Row], Offer | None]:
    failed: list[Row] = []
    for offer in offers:
        try:
            with offer.open() as session:
                rows = [(offer.info, name, one) for one in outcomes(network, session, "network")]
        except (BackendError, InputError) as exc:
            absent.append(f"{offer.info.name} {offer.info.precision}, {name}: {exc}")
            continue
        if all(outcome.passed for _, _, outcome in rows):
            return rows, offer
        failed += rows
    return failed, None


@dataclass
class Chosen:
    """A backend that runs every network in the way in which it passed."""

    name: str
    by_network: dict[str, Offer]

    def missing(self) -> str:
        return ""

    def offers(self, bundle: BundledNetwork, role: GraphRole) -> tuple[Offer, ...]:
        del role
        return (self.by_network[bundle.component.name],)


def _check_whole(bundle: PipelineBundle, backend: Chosen, found: Found) -> None:
    # Networks are run one after the other, so that one at a time is enough.
    whole = RunOptions(tile="off")
    with Networks(
        bundle, backends=(backend,), verify=False, low_memory=True, options=whole
    ) as networks:
        for reference in bundle.manifest.references:
            networks.used.clear()
            try:
                found.wholes.append((backend.name, check_whole(bundle, networks, reference)))
            except BackendError as exc:
                # Such as a plan that does not hold the size of the reference.
                found.unrun.append(f"{backend.name}, {reference.name}: {exc}")


def _network_table(rows: list[Row]) -> str:
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


def _whole_table(wholes: list[tuple[str, WholeCheck]]) -> str:
    head = ("backend", "whole pipeline", "latents", "limit", "pictures", "limit", "")
    return aligned([head, *(_whole_row(name, check) for name, check in wholes)])


def _whole_row(backend: str, check: WholeCheck) -> tuple[str, ...]:
    step, picture = check.worst_step, check.picture
    lower = check.precision != "float32"
    return (
        f"{backend} {check.precision}",
        check.name,
        f"{step.max_abs:.1e}" if step else "none",
        "none" if lower else f"{check.step_limits.max_abs:.0e}",
        f"{picture.psnr:.1f} dB" if picture else "none",
        f"{check.picture_limits.min_psnr:.0f} dB",
        "ok" if check.passed else "FAILED",
    )
