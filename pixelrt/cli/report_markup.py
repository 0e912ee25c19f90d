"""HTML that is escaped unless it was made here. Standard library only."""

from __future__ import annotations

import html
from collections.abc import Sequence

VOID = ("img", "input", "meta")


class Html(str):
    """Markup, used as it is. Any other string is text and gets escaped."""

    __slots__ = ()


def markup(*children: str) -> Html:
    """Children one after the other; those that are not ``Html`` are escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c) for c in children))


def element(name: str, *children: str, **attributes: str | int | bool) -> Html:
    """``<name attributes>children</name>``.

    ``class_`` gives ``class``, ``data_x`` gives ``data-x``; ``True`` gives an attribute
    without a value, ``False`` none.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{markup(*children)}</{name}>")


def _attribute(key: str, value: str | int | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    if isinstance(value, bool):
        return f" {name}" if value else ""
    return f' {name}="{html.escape(str(value))}"'


def table(caption: str, head: tuple[str, ...], rows: list[tuple[str, ...]], kind: str) -> Html:
    """A table in a box that scrolls sideways; the first cell of each row is its header.

    ``kind``: CSS class of the table.
    """
    columns = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", c) for c in row[1:]))
        for row in rows
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", columns),
        element("tbody", *body),
        class_=kind,
    )
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def facts(title: str, rows: Sequence[tuple[str, str]]) -> Html:
    """A section of names and what is known of them."""
    entries = [markup(element("dt", name), element("dd", value)) for name, value in rows]
    return element(
        "section",
        element("h2", title, id="facts"),
        element("dl", *entries, class_="facts"),
        aria_labelledby="facts",
    )
