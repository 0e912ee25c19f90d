"""The part of the report about samples: pictures, differences, histograms, and the words
for numbers that the rest of the page uses too."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from pixelrt.cli import report_pictures as pictures
from pixelrt.cli.report_markup import Html, element, table
from pixelrt.fidelity import PSNR_CEILING
from pixelrt.runtime.backends.base import Sample
from pixelrt.runtime.verify import Check

SHOWN_WIDTH = 400
"""CSS pixels that a picture may take before zooming: smaller ones are enlarged by a whole
factor, larger ones are reduced to their column."""

GRAPHS = {
    "core": "the core graph, float values compared as they are",
    "image": "the image graph, 8-bit pixels compared with the reference rounded to 8 bits",
}


# --- words ---------------------------------------------------------------------------


def reasons(check: Check) -> str:
    """Why a check failed, in words."""
    got = check.comparison
    if got.non_finite:
        bad, all_ = count_text(got.non_finite), count_text(got.values)
        return f"{bad} of {all_} values are NaN or infinite"
    found = []
    if got.max_abs > check.limits.max_abs:
        times = got.max_abs / check.limits.max_abs if check.limits.max_abs else np.inf
        found.append(f"max abs {got.max_abs:.2e} is {times:.3g} times the limit")
    if got.psnr < check.limits.min_psnr:
        found.append(f"{got.psnr:.1f} dB is less than {check.limits.min_psnr:.0f} dB")
    return ", ".join(found)


def badge(good: bool, text: str) -> Html:
    sign, kind = ("✓", "good") if good else ("✗", "bad")
    return element("span", f"{sign} {text}", class_=f"badge {kind}")


def psnr_text(check: Check) -> str:
    value = check.comparison.psnr
    if check.comparison.non_finite:
        return "none"
    return "∞ dB" if value >= PSNR_CEILING else f"{value:.1f} dB"


def cosine_text(check: Check) -> str:
    """Cosine similarity, near 1 as its distance from it."""
    if check.comparison.non_finite:
        return "none"
    below = 1 - check.comparison.cosine
    if below < 1e-15:  # less than float64 can tell
        return "1"
    return f"1 − {below:.1e}" if below < 1e-3 else f"{check.comparison.cosine:.4f}"


def limits_text(check: Check) -> str:
    text = f"max abs ≤ {check.limits.max_abs:.2e}"
    return text + (f", ≥ {check.limits.min_psnr:.0f} dB" if check.limits.min_psnr else "")


def count_text(number: int) -> str:
    return f"{number:,}".replace(",", "\u2009")


def title(check: Check) -> str:
    return f"{check.sample.name} on {check.info.name}, {check.role} graph"


# --- pictures -------------------------------------------------------------------------


def sample_sections(checks: list[Check]) -> list[Html]:
    """A section per sample, in the order of the bundle's first use."""
    order = list(dict.fromkeys(check.sample.name for check in checks))
    numbered = sorted(enumerate(checks), key=lambda pair: order.index(pair[1].sample.name))
    return [
        _sample(number, list(group))
        for number, (_, group) in enumerate(groupby(numbered, lambda pair: pair[1].sample.name))
    ]


def _sample(number: int, numbered: list[tuple[int, Check]]) -> Html:
    first = numbered[0][1]
    sample, levels = first.sample, pictures.expected_levels(first)
    height, width = levels.shape[:2]
    inputs = sample.pixels[0]
    name = f"sample-{number}"
    shared = element(
        "div",
        picture_figure("Input", f"Input of {sample.name}", pictures.png_uri(inputs)),
        picture_figure(
            "Reference, PyTorch in fp32",
            f"Reference output of {sample.name}",
            pictures.png_uri(pictures.show_levels(levels)),
            "reference",
        ),
        class_="columns shared",
    )
    return element(
        "section",
        element("h3", sample.name, id=name),
        element("p", _sizes(sample, width, height), class_="size"),
        shared,
        *(_check(index, check) for index, check in numbered),
        class_="sample" + (" reduced" if width > SHOWN_WIDTH else ""),
        aria_labelledby=name,
        style=f"--width:{width};--fit:{max(1, SHOWN_WIDTH // width)}",
    )


def _sizes(sample: Sample, width: int, height: int) -> str:
    text = f"{sample.kind}, {sample.width}×{sample.height} to {width}×{height} pixels"
    reduced = "; pictures are reduced to their column unless zoomed, differences never are"
    return text + (reduced if width > SHOWN_WIDTH else "")


def picture_figure(caption: str, alt: str, uri: str, kind: str = "") -> Html:
    image = element("img", alt=alt, src=uri)
    return element(
        "figure", _frame(image, caption), element("figcaption", caption), class_=f"{kind} picture"
    )


def _frame(image: Html, label: str) -> Html:
    return element(
        "div", element("div", image, class_="stack"), class_="frame", role="group", aria_label=label
    )


def _check(index: int, check: Check) -> Html:
    verdict = "passed" if check.passed else "FAILED"
    error = pictures.absolute_error(check)
    numbers = (
        f"max abs {check.comparison.max_abs:.2e}, {psnr_text(check)}, "
        f"cosine {cosine_text(check)} ({limits_text(check)})"
    )
    header = element(
        "header",
        element("h4", f"{check.info.name}, {check.role} graph", id=f"title-{index}"),
        badge(check.passed, verdict if check.passed else f"{verdict}: {reasons(check)}"),
        element("span", numbers, class_="size"),
    )
    return element(
        "article",
        header,
        element("p", f"{check.info}; {GRAPHS[check.role]}", class_="note"),
        element(
            "div",
            output_figure(check, title(check)),
            difference_figure(check, error, title(check)),
            histogram_table(check, error),
            class_="columns",
        ),
        class_="check" if check.passed else "check failed",
        id=f"check-{index}",
        aria_labelledby=f"title-{index}",
    )


def output_figure(check: Check, name: str) -> Html:
    """What came out, to be wiped over the reference of its section; ``name`` of the check."""
    uri = pictures.png_uri(pictures.show_levels(pictures.actual_levels(check)))
    image = element("img", alt=f"Output for {name}", src=uri)
    bad = check.comparison.non_finite
    caption = "Output" + (f"; {count_text(bad)} values NaN or infinite, in magenta" if bad else "")
    slider = element("input", type="range", min=0, max=100, value=0, autocomplete="off")
    controls = element(
        "div",
        element("label", "Wipe to reference", slider),
        element("button", "Flicker", type="button", aria_pressed="false"),
        class_="controls script",
    )
    return element(
        "figure",
        _frame(image, "Output"),
        element("figcaption", caption),
        controls,
        class_="picture output",
    )


def difference_figure(check: Check, error: pictures.Values, name: str) -> Html:
    """``error`` (H, W, C) as a picture that can be amplified."""
    if not error.any():  # NaN counts as any
        return _identical(check)
    worst = pictures.largest_channel(error)
    factor = pictures.visible_factor(worst)
    image = element(
        "img",
        alt=f"Absolute difference for {name}, times {factor}",
        src=pictures.png_uri(pictures.show_difference(worst, factor, check.limits.max_abs)),
        data_difference=pictures.pack_difference(worst, check.limits.max_abs),
    )
    amplified = element("span", f"× {count_text(factor)}", class_="factor")
    return element(
        "figure",
        _frame(image, "Difference"),
        element("figcaption", "|output − reference| ", amplified, _above(check, worst)),
        _amplifier(factor),
        class_="picture difference",
    )


def _identical(check: Check) -> Html:
    word = "Bit-identical" if pictures.same_bits(check) else "Equal"
    text = f": all {count_text(check.comparison.values)} values equal the reference."
    return element("p", element("strong", word), text, class_="identical")


def _above(check: Check, worst: pictures.Values) -> str:
    count = int(np.count_nonzero(worst > check.limits.max_abs))
    if not count:
        return ""
    return f"; {count_text(count)} of {count_text(worst.size)} pixels above the limit"


def _amplifier(factor: int) -> Html:
    slider = element(
        "input",
        type="range",
        min=0,
        max=len(pictures.FACTORS) - 1,
        value=pictures.FACTORS.index(factor),
        aria_valuetext=f"× {count_text(factor)}",
        autocomplete="off",
    )
    return element("div", element("label", "Amplify", slider), class_="controls script")


# --- histogram ------------------------------------------------------------------------


def histogram_table(check: Check, error: pictures.Values) -> Html:
    """Values by the size of their error, with bars; above the limit in the colour of failure."""
    rows = [_bar("exactly 0", int(np.count_nonzero(error == 0)), 0, error.size)]
    for low, high, count, above in pictures.count_decades(error, check.limits.max_abs):
        rows.append(_bar(_decade(low, high), count, above, error.size))
    bad = int(np.count_nonzero(~np.isfinite(error)))
    if bad:
        rows.append(_bar("NaN or infinite", bad, bad, error.size))
    caption = "Values by absolute error"
    if np.isfinite(check.limits.max_abs):
        caption += f" (limit {check.limits.max_abs:.2e})"
    return table(caption, ("error", "", "values", "share"), rows, "histogram")


def _decade(low: float, high: float) -> str:
    if not low:
        return f"below {high:.0e}"
    return f"{low:.0e} to {high:.0e}" if np.isfinite(high) else f"from {low:.0e}"


def _bar(name: str, count: int, above: int, total: int) -> tuple[str, ...]:
    """A row; ``above`` of the ``count`` values are above the limit."""
    parts = ((count - above, "bar"), (above, "bar bad"))
    bars = [
        element("span", class_=kind, style=f"width:{100 * part / total:.2f}%")
        for part, kind in parts
        if part
    ]
    share = f"{count / total:.2%}" if not 0 < count / total < 1e-4 else "< 0.01%"
    return name, element("span", *bars, class_="bars"), count_text(count), share
