"""``pixelrt verify``: backends held against a bundle's reference outputs."""

from __future__ import annotations

from pathlib import Path

import click

from pixelrt.bundle import Bundle, open_bundle
from pixelrt.cli.report import write_report
from pixelrt.cli.terminal import note
from pixelrt.errors import BackendError, CheckError
from pixelrt.manifest import GraphRole
from pixelrt.runtime.backends.base import Backend
from pixelrt.runtime.backends.select import BACKENDS, PassedOver, find_backend
from pixelrt.runtime.load import bundle_path
from pixelrt.runtime.verify import Check, check_all

ROLES: tuple[GraphRole, ...] = ("core", "image")


@click.command("verify")
@click.argument("bundle")
@click.option("--backend", "names", multiple=True, help="May be repeated; default: all there are.")
@click.option(
    "--report", type=click.Path(path_type=Path), help="Also write an HTML page with pictures."
)
def command(bundle: str, names: tuple[str, ...], report: Path | None) -> int:
    """Run every reference sample of BUNDLE on every backend and compare with PyTorch.

    Exit code 1 when a check failed, 4 when a backend asked for by name is not there.
    """
    opened = open_bundle(bundle_path(bundle))
    asked = tuple(find_backend(name) for name in names) or BACKENDS
    checks, absent = run_checks(opened, asked)
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
    bundle: Bundle, backends: tuple[Backend, ...]
) -> tuple[list[Check], list[PassedOver]]:
    """Every sample on both graphs of every backend that is there; the rest with reasons."""
    checks: list[Check] = []
    absent: list[PassedOver] = []
    for backend in backends:
        reason = backend.missing()
        if reason:
            absent.append(PassedOver(backend.name, reason))
            continue
        for role in ROLES:
            with backend.open(bundle, bundle.component.graph(role)) as session:
                checks += check_all(bundle, session, role)
    return checks, absent


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
        check.info.name,
        check.role,
        sample.name,
        f"{sample.width}x{sample.height}",
        f"{got.max_abs:.1e}",
        f"{got.psnr:.1f} dB",
        f"{check.max_abs:.1e}",
        "ok" if check.passed else "FAILED",
    )
