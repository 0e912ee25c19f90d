"""The part of a pipeline's report about its whole runs: pictures, and latents step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.cli import report_pictures as pictures
from pixelrt.cli.bench_plots import Point, Series, plot
from pixelrt.cli.report_check import (
    SHOWN_WIDTH,
    badge,
    difference_figure,
    histogram_table,
    output_figure,
    picture_figure,
)
from pixelrt.cli.report_markup import Html, element
from pixelrt.manifest import PipelineReference
from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.runtime.backends.base import Sample
from pixelrt.runtime.verify import Check, Limits
from pixelrt.runtime.whole import WholeCheck

LEAST = 1e-9
"""Where a plot begins that has no zero: float32 tells less than this from nothing."""


def whole_reasons(check: WholeCheck) -> str:
    return "; ".join(check.reasons)


def whole_row(index: int, backend: str, check: WholeCheck) -> tuple[str, ...]:
    step, picture = check.worst_step, check.picture
    limit = check.step_limits.max_abs
    return (
        element("a", check.name, href=f"#check-{index}"),
        badge(check.passed, "passed" if check.passed else "FAILED"),
        backend,
        check.precision,
        f"{step.max_abs:.2e}" if step else "none",
        f"{limit:.0e}" if np.isfinite(limit) else "none",
        f"{picture.psnr:.1f} dB" if picture else "none",
        f"{check.picture_limits.min_psnr:.0f} dB",
    )


def whole_sections(bundle: PipelineBundle, wholes: list[tuple[str, WholeCheck]]) -> list[Html]:
    """A section for each reference, with what every backend made of it."""
    numbered = list(enumerate(wholes))
    return [
        _section(number, reference, [one for one in numbered if one[1][1].name == reference.name])
        for number, reference in enumerate(bundle.manifest.references)
        if any(check.name == reference.name for _, check in wholes)
    ]


def _section(
    number: int,
    reference: PipelineReference,
    numbered: list[tuple[int, tuple[str, WholeCheck]]],
) -> Html:
    run = numbered[0][1][1].expected
    height, width = run.images.shape[1:3]
    given = [
        picture_figure(name, f"{name} of {reference.name}", pictures.png_uri(one))
        for name, value in run.given.items()
        if value.dtype == np.uint8 and value.ndim in (3, 4)
        for one in (value if value.ndim == 4 else value[None])
    ]
    shown = picture_figure(
        "Reference, the original library in fp32",
        f"Reference picture of {reference.name}",
        pictures.png_uri(run.images[0]),
        "reference",
    )
    options = ", ".join(f"{name} {value}" for name, value in reference.options.items())
    name = f"sample-{number}"
    return element(
        "section",
        element("h3", reference.name, id=name),
        element("p", f"{width}×{height} pixels, {len(run.steps)} steps; {options}", class_="size"),
        element("div", *given, shown, class_="columns shared"),
        *(_article(index, backend, check) for index, (backend, check) in numbered),
        class_="sample" + (" reduced" if width > SHOWN_WIDTH else ""),
        aria_labelledby=name,
        style=f"--width:{width};--fit:{max(1, SHOWN_WIDTH // width)}",
    )


def _article(index: int, backend: str, check: WholeCheck) -> Html:
    verdict = "passed" if check.passed else f"FAILED: {whole_reasons(check)}"
    header = element(
        "header",
        element("h4", backend, id=f"title-{index}"),
        badge(check.passed, verdict),
    )
    ran = ", ".join(f"{name}: {info}" for name, info in check.used.items())
    return element(
        "article",
        header,
        element("p", ran, class_="note"),
        _shown(backend, check),
        class_="check" if check.passed else "check failed",
        id=f"check-{index}",
        aria_labelledby=f"title-{index}",
    )


def _shown(backend: str, check: WholeCheck) -> Html:
    if check.images is None or check.picture is None:
        return Html("")
    levels: NDArray[Any] = check.expected.images.astype(np.float64)
    sample = Sample(check.name, check.images, levels.astype(np.float32))
    info = next(iter(check.used.values()))
    limits = Limits(np.inf, check.picture_limits.min_psnr)
    picture = Check(sample, "image", info, check.picture, limits, check.images, levels)
    error = pictures.absolute_error(picture)
    name = f"{check.name} on {backend}"
    figures = [output_figure(picture, name), difference_figure(picture, error, name)]
    return element(
        "div", *figures, histogram_table(picture, error), *_curve(check), class_="columns"
    )


def _curve(check: WholeCheck) -> list[Html]:
    """The error of the latents after every step, beside its limit."""
    steps = [(i, one.max_abs) for i, one in enumerate(check.steps, 1) if not one.non_finite]
    if len(steps) < 2:
        return []
    series = [Series("error", tuple(Point(i, max(LEAST, error)) for i, error in steps))]
    limit = check.step_limits.max_abs
    if np.isfinite(limit):
        series.append(Series("limit", tuple(Point(i, limit) for i, _ in steps)))
    title = "Latents after every step"
    return [
        plot(
            title,
            series,
            "step",
            "error, of the largest value",
            x_label=lambda value: f"{value:.0f}" if value == round(value) else "",
            y_label=lambda value: f"{value:.0e}",
        )
    ]
