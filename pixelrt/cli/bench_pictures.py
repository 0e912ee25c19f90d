"""Pictures of a measured case: what went in, what came out, where it differs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pixelrt.bench.harness import Outcome
from pixelrt.cli.bench_table import bytes_text, case_name, psnr_text, seconds_text
from pixelrt.cli.report_markup import Html, element, markup
from pixelrt.cli.report_pictures import png_uri, show_difference, visible_factor
from pixelrt.geometry import Region, Size

SHOWN = 256
"""Output pixels a side that are shown: the page stays small whatever was measured."""
ONE_LEVEL = 1.001 / 255

Pixels = NDArray[np.uint8]


def case_pictures(outcome: Outcome) -> Html:
    """A panel: numbers, input, output, difference, all of one region."""
    result = outcome.result
    shown = shown_region(outcome)
    scale = result.output_width // result.width
    low = Region(*(edge // scale for edge in (shown.top, shown.left, shown.bottom, shown.right)))
    size = Size(result.output_height, result.output_width)
    part = "" if shown.size == size else f", the part {shown.size} of {size}"
    return element(
        "article",
        element("h3", case_name(result)),
        _numbers(outcome),
        element(
            "div",
            _figure(f"Input {low.size}", png_uri(outcome.image[low.slices])),
            _figure(f"Output{part}", png_uri(outcome.output[shown.slices])),
            _difference(outcome, shown),
            class_="columns",
        ),
        class_="case-pictures",
        style=f"--width:{shown.size.width};--fit:1",
    )


def shown_region(outcome: Outcome) -> Region:
    """The middle of what was compared (of the whole output where nothing was), on whole
    input pixels."""
    height, width = outcome.output.shape[:2]
    region = outcome.compared.region or Region(0, 0, height, width)
    scale = outcome.result.output_width // outcome.result.width
    top, bottom = _middle(region.top, region.bottom, scale)
    left, right = _middle(region.left, region.right, scale)
    return Region(top, left, bottom, right)


def _middle(low: int, high: int, scale: int) -> tuple[int, int]:
    length = min(high - low, SHOWN // scale * scale)
    start = low + (high - low - length) // 2 // scale * scale
    return start, start + length


def _numbers(outcome: Outcome) -> Html:
    result = outcome.result
    levels = result.fidelity.max_levels
    rows = [
        ("latency", f"{seconds_text(result.latency.p50)} (p50)"),
        ("peak memory", bytes_text(result.memory.host_peak)),
        ("PSNR", psnr_text(result) + ("" if levels is None else f", off by up to {levels} of 255")),
        ("compared", f"{result.fidelity.note}, with {result.fidelity.reference}"),
    ]
    entries = [markup(element("dt", name), element("dd", value)) for name, value in rows]
    return element("dl", *entries, class_="numbers")


def _difference(outcome: Outcome, shown: Region) -> Html:
    compared = outcome.compared
    if compared.expected is None or compared.region is None:
        return element("p", f"Compared: {compared.note}.", class_="identical")
    inner = shown.relative_to(compared.region)
    want = compared.expected[inner.slices].astype(np.float64)
    worst = np.abs(outcome.output[shown.slices] - want).max(axis=-1) / 255
    if not worst.any():
        return element("p", "Identical to the float32 route here.", class_="identical")
    factor = visible_factor(worst)
    picture = png_uri(show_difference(worst, factor, ONE_LEVEL))
    return _figure(f"Difference × {factor}", picture)


def _figure(caption: str, uri: str) -> Html:
    image = element("img", alt=caption, src=uri)
    framed = element("div", element("div", image, class_="stack"), class_="frame")
    return element("figure", framed, element("figcaption", caption), class_="picture")
