"""Words that the reports of `pixelrt verify` and `pixelrt bench` share."""

from __future__ import annotations

import platform
from datetime import datetime

from pixelrt.cli import report_pictures as pictures
from pixelrt.cli.report_check import count_text
from pixelrt.cli.report_markup import Html, element, markup
from pixelrt.manifest import Source
from pixelrt.runtime.machine import processor_name, usable_cpus

AGAINST_PYTORCH = "Verification against PyTorch"


def verdict(passed: list[bool]) -> str:
    """Of all checks, by whether each passed."""
    failed = passed.count(False)
    if not passed:
        return "No check was run"
    if failed:
        return f"{failed} of {len(passed)} checks failed"
    return "The one check passed" if len(passed) == 1 else f"All {len(passed)} checks passed"


def heading(name: str, what: str, made: datetime) -> Html:
    """``what``: what the page tells of ``name``."""
    when = element("time", f"{made:%d %B %Y, %H:%M %Z}", datetime=made.isoformat("T", "seconds"))
    return markup(element("h1", name), element("p", what, ", ", when, class_="subtitle"))


def verdict_box(says: str, problems: list[Html], *more: Html, good: bool) -> Html:
    """What to think of the page, before its numbers."""
    return element(
        "div",
        element("strong", ("✓ " if good else "✗ ") + says),
        element("ul", *problems) if problems else Html(""),
        *more,
        class_="verdict " + ("good" if good else "bad"),
    )


def random_weights(source: Source) -> Html:
    if source.kind == "checkpoint":
        return Html("")
    return element(
        "p",
        "The weights are random: the arithmetic is verified, the pictures mean nothing.",
    )


def source_text(source: Source) -> Html:
    if source.kind == "random":
        return markup(f"random weights, seed {source.seed}")
    return markup(f"{source.name}, sha256 ", element("span", source.sha256, class_="mono"))


def machine_text() -> str:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"{processor_name()}, {usable_cpus()} processors usable, {system}"


def factor_options() -> Html:
    """The amplifications on offer, as options of a choice."""
    decades = list(enumerate(pictures.FACTORS))[::3]
    return markup(
        *(element("option", f"× {count_text(factor)}", value=step) for step, factor in decades)
    )
