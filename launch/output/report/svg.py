"""Line charts as HTML with inline SVG, which fit any width and keep their letters' size.

The lines are an SVG of 1000 by 1000 units that is stretched over the plot, with strokes that do not scale; what has
letters stands around it as HTML, placed in per cent. Colours are the classes s0 to s7 of page.css, dashes d1 to d3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from suture.launch.output.figures.curves import Array
from suture.launch.output.report.ticks import nice_ticks, spread, whole_ticks
from suture.launch.output.text import shown, text

COLOURS = 8
_SIDE = 1000
_LABEL_GAP = 6.4  # per cent of the plot's height that a line of letters takes
MOST_LABELS = 14
_MOST_MARKED = 40


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    Attributes:
        label: stands at its end and in the legend.
        look: which colour and dashes; the same site has the same one in every chart.
        points: (x, y) rows in the order of x; a nan row breaks the line.
        raw: drawn faint under it, without marks.
    """

    label: str
    look: int
    points: Array
    raw: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart to draw.

    Attributes:
        name: an id, unique on its page.
        title: stands above.
        note: beside the title, softer.
        x_label: what the x axis counts; whole numbers.
        series: the lines; may be empty.
        y_range: None to fit the lines, from 0.
        level: a dashed line across and what it is called.
        mark: a vertical line and what it is called.
        summary: what a reader who does not see it is told.
    """

    name: str
    title: str
    x_label: str
    series: Sequence[Series]
    note: str = ""
    y_range: tuple[float, float] | None = None
    level: tuple[float, str] | None = None
    mark: tuple[float, str] | None = None
    summary: str = ""


@dataclass
class _Frame:
    """Where values lie, in per cent from the left and from the top."""

    left: float
    right: float
    low: float
    high: float
    ticks: list[float] = field(default_factory=list)
    xs: tuple[float, float] = (0.0, 0.0)

    def holds(self, x: float) -> bool:
        return self.xs[0] <= x <= self.xs[1]

    def x(self, value: float) -> float:
        return 100 * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return 100 * (self.high - value) / (self.high - self.low)


def line_chart(chart: Chart) -> str:
    """The chart as one ``<figure>``."""
    drawn = [series for series in chart.series if np.isfinite(series.points[:, 1]).any()]
    head = f"<figcaption><b>{text(chart.title)}</b> <span>{text(chart.note)}</span></figcaption>"
    if not drawn:
        return f'<figure class="chart" id="{chart.name}">{head}<p class="empty">nothing measured yet</p></figure>'
    frame = _frame(chart, drawn)
    x_ticks = [tick for tick in whole_ticks(frame.left, frame.right) if frame.holds(tick)]
    parts = [
        f'<div class="y" aria-hidden="true">{_y_letters(frame)}</div>',
        f'<div class="canvas">{_lines(chart, drawn, frame, x_ticks)}{_notes(chart, frame)}</div>',
        f'<div class="ends" aria-hidden="true">{_ends(drawn, frame)}</div>',
        f'<div class="x" aria-hidden="true">{_x_letters(frame, x_ticks)}</div>',
        f'<div class="unit" aria-hidden="true">{text(chart.x_label)}</div>',
    ]
    return f'<figure class="chart" id="{chart.name}">{head}<div class="plot">{"".join(parts)}</div></figure>'


def look(index: int) -> str:
    """The classes of a line: eight colours, then the same ones dashed."""
    dashes = index // COLOURS % 4
    return f"s{index % COLOURS}" + (f" d{dashes}" if dashes else "")


def swatch(index: int) -> str:
    """A short piece of a line, for legends and tables."""
    line = f'<path class="line {look(index)}" d="M1 4H19"/>'
    return f'<svg class="swatch" viewBox="0 0 20 8" aria-hidden="true">{line}</svg>'


def _frame(chart: Chart, drawn: Sequence[Series]) -> _Frame:
    xs = np.concatenate([series.points[:, 0] for series in drawn])
    left, right = ends = float(np.nanmin(xs)), float(np.nanmax(xs))
    if left == right:
        left, right = left - 1, right + 1
    margin = (right - left) * 0.015
    low, high = chart.y_range or (0.0, _height(drawn))
    ticks = nice_ticks(low, high)
    return _Frame(left - margin, right + margin, low, high, ticks, ends)


def _height(drawn: Sequence[Series]) -> float:
    """Above all lines, and above nearly all of what is faint: a few outliers must not flatten everything."""
    most = highest = max(float(np.nanmax(series.points[:, 1])) for series in drawn)
    for series in drawn:
        if series.raw is not None and np.isfinite(series.raw[:, 1]).any():
            highest = max(highest, min(1.7 * most, float(np.nanquantile(series.raw[:, 1], 0.99))))
    return 1.08 * highest if highest > 0 else 1.0


def _lines(chart: Chart, drawn: Sequence[Series], frame: _Frame, x_ticks: Sequence[float]) -> str:
    grid = "".join(f"M0 {_units(frame.y(tick))}H{_SIDE}" for tick in frame.ticks)
    parts = [f'<path class="grid" d="{grid}"/>']
    if chart.level is not None:
        parts.append(f'<path class="level" d="M0 {_units(frame.y(chart.level[0]))}H{_SIDE}"/>')
    if chart.mark is not None and frame.holds(chart.mark[0]):
        parts.append(f'<path class="mark" d="M{_units(frame.x(chart.mark[0]))} 0V{_SIDE}"/>')
    for series in drawn:
        if series.raw is not None:
            parts.append(f'<path class="raw {look(series.look)}" d="{_path(series.raw, frame)}"/>')
    for series in drawn:
        dots = _dots(series.points, frame) if series.raw is None or len(series.points) == 1 else ""
        parts.append(
            f'<g><title>{text(series.label)}</title><path class="line {look(series.look)}" '
            f'd="{_path(series.points, frame)}"/>{_dot_path(dots, series.look)}</g>'
        )
    described = f'aria-labelledby="{chart.name}-title {chart.name}-desc"'
    return (
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" role="img" {described}>'
        f'<title id="{chart.name}-title">{text(chart.title)}</title>'
        f'<desc id="{chart.name}-desc">{text(chart.summary)}</desc>{"".join(parts)}</svg>'
    )


def _path(points: Array, frame: _Frame) -> str:
    pieces, pen = [], "M"
    for x, y in points:
        if not math.isfinite(y):
            pen = "M"
            continue
        pieces.append(f"{pen}{_units(frame.x(x))} {_units(frame.y(y))}")
        pen = "L"
    return "".join(pieces)


def _dots(points: Array, frame: _Frame) -> str:
    """A line of no length at each point: its round ends stay round however the plot is stretched."""
    finite = points[np.isfinite(points[:, 1])]
    if len(finite) > _MOST_MARKED:
        return ""
    return "".join(f"M{_units(frame.x(x))} {_units(frame.y(y))}h0" for x, y in finite)


def _dot_path(dots: str, index: int) -> str:
    return f'<path class="dots s{index % COLOURS}" d="{dots}"/>' if dots else ""


def _units(percent: float) -> int:
    # What lies far outside stays a short number; the plot cuts it off.
    return round(min(max(percent, -300.0), 400.0) * _SIDE / 100)


def _y_letters(frame: _Frame) -> str:
    digits = max((len(shown(tick).partition(".")[2]) for tick in frame.ticks), default=0)
    return "".join(f'<span style="top:{frame.y(tick):.1f}%">{tick:.{digits}f}</span>' for tick in frame.ticks)


def _x_letters(frame: _Frame, ticks: Sequence[float]) -> str:
    return "".join(f'<span style="left:{frame.x(tick):.1f}%">{tick:,.0f}</span>' for tick in ticks)


def _notes(chart: Chart, frame: _Frame) -> str:
    found = ""
    if chart.level is not None:
        found += (
            f'<span class="level" style="top:{frame.y(chart.level[0]):.1f}%">{text(chart.level[1])}</span>'
        )
    if chart.mark is not None and frame.holds(chart.mark[0]):
        place = frame.x(chart.mark[0])
        side = f"right:{100 - place:.1f}%" if place > 60 else f"left:{place:.1f}%"
        found += f'<span class="mark" style="{side}">{text(chart.mark[1])}</span>'
    return found


def _ends(drawn: Sequence[Series], frame: _Frame) -> str:
    """Each line's name at the height where it ends, moved apart where names would lie over each other."""
    if len(drawn) > MOST_LABELS:
        return ""
    finite = [series.points[np.isfinite(series.points[:, 1])] for series in drawn]
    wanted = sorted((min(max(frame.y(points[-1, 1]), 0.0), 100.0), i) for i, points in enumerate(finite))
    places = spread([place for place, _ in wanted], _LABEL_GAP)
    return "".join(
        f'<span style="top:{place:.1f}%">{swatch(drawn[i].look)}{text(drawn[i].label)}</span>'
        for place, (_, i) in zip(places, wanted, strict=True)
    )
