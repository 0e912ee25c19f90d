"""``pixelrt verify --report`` for a pipeline: the whole first, then its networks."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pixelrt
from pixelrt.cli.report_check import badge
from pixelrt.cli.report_markup import Html, element, facts, markup, table
from pixelrt.cli.report_page import Frame, page
from pixelrt.cli.report_whole import whole_reasons, whole_row, whole_sections
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
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.runtime.backends.base import BackendInfo
from pixelrt.runtime.verify import Outcome
from pixelrt.runtime.whole import WholeCheck

Networks = list[tuple[BackendInfo, str, Outcome]]
Wholes = list[tuple[str, WholeCheck]]


def write_pipeline_report(
    path: Path, bundle: PipelineBundle, networks: Networks, wholes: Wholes
) -> None:
    """Write the checks of ``bundle`` as one HTML page that loads nothing.

    ``wholes`` with the names of their backends. Raises ``OutputError`` where ``path`` cannot be
    written.
    """
    text = render(bundle, networks, wholes, datetime.now().astimezone())
    with atomic_write(path) as file:
        file.write(text.encode())


def render(bundle: PipelineBundle, networks: Networks, wholes: Wholes, made: datetime) -> str:
    """The page as text; ``made`` with its time zone."""
    name = bundle.manifest.name
    passed = [one.passed for _, one in wholes] + [one.passed for _, _, one in networks]
    title = f"{verdict(passed)} - {name} - pixelrt verify"
    frame = Frame(
        title,
        heading(name, AGAINST_PYTORCH, made),
        pixelrt.__version__,
        "pixelrt verify --report",
        script="report.js",
        styles=("bench.css",),
    )
    return page(
        frame,
        "report_pipeline.html",
        verdict=_verdict_box(bundle, passed, networks, wholes),
        facts=_facts(bundle, made),
        wholes=_wholes(wholes),
        factors=factor_options(),
        samples=markup(*whole_sections(bundle, wholes)),
        networks=_networks(networks),
    )


def _verdict_box(
    bundle: PipelineBundle, passed: list[bool], networks: Networks, wholes: Wholes
) -> Html:
    good = bool(passed) and all(passed)
    failed = [
        element("li", element("a", f"{check.name} on {backend}", href=f"#check-{i}"), ": ", text)
        for i, (backend, check) in enumerate(wholes)
        for text in [whole_reasons(check)]
        if not check.passed
    ]
    failed += [
        element("li", f"network {name} on {info.name}, sample {one.name}: {one.comparison}")
        for info, name, one in networks
        if not one.passed
    ]
    meaning = (
        "Every network was run on this machine on its samples and the whole pipeline as the "
        "original library ran it when the bundle was exported, in fp32, on the same noise."
        if wholes
        else "Every network was run on this machine on its samples. The whole pipeline was not "
        "checked: the bundle has no reference of it, or a network does not pass."
    )
    return verdict_box(
        verdict(passed),
        failed,
        element("p", meaning),
        random_weights(bundle.manifest.source),
        good=good,
    )


def _facts(bundle: PipelineBundle, made: datetime) -> Html:
    manifest = bundle.manifest
    rows = [
        ("family", f"{manifest.family}, {manifest.variant}"),
        ("source", source_text(manifest.source)),
        ("networks", ", ".join(bundle.names())),
        ("made by", ", ".join(f"{k} {v}" for k, v in manifest.made_by.items())),
        ("bundle sha256", element("span", bundle.sha256, class_="mono")),
        ("machine", machine_text()),
        ("verified", f"{made.isoformat(' ', 'seconds')} with pixelrt {pixelrt.__version__}"),
    ]
    return facts("Bundle and machine", rows)


def _wholes(wholes: Wholes) -> Html:
    head = ("run", "verdict", "backend", "arithmetic", "worst step", "limit", "PSNR", "limit")
    rows = [whole_row(i, backend, check) for i, (backend, check) in enumerate(wholes)]
    caption = "Latents: largest error of all steps, of their largest value. Pictures: PSNR"
    return element(
        "section",
        element("h2", "The whole pipeline", id="wholes"),
        table(caption, head, rows, "checks") if rows else element("p", "It was not run."),
        aria_labelledby="wholes",
    )


def _networks(networks: Networks) -> Html:
    head = ("sample", "verdict", "network", "backend", "arithmetic", "max abs", "PSNR", "limit")
    rows: list[tuple[str, ...]] = [
        (
            one.name,
            badge(one.passed, "passed" if one.passed else "FAILED"),
            name,
            info.name,
            info.precision,
            f"{one.comparison.max_abs:.2e}",
            f"{one.comparison.psnr:.1f} dB",
            str(one.limits),
        )
        for info, name, one in networks
    ]
    return element(
        "section",
        element("h2", "Networks", id="networks"),
        table("Errors are of the largest magnitude of an output", head, rows, "checks"),
        aria_labelledby="networks",
    )
