"""``pixelrt verify``: backends held against a bundle's reference outputs."""

from __future__ import annotations

from pathlib import Path

import click

from pixelrt.bundle import Bundle, open_bundle
from pixelrt.cli.report import write_report
from pixelrt.cli.terminal import note
from pixelrt.cli.verify_pipeline import verify_pipeline
from pixelrt.errors import BackendError, CheckError, FidelityError, InputError
from pixelrt.manifest import GraphRole
from pixelrt.pipeline_bundle import is_pipeline, open_pipeline
from pixelrt.runtime.backends.base import Backend, Offer
from pixelrt.runtime.backends.select import (
    BACKENDS,
    PRECISIONS,
    PassedOver,
    find_backend,
    offers_of,
)
from pixelrt.runtime.load import bundle_path
from pixelrt.runtime.verify import Check, check_all

ROLES: tuple[GraphRole, ...] = ("core", "image")


@click.command("verify")
@click.argument("bundle")
@click.option("--backend", "names", multiple=True, help="May be repeated; default: all there are.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Also write an HTML page with pictures."
)
def command(bundle: str, names: tuple[str, ...], precision: str, report: Path | None) -> int:
    """Run every reference sample of BUNDLE on every backend and compare with PyTorch; of a
    pipeline those of its networks, then the whole.

    Exit code 1 when a check failed, 4 when a backend asked for by name is not there.
    """
    asked = tuple(find_backend(name) for name in names) or BACKENDS
    path = bundle_path(bundle)
    if is_pipeline(path):
        pipeline = open_pipeline(path)
        return verify_pipeline(pipeline, asked, precision, named=bool(names), report=report)
    opened = open_bundle(path)
    checks, absent = run_checks(opened, asked, precision)
    if absent and (names or not checks):
        raise BackendError(
            "a backend cannot be used here", found="; ".join(str(one) for one in absent)
        )
    for one in absent:
        note(f"not checked  {one}")
    click.echo(checks_table(checks))
    if report is not None:
        write_report(report, opened, checks)
        note(f"report written to {report}")
    failed = sum(not check.passed for check in checks)
    click.echo(f"{len(checks) - failed} of {len(checks)} checks passed")
    return CheckError.exit_code if failed else 0


def run_checks(
    bundle: Bundle, backends: tuple[Backend, ...], precision: str = "auto"
) -> tuple[list[Check], list[PassedOver]]:
    """Every sample on both graphs of every backend that is there; the rest with reasons.

    Of a backend's offers the first that passes counts, as for a run; where none does, the
    failures of all of them.
    """
    checks: list[Check] = []
    absent: list[PassedOver] = []
    for backend in backends:
        for role in ROLES:
            try:
                offers = offers_of(backend, bundle, role, precision)
            except BackendError as exc:
                absent.append(PassedOver(f"{backend.name}, {role} graph", exc.found or str(exc)))
                continue
            done, passed_over = _check_offers(bundle, role, offers)
            checks += done
            absent += passed_over
    return checks, absent


def _check_offers(
    bundle: Bundle, role: GraphRole, offers: tuple[Offer, ...]
) -> tuple[list[Check], list[PassedOver]]:
    failed: list[Check] = []
    absent: list[PassedOver] = []
    for offer in offers:
        try:
            with offer.open() as session:
                done = list(check_all(bundle, session, role))
        except (BackendError, FidelityError, InputError) as exc:
            absent.append(PassedOver(f"{offer.info.name}, {role} graph", exc.found or str(exc)))
            continue
        if all(check.passed for check in done):
            return done, absent
        failed += done
    return failed, absent


def checks_table(checks: list[Check]) -> str:
    """One line a check: backend, graph, sample, size, errors, verdict."""
    head = ("backend", "graph", "sample", "size", "max abs", "PSNR", "limit", "")
    rows = [head, *(_row(check) for check in checks)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(check: Check) -> tuple[str, ...]:
    sample, got = check.sample, check.comparison
    return (
        f"{check.info.name} {check.info.precision}",
        check.role,
        sample.name,
        f"{sample.width}x{sample.height}",
        f"{got.max_abs:.1e}",
        f"{got.psnr:.1f} dB",
        f"{check.limits.max_abs:.1e}",
        "ok" if check.passed else "FAILED",
    )
