"""A page that is complete in one file, around what a command has to show on it."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib import resources
from string import Template

from pixelrt.cli.report_markup import Html, markup


@dataclass(frozen=True)
class Frame:
    """What stands around the content. ``made_by``: pixelrt's version; ``script``: a file of
    this package, the only one that the page allows to run, or empty for none; ``styles``: files
    that add to ``report.css``."""

    title: str
    heading: Html
    made_by: str
    command: str
    script: str = ""
    styles: tuple[str, ...] = ()


def page(frame: Frame, content: str, **parts: str) -> str:
    """``content``, a template of this package, filled with ``parts`` and framed.

    The content security policy of the page forbids requests.
    """
    script = f"\n{_read(frame.script)}\n" if frame.script else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_read("page.html")).substitute(
        title=markup(frame.title),
        script_source=f"; script-src 'sha256-{digest}'" if script else "",
        style="\n".join(_read(name) for name in ("report.css", *frame.styles)),
        heading=frame.heading,
        main=Template(_read(content)).substitute(parts),
        footer=markup(
            f"Made by pixelrt {frame.made_by} with `{frame.command}`. "
            "This page is complete in one file and loads nothing."
        ),
        script=f"<script>{script}</script>\n" if script else "",
    )


def _read(name: str) -> str:
    return resources.files("pixelrt.cli").joinpath(name).read_text(encoding="utf-8").strip()
