"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"

    return [line(head), line("---" for _ in head), *(line(row) for row in rows)]
