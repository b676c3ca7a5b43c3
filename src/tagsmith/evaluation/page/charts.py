"""Small pictures as inline SVG: lines, dots with whiskers, bands. Colours are classes, so that they follow the theme.

Names that come from data stand beside a picture as HTML, never in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tagsmith.markup import Html, escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 250, 56, 24, 10, 44
LETTER = 7.2
"""The width of a letter beside an axis: long names move the axis to the right."""

KINDS = ("first", "second", "third", "fourth")
"""Classes of a series, in the order in which pictures use them."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers with the places where it is labelled."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, title: str, values: Sequence[float], *, unit: str = "", least: float | None = None) -> Axis:
        """An axis around `values`, with about five round ticks; it starts at `least` where that is given."""
        low = min(values) if least is None else least
        high = max(max(values), low + 1e-9)
        step = _round_step((high - low) / 5)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        ticks = tuple((i * step, f"{i * step:,.{digits}f}{unit}") for i in range(first, last + 1))
        return cls(title, first * step, last * step, ticks)

    @classmethod
    def by_name(cls, title: str, names: Mapping[float, str]) -> Axis:
        """An axis on a logarithmic or other scale of the caller's own, whose ticks have names."""
        low, high = min(names), max(names)
        room = (high - low or 1.0) * 0.04
        return cls(title, low - room, high + room, tuple(sorted(names.items())))

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low or 1.0)


SHARES = Axis("", 0.0, 1.0, tuple((i / 5, f"{20 * i} %") for i in range(6)))
"""From 0 to 100 %."""


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(max(step, 1e-12)))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= step - 1e-15)


class Picture:
    """Axes on which marks are put one after the other; `svg` is the whole."""

    def __init__(self, x: Axis, y: Axis, *, height: int = HEIGHT) -> None:
        self.x, self.y, self.height = x, y, height
        longest = max((len(name) for _, name in y.ticks), default=0)
        self.left = max(LEFT, math.ceil(12 + LETTER * longest))
        self._marks: list[str] = []

    def line(self, points: Sequence[Point], kind: str) -> None:
        """A line through points."""
        self._marks.append(f'<polyline class="line {kind}" points="{self._path(points)}"/>')

    def band(self, lower: Sequence[Point], upper: Sequence[Point], kind: str) -> None:
        """The area between two lines."""
        path = self._path([*lower, *reversed(upper)])
        self._marks.append(f'<polygon class="band {kind}" points="{path}"/>')

    def dots(self, points: Sequence[Point], kind: str) -> None:
        """A dot at each point."""
        for x, y in map(self._place, points):
            self._marks.append(f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')

    def whisker(self, x: float, low: float, high: float, kind: str) -> None:
        """A vertical interval."""
        (across, bottom), (_, top) = self._place((x, low)), self._place((x, high))
        self._marks.append(
            f'<path class="whisker {kind}" d="M{across:.1f} {bottom:.1f}V{top:.1f}'
            f'M{across - 4:.1f} {bottom:.1f}h8M{across - 4:.1f} {top:.1f}h8"/>'
        )

    def rule(self, *, x: float | None = None, y: float | None = None) -> None:
        """A thin dashed line across the picture, at one value."""
        if x is not None:
            across, _ = self._place((x, self.y.low))
            self._marks.append(f'<path class="rule" d="M{across:.1f} {TOP}V{self.height - BOTTOM}"/>')
        if y is not None:
            _, down = self._place((self.x.low, y))
            self._marks.append(f'<path class="rule" d="M{self.left} {down:.1f}H{WIDTH - RIGHT}"/>')

    def diagonal(self) -> None:
        """The line on which both values are equal."""
        low, high = max(self.x.low, self.y.low), min(self.x.high, self.y.high)
        (x1, y1), (x2, y2) = self._place((low, low)), self._place((high, high))
        self._marks.append(f'<path class="rule" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>')

    def svg(self, told: str) -> Html:
        """The picture; `told` is what it shows, for those who do not see it."""
        return Html(
            f'<svg class="chart" role="img" aria-label="{escape(told)}" viewBox="0 0 {WIDTH} {self.height}">'
            f"{self._axes()}{''.join(self._marks)}</svg>"
        )

    def _axes(self) -> str:
        floor, parts = self.height - BOTTOM, []
        for value, name in self.y.ticks:
            _, down = self._place((self.x.low, value))
            parts.append(f'<path class="grid" d="M{self.left} {down:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{self.left - 7}" y="{down + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for value, name in self.x.ticks:
            across, _ = self._place((value, self.y.low))
            parts.append(f'<path class="grid" d="M{across:.1f} {floor}v4"/>')
            parts.append(f'<text x="{across:.1f}" y="{floor + 18}" text-anchor="middle">{escape(name)}</text>')
        middle = (self.left + WIDTH - RIGHT) / 2
        parts.append(f'<path class="axis" d="M{self.left} {floor}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{middle}" y="{self.height - 8}" text-anchor="middle">{escape(self.x.title)}</text>')
        return "".join(parts)

    def _place(self, point: Point) -> Point:
        x = self.left + self.x.share(point[0]) * (WIDTH - self.left - RIGHT)
        return x, self.height - BOTTOM - self.y.share(point[1]) * (self.height - TOP - BOTTOM)

    def _path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self._place, points))


def legend(names: Mapping[str, str]) -> Html:
    """What the series of a picture are: their class and their name."""
    items = "".join(f'<li class="{kind}">{escape(name)}</li>' for kind, name in names.items())
    return Html(f'<ul class="legend">{items}</ul>')


# --- a value and its interval in the cell of a table


@dataclass(frozen=True)
class Scale:
    """What the pictures in a column of a table have in common."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float], *, most: float | None = 1.0) -> Scale:
        """From a round number below the least value to one above the largest, `most` at most."""
        axis = Axis.of("", values or [0.0])
        room = (axis.high - axis.low) * 0.02
        return cls(axis.low - room, axis.high + room if most is None else min(axis.high, most) + room)


_CELL_WIDTH, _CELL_HEIGHT = 200, 20


def whisker_cell(measure: Mapping[str, float | None], scale: Scale, *, kind: str) -> Html:
    """A dot with its whiskers; an arrow at the edge where it lies outside the scale."""
    value, low, high = measure["value"], measure["low"], measure["high"]
    if value is None:
        return Html("")
    middle = _CELL_HEIGHT / 2
    parts = [f'<path class="grid" d="M0 {middle}H{_CELL_WIDTH}"/>']
    if value < scale.low or value > scale.high:
        x, turn = (2, 7) if value < scale.low else (_CELL_WIDTH - 2, -7)
        parts.append(f'<path class="arrow {kind}" d="M{x} {middle}l{turn} -5v10z"/>')
    else:
        if low is not None and high is not None:
            start, end = (_CELL_WIDTH * min(1.0, max(0.0, _share(edge, scale))) for edge in (low, high))
            parts.append(
                f'<path class="whisker {kind}" d="M{start:.1f} {middle}H{end:.1f}'
                f'M{start:.1f} {middle - 5}v10M{end:.1f} {middle - 5}v10"/>'
            )
        parts.append(
            f'<circle class="dot {kind}" cx="{_CELL_WIDTH * _share(value, scale):.1f}" cy="{middle}" r="4.5"/>'
        )
    return Html(
        f'<svg class="cell" aria-hidden="true" viewBox="0 0 {_CELL_WIDTH} {_CELL_HEIGHT}">{"".join(parts)}</svg>'
    )


def _share(value: float, scale: Scale) -> float:
    return (value - scale.low) / (scale.high - scale.low or 1.0)
