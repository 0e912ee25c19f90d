"""Plots as inline SVG: nothing is loaded, nothing is run, colours follow the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pixelrt.cli.report_markup import Html, element, markup

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 90, 14, 14, 54
COLOURS = 6
"""Styles ``series-0`` to ``series-5`` of ``bench.css``; further series begin again."""
LOG_FROM = 8.0
"""An axis whose values span more than this factor is logarithmic."""

Label = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """``high``: the upper end of a whisker above ``y``, or ``None``."""

    x: float
    y: float
    high: float | None = None


@dataclass(frozen=True)
class Series:
    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Axis:
    """From values to places between ``start`` and ``end`` of the drawing."""

    title: str
    ticks: tuple[float, ...]
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool
    label: Label

    def place(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def plot(
    title: str,
    series: list[Series],
    x_title: str,
    y_title: str,
    x_label: Label = lambda value: number_text(value),
    y_label: Label = lambda value: number_text(value),
) -> Html:
    """A figure: lines with markers, whiskers, a legend, and the values as a tooltip."""
    points = [point for one in series for point in one.points]
    tops = [point.high or point.y for point in points]
    x = make_axis(x_title, [p.x for p in points], LEFT, WIDTH - RIGHT, x_label)
    y = make_axis(
        y_title, [*(p.y for p in points), *tops], HEIGHT - BOTTOM, TOP, y_label, zero=True
    )
    drawing = element(
        "svg",
        _x_axis(x),
        _y_axis(y),
        *(_series(index, one, x, y) for index, one in enumerate(series)),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {y_title} over {x_title}",
    )
    return element("figure", element("figcaption", title), drawing, _legend(series), class_="plot")


def make_axis(
    title: str, values: list[float], start: float, end: float, label: Label, *, zero: bool = False
) -> Axis:
    """An axis for ``values``, all above 0. ``zero``: a linear one begins there."""
    low, high = min(values), max(values)
    if high / low > LOG_FROM:
        ticks = _log_ticks(low, high)
        return Axis(
            title,
            ticks,
            min(low, ticks[0]) / 1.15,
            max(high, ticks[-1]) * 1.15,
            start,
            end,
            logarithmic=True,
            label=label,
        )
    margin = (high - low or high) * 0.12
    bottom = 0.0 if zero else max(0.0, low - margin)
    top = high + margin
    return Axis(
        title, _linear_ticks(bottom, top), bottom, top, start, end, logarithmic=False, label=label
    )


def number_text(value: float) -> str:
    """Three digits at most, without an exponent where it can be avoided."""
    return f"{value:,.0f}".replace(",", "\u2009") if value >= 1000 else f"{value:.3g}"


def _linear_ticks(low: float, high: float) -> tuple[float, ...]:
    """About five multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return tuple(i * step for i in range(first, int(high / step + 1e-9) + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten, with 2 and 5 between them where they are few; at least two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    mantissas = (1.0,) if len(powers) > 4 else (1.0, 2.0, 5.0)
    every = [m * 10.0**p for p in powers for m in mantissas]
    inside = tuple(tick for tick in every if low / 1.2 <= tick <= high * 1.2)
    return inside if len(inside) > 1 else (low, high)


def _x_axis(axis: Axis) -> Html:
    base = HEIGHT - BOTTOM
    ticks = [
        markup(
            element("line", x1=_at(axis.place(t)), x2=_at(axis.place(t)), y1=base, y2=base + 5),
            element("text", axis.label(t), x=_at(axis.place(t)), y=base + 23, text_anchor="middle"),
        )
        for t in axis.ticks
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    name = element("text", _named(axis), x=_at(middle), y=HEIGHT - 8, text_anchor="middle")
    line = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base)
    return element("g", line, *ticks, name, class_="axis")


def _y_axis(axis: Axis) -> Html:
    ticks = [
        markup(
            element(
                "line",
                x1=LEFT, x2=WIDTH - RIGHT,
                y1=_at(axis.place(t)), y2=_at(axis.place(t)),
                class_="grid",
            ),
            element(
                "text", axis.label(t), x=LEFT - 6, y=_at(axis.place(t) + 4), text_anchor="end"
            ),
        )
        for t in axis.ticks
    ]  # fmt: skip
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = {"transform": f"rotate(-90 14 {middle})"}
    name = element("text", _named(axis), x=14, y=_at(middle), text_anchor="middle", **turned)
    return element("g", *ticks, name, class_="axis")


def _named(axis: Axis) -> str:
    return f"{axis.title} (log)" if axis.logarithmic else axis.title


def _series(index: int, series: Series, x: Axis, y: Axis) -> Html:
    ordered = sorted(series.points, key=lambda point: point.x)
    path = " ".join(f"{_at(x.place(p.x))},{_at(y.place(p.y))}" for p in ordered)
    line = element("polyline", points=path, class_="line")
    marks = [_mark(index, series.name, point, x, y) for point in ordered]
    return element("g", line, *marks, class_=f"series-{index % COLOURS}")


def _mark(index: int, name: str, point: Point, x: Axis, y: Axis) -> Html:
    left, top = x.place(point.x), y.place(point.y)
    tip = element("title", f"{name}: {y.label(point.y)} at {x.label(point.x)}")
    whisker = Html("")
    if point.high is not None:
        whisker = element(
            "line", x1=_at(left), x2=_at(left), y1=_at(top), y2=_at(y.place(point.high))
        )
    return element("g", tip, whisker, _shape(index, left, top))


def _shape(index: int, left: float, top: float) -> Html:
    """Another shape for every series: colours alone do not tell them apart for everybody."""
    size = 4.5
    if index % 3 == 1:
        side = 2 * size - 1
        return element(
            "rect", x=_at(left - side / 2), y=_at(top - side / 2), width=_at(side), height=_at(side)
        )
    if index % 3 == 2:
        corners = ((0, -1.2), (1.1, 0.9), (-1.1, 0.9))
        path = " ".join(f"{_at(left + dx * size)},{_at(top + dy * size)}" for dx, dy in corners)
        return element("polygon", points=path)
    return element("circle", cx=_at(left), cy=_at(top), r=_at(size))


def _legend(series: list[Series]) -> Html:
    items = [
        element(
            "li",
            element(
                "svg", _shape(index, 7, 7), viewBox="0 0 14 14", aria_hidden="true",
                class_=f"key series-{index % COLOURS}",
            ),
            one.name,
        )
        for index, one in enumerate(series)
    ]  # fmt: skip
    return element("ul", *items, class_="legend")


def _at(value: float) -> str:
    return f"{value:.1f}"
