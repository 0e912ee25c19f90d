"""What a device does when: timing events around everything that waits and records.

The runtime orders its work as *wait, work, record* on each stream. A ``TimelineCuda`` stands
between the runtime and CUDA and puts an event after each wait and before each record: what
lies between is a span, a copy where one was queued and computing where none was.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any, cast

from pixelrt.errors import BackendError
from pixelrt.runtime.device.cuda import CopyKind, Cuda

KINDS = ("h2d", "compute", "d2h")
NAMES = {"h2d": "copy in", "compute": "compute", "d2h": "copy out"}
COLOURS = {"h2d": "#b45309", "compute": "#0f7a4d", "d2h": "#5b4bc4"}


@dataclass(frozen=True)
class Span:
    """Milliseconds since the start of the timeline."""

    kind: str
    start: float
    end: float


@dataclass
class _Open:
    """A span of a stream that has not been recorded yet."""

    start: int
    kind: str = "compute"


@dataclass
class _Log:
    zero: int
    opened: dict[int, _Open] = field(default_factory=dict)
    closed: list[tuple[str, int, int]] = field(default_factory=list)


class TimelineCuda:
    """``inside`` with a timeline between ``begin`` and ``end``; otherwise ``inside`` itself."""

    def __init__(self, inside: Cuda) -> None:
        self._inside = inside
        self._log: _Log | None = None
        self._captured: set[int] = set()
        self._events: list[int] = []

    def begin(self) -> None:
        """Start logging; the device should be idle."""
        stream = self._inside.stream_create()
        zero = self._stamp(stream)
        self._inside.event_synchronize(zero)
        self._inside.stream_destroy(stream)
        self._log = _Log(zero)

    def end(self) -> list[Span]:
        """Stop, wait for what was logged, and give the spans by their start."""
        log, self._log = self._log, None
        assert log is not None, "end comes after begin"
        spans = []
        for kind, start, end in log.closed:
            self._inside.event_synchronize(end)
            times = (self._inside.event_elapsed(log.zero, event) for event in (start, end))
            spans.append(Span(kind, *times))
        while self._events:
            self._inside.event_destroy(self._events.pop())
        return sorted(spans, key=lambda span: (span.start, span.end))

    def stream_wait_event(self, stream: int, event: int) -> None:
        self._inside.stream_wait_event(stream, event)
        if self._log is not None and stream not in self._captured:
            self._log.opened[stream] = _Open(self._stamp(stream))

    def copy(self, destination: int, source: int, size: int, kind: CopyKind, stream: int) -> None:
        if self._log is not None and stream in self._log.opened and kind in KINDS:
            self._log.opened[stream].kind = kind
        self._inside.copy(destination, source, size, kind, stream)

    def event_record(self, event: int, stream: int) -> None:
        if self._log is not None and stream not in self._captured:
            span = self._log.opened.pop(stream, None)
            if span is not None:
                self._log.closed.append((span.kind, span.start, self._stamp(stream)))
        self._inside.event_record(event, stream)

    def capture_begin(self, stream: int) -> None:
        # What is recorded into a graph does not run: events inside would tell nothing.
        self._captured.add(stream)
        self._inside.capture_begin(stream)

    def capture_end(self, stream: int) -> int:
        self._captured.discard(stream)
        return self._inside.capture_end(stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    def _stamp(self, stream: int) -> int:
        event = self._inside.event_create(timing=True)
        self._events.append(event)
        self._inside.event_record(event, stream)
        return event


class PageableCuda:
    """``inside`` on a system that pins no memory: copies go through pageable memory."""

    def __init__(self, inside: Cuda) -> None:
        self._inside = inside

    def host_alloc(self, size: int) -> int:
        raise BackendError("host memory is not to be pinned in this measurement")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)


def as_cuda(wrapper: TimelineCuda | PageableCuda) -> Cuda:
    """``wrapper`` as what it stands for: it has every method, most by way of the inside."""
    return cast("Cuda", wrapper)


def overlap(spans: list[Span]) -> dict[str, float]:
    """Milliseconds of each kind and of the whole, and the share of the copies that ran beside
    computing."""
    computing = merged([s for s in spans if s.kind == "compute"])
    facts = {
        f"{NAMES[kind]} ms": sum(s.end - s.start for s in spans if s.kind == kind) for kind in KINDS
    }
    facts["whole ms"] = max((s.end for s in spans), default=0.0) - min(
        (s.start for s in spans), default=0.0
    )
    copies = [s for s in spans if s.kind != "compute"]
    total = sum(s.end - s.start for s in copies)
    hidden = sum(_common(s, one) for s in copies for one in computing)
    facts["copies hidden"] = hidden / total if total else 0.0
    return facts


def merged(spans: list[Span]) -> list[Span]:
    """The times in which at least one of ``spans`` runs."""
    result: list[Span] = []
    for span in sorted(spans, key=lambda s: s.start):
        if result and span.start <= result[-1].end:
            last = result.pop()
            span = Span(last.kind, last.start, max(last.end, span.end))
        result.append(span)
    return result


def _common(one: Span, other: Span) -> float:
    return max(0.0, min(one.end, other.end) - max(one.start, other.start))


def as_text(spans: list[Span], width: int = 100) -> str:
    """A line for each kind, a mark wherever it runs."""
    start = min((s.start for s in spans), default=0.0)
    whole = max((s.end for s in spans), default=0.0) - start or 1.0
    lines = [f"0 to {whole:.2f} ms"]
    for kind in KINDS:
        cells = [" "] * width
        for span in (s for s in spans if s.kind == kind):
            first, last = (int((t - start) / whole * width) for t in (span.start, span.end))
            for cell in range(min(first, width - 1), min(max(last, first + 1), width)):
                cells[cell] = "#"
        lines.append(f"{NAMES[kind]:<9}|{''.join(cells)}|")
    return "\n".join(lines)


def as_svg(spans: list[Span], title: str) -> str:
    """The same as a picture of its own."""
    start = min((s.start for s in spans), default=0.0)
    whole = max((s.end for s in spans), default=0.0) - start or 1.0
    bars = []
    for row, kind in enumerate(KINDS):
        top = 34 + 34 * row
        bars.append(f'<text x="8" y="{top + 17}">{NAMES[kind]}</text>')
        for span in (s for s in spans if s.kind == kind):
            left = 90 + (span.start - start) / whole * 890
            length = max(0.5, (span.end - span.start) / whole * 890)
            bars.append(
                f'<rect x="{left:.2f}" y="{top}" width="{length:.2f}" height="24" '
                f'fill="{COLOURS[kind]}"/>'
            )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 150" '
        'font-family="sans-serif" font-size="14">'
        '<rect width="1000" height="150" fill="#fff"/>'
        f'<text x="8" y="20">{html.escape(title)}: {whole:.2f} ms</text>{"".join(bars)}</svg>\n'
    )
