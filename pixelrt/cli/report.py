"""``pixelrt verify --report``: the checks as one HTML page that needs nothing else.

For somebody who has to decide whether to trust a bundle on a machine: verdict first,
then numbers, then for every check the pictures and where they differ.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np

import pixelrt
from pixelrt.bundle import Bundle
from pixelrt.cli.report_check import (
    badge,
    cosine_text,
    count_text,
    limits_text,
    psnr_text,
    reasons,
    sample_sections,
    title,
)
from pixelrt.cli.report_markup import Html, element, facts, markup, table
from pixelrt.cli.report_page import Frame, page
from pixelrt.cli.report_words import (
    AGAINST_PYTORCH,
    factor_options,
    heading,
    machine_text,
    random_weights,
    source_text,
    verdict,
    verdict_box,
)
from pixelrt.files import atomic_write
from pixelrt.runtime.backends.base import BackendInfo
from pixelrt.runtime.verify import MACHINE_SLACK, Check


def write_report(path: Path, bundle: Bundle, checks: list[Check]) -> None:
    """Write ``checks`` of ``bundle`` as one self-contained HTML page.

    The page loads nothing: pictures are ``data:`` URIs, and its content security policy
    forbids requests. Twenty checks of the samples that `pixelrt export` makes take 1 MB at
    x2 and 4 MB at x4, one with 1024x1024 output 3 MB. Raises ``OutputError`` where
    ``path`` cannot be written.
    """
    text = render(bundle, checks, datetime.now().astimezone())
    with atomic_write(path) as file:
        file.write(text.encode())


def render(bundle: Bundle, checks: list[Check], made: datetime) -> str:
    """The page as text; ``made`` with its time zone."""
    title = (
        f"{verdict([check.passed for check in checks])} - {bundle.manifest.name} - pixelrt verify"
    )
    command = "pixelrt verify --report"
    return page(
        Frame(
            title,
            heading(bundle.manifest.name, AGAINST_PYTORCH, made),
            pixelrt.__version__,
            command,
            script="report.js",
        ),
        "report.html",
        verdict=_verdict_box(bundle, checks),
        backends=_backends(checks),
        facts=_facts(bundle, made),
        checks=_checks_table(checks),
        factors=factor_options(),
        samples=markup(*sample_sections(checks)),
    )


# --- verdict and facts ----------------------------------------------------------------


def _verdict_box(bundle: Bundle, checks: list[Check]) -> Html:
    good = bool(checks) and all(check.passed for check in checks)
    failed = [
        element("li", element("a", title(check), href=f"#check-{i}"), f": {reasons(check)}")
        for i, check in enumerate(checks)
        if not check.passed
    ]
    meaning = (
        "Every sample was run on this machine and its output held against what PyTorch "
        "computed in fp32 when the bundle was exported."
    )
    return verdict_box(
        verdict([check.passed for check in checks]),
        failed,
        element("p", meaning),
        random_weights(bundle.manifest.source),
        good=good,
    )


def _backends(checks: list[Check]) -> Html:
    """Worst case of every backend and graph: what one looks for first."""
    groups: dict[tuple[BackendInfo, str], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.info, check.role), []).append(check)
    rows = [_backend_row(several) for several in groups.values()]
    head = ("backend", "graph", "checks", "largest error", "lowest PSNR", "arithmetic", "device")
    return table("Backends, with the worst of all samples", head, rows, "backends")


def _backend_row(several: list[Check]) -> tuple[str, ...]:
    worst = max(several, key=lambda check: check.comparison.max_abs)
    lowest = min(several, key=lambda check: check.comparison.psnr)
    passed = sum(check.passed for check in several)
    return (
        f"{worst.info.name} {worst.info.version}",
        worst.role,
        badge(passed == len(several), f"{passed} of {len(several)} passed"),
        _share(worst),
        psnr_text(lowest),
        worst.info.precision,
        worst.info.device,
    )


def _share(check: Check) -> str:
    """The largest error and how it stands to the limit."""
    largest = check.comparison.max_abs
    if not np.isfinite(largest):
        return "not finite"
    if not largest or not check.limits.max_abs:
        return f"{largest:.2e}"
    return f"{largest:.2e}, {largest / check.limits.max_abs:.3g} × the limit"


def _facts(bundle: Bundle, made: datetime) -> Html:
    manifest, limit = bundle.manifest, bundle.manifest.tolerance.max_abs
    scale = manifest.image.scale
    rows = [
        ("family", f"{manifest.family}, variant {manifest.variant}"),
        ("task", f"{manifest.image.task}, {f'scale x{scale}' if scale > 1 else 'same size'}"),
        ("source", source_text(manifest.source)),
        ("precision", ", ".join(f"{c.name} {c.precision}" for c in manifest.components)),
        (
            "tolerance",
            f"{limit:.1e} at export; {limit * MACHINE_SLACK:.1e} here, because another "
            "processor sums in another order",
        ),
        *_measured(bundle),
        ("made by", ", ".join(f"{k} {v}" for k, v in manifest.made_by.items())),
        ("bundle sha256", element("span", bundle.sha256, class_="mono")),
        ("machine", machine_text()),
        ("verified", f"{made.isoformat(' ', 'seconds')} with pixelrt {pixelrt.__version__}"),
    ]
    return facts("Bundle and machine", rows)


def _measured(bundle: Bundle) -> list[tuple[str, str]]:
    """What was measured when the bundle was made, where it says so."""
    known = bundle.manifest.fidelity
    if not known:
        return []
    worst = max(known, key=lambda m: m.max_abs)
    text = f"{worst.max_abs:.2e} at most, by {worst.backend} (samples: {len(known)})"
    return [("error at export", text)]


# --- the table of checks --------------------------------------------------------------


def _checks_table(checks: list[Check]) -> Html:
    head = (
        *("check", "verdict", "backend", "graph", "size", "max abs", "PSNR", "cosine"),
        *("non-finite", "limit"),
    )
    rows = [_check_row(i, check) for i, check in enumerate(checks)]
    heading = element("h2", "All checks", id="checks")
    caption = "Sizes are those of the input"
    return element(
        "section", heading, table(caption, head, rows, "checks"), aria_labelledby="checks"
    )


def _check_row(index: int, check: Check) -> tuple[str, ...]:
    sample, got = check.sample, check.comparison
    return (
        element("a", sample.name, href=f"#check-{index}"),
        badge(check.passed, "passed" if check.passed else "FAILED"),
        check.info.name,
        check.role,
        f"{sample.width}×{sample.height}",
        f"{got.max_abs:.2e}",
        psnr_text(check),
        cosine_text(check),
        count_text(got.non_finite),
        limits_text(check),
    )
