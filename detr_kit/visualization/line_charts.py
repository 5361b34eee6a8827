"""Charts of lines as inline SVG for the reports: curves over a score, a recall or epochs.

Lines differ in their dashes as well as in their colours, see `templates/page.html`, and a key under
the chart names them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from detr_kit.visualization.charts import (
    FONT_SIZE,
    WIDTH,
    Plot,
    Tick,
    child,
    draw_x_axis,
    markup,
    svg,
    written,
)
from detr_kit.visualization.texts import compact, fitted, readable, width_of

# Kinds of lines that can be told apart.
LOOKS = 4
# A line of fewer points has a dot at each: one point alone is no line.
_DOTTED_BELOW = 30
# Points of a line that are drawn; a chart has fewer units.
_MOST_POINTS = 400
_SAMPLE = 26
_KEY_ROW = 17


@dataclass(frozen=True)
class Line:
    """A line through the points of xs (N,) and ys (N,), broken where a y is not finite.

    One that is `thin` stands in the background and not in the key.
    """

    name: str
    xs: np.ndarray
    ys: np.ndarray
    is_thin: bool = False


@dataclass(frozen=True)
class Axis:
    """The range of an axis, its ticks and its name."""

    low: float
    high: float
    ticks: tuple[Tick, ...]
    label: str


@dataclass(frozen=True)
class Mark:
    """A place of the x axis that a stroke and a text point out."""

    position: float
    text: str


def share_axis(label: str) -> Axis:
    """Return an axis from 0 to 1."""
    return Axis(0.0, 1.0, tuple(Tick(part / 5, f"{part / 5:g}") for part in range(6)), label)


def axis_over(values: np.ndarray, label: str, *, from_zero: bool = False) -> Axis:
    """Return an axis with round ticks over the finite ones of `values`; 0 to 1 if there are none.

    `from_zero` begins a range of positive values at 0.
    """
    # What is drawn of larger numbers would pass what a float can hold.
    finite = np.clip(values[np.isfinite(values)], -1e304, 1e304)
    if not len(finite):
        return share_axis(label)
    low, high = float(finite.min()), float(finite.max())
    if from_zero:
        low = min(low, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    positions = [step * number for number in range(first, last + 1)]
    ticks = tuple(Tick(position, _tick_text(position)) for position in positions)
    return Axis(positions[0], positions[-1], ticks, label)


def whole_axis(low: int, high: int, label: str) -> Axis:
    """Return an axis over integers, such as epochs."""
    step = max(1, round(_round_step((high - low) / 6))) if high > low else 1
    first = step * -(-low // step)
    ticks = tuple(Tick(place, str(place)) for place in range(first, high + 1, step))
    return (
        Axis(low - 0.5, high + 0.5, ticks, label) if low == high else Axis(low, high, ticks, label)
    )


def _round_step(least: float) -> float:
    """Return 1, 2 or 5 times a power of ten that is `least` or more."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= least * (1 - 1e-9))


def _tick_text(value: float) -> str:
    return compact(value) if 1000 <= abs(value) < 1e12 else f"{value:.4g}"


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    x_axis: Axis,
    y_axis: Axis,
    mark: Mark | None = None,
    height: float = 180,
) -> str:
    """Return lines over two axes with a key under them; what lies outside is cut at the border.

    A line that is not thin has one of `LOOKS` kinds of dashes, by its place among these.
    """
    left = 12 + max(width_of(tick.text, FONT_SIZE) for tick in y_axis.ticks)
    plot = Plot(left, 22, WIDTH - left - 12, height, x_axis.low, x_axis.high)
    rows = _key_rows([line.name for line in lines if not line.is_thin])
    drawing = svg(label, WIDTH, plot.bottom + 40 + _KEY_ROW * len(rows))
    _draw_y_axis(drawing, plot, y_axis)
    draw_x_axis(drawing, plot, x_axis.ticks, x_axis.label)
    if mark is not None:
        _draw_mark(drawing, plot, mark, width_of(y_axis.label, FONT_SIZE) + 8)
    number = 0
    for line in sorted(lines, key=lambda line: not line.is_thin):
        look = "thin" if line.is_thin else f"look-{number % LOOKS + 1}"
        _draw_line(drawing, plot, y_axis, line, look)
        number += not line.is_thin
    _draw_key(drawing, rows, plot.bottom + 40)
    return markup(drawing)


def _draw_y_axis(drawing: ElementTree.Element, plot: Plot, axis: Axis) -> None:
    for tick in axis.ticks:
        y = _y(plot, axis, tick.position)
        child(drawing, "line", class_="grid", x1=plot.left, x2=plot.right, y1=y, y2=y)
        child(drawing, "text", tick.text, class_="end soft", x=plot.left - 5, y=y + 4)
    child(drawing, "text", axis.label, class_="soft", x=0, y=11)


def _y(plot: Plot, axis: Axis, value: float) -> float:
    return plot.bottom - plot.height * (value - axis.low) / (axis.high - axis.low)


def _draw_mark(drawing: ElementTree.Element, plot: Plot, mark: Mark, least_x: float) -> None:
    """Draw the stroke, and its text over the plot, where no line can run."""
    x = plot.x(min(max(mark.position, plot.x_from), plot.x_to))
    child(drawing, "line", class_="mark", x1=x, x2=x, y1=plot.top - 4, y2=plot.bottom)
    text = fitted(mark.text, WIDTH - least_x, FONT_SIZE)
    half = width_of(text, FONT_SIZE) / 2
    middle = max(min(x, WIDTH - half), least_x + half)
    child(drawing, "text", text, class_="middle", x=middle, y=11)


def _draw_line(
    drawing: ElementTree.Element, plot: Plot, y_axis: Axis, line: Line, look: str
) -> None:
    points = _points(plot, y_axis, line)
    group = child(drawing, "g", class_=look)
    child(group, "title", line.name)
    path = _path(points)
    if path:
        child(group, "path", class_="line", d=path)
    if len(points) < _DOTTED_BELOW and not line.is_thin:
        for x, y in points:
            if math.isfinite(y):
                child(group, "circle", class_="dot", cx=x, cy=y, r=2.5)


def _points(plot: Plot, y_axis: Axis, line: Line) -> list[tuple[float, float]]:
    kept = np.arange(len(line.xs))
    if len(kept) > _MOST_POINTS:
        kept = np.linspace(0, len(kept) - 1, _MOST_POINTS).astype(np.int64)
    xs = np.clip(line.xs[kept], plot.x_from, plot.x_to).tolist()
    ys = line.ys[kept].astype(np.float64)
    ys[~np.isfinite(ys)] = np.nan
    ys = np.clip(ys, y_axis.low, y_axis.high).tolist()
    return [(plot.x(x), _y(plot, y_axis, y)) for x, y in zip(xs, ys, strict=True)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Return the strokes between the points; the middle ones of a level stretch are left out."""
    parts = []
    for is_known, run in itertools.groupby(points, key=lambda point: math.isfinite(point[1])):
        if not is_known:
            continue
        texts = [(written(x), written(y)) for x, y in run]
        inner = zip(texts, texts[1:], texts[2:], strict=False)
        bends = [now for before, now, after in inner if not before[1] == now[1] == after[1]]
        shown = texts[:1] + bends + texts[1:][-1:]
        parts.append("M" + "L".join(f"{x} {y}" for x, y in shown))
    return "".join(parts)


def _key_rows(names: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Share out names to the rows of a key, each with its width."""
    rows: list[list[tuple[str, float]]] = []
    room = 0.0
    for name in names:
        shown = fitted(readable(name), WIDTH - _SAMPLE - 6, FONT_SIZE)
        width = _SAMPLE + 6 + width_of(shown, FONT_SIZE) + 12
        if not rows or room < width - 12:
            rows.append([])
            room = WIDTH
        rows[-1].append((shown, width))
        room -= width
    return rows


def _draw_key(
    drawing: ElementTree.Element, rows: Sequence[Sequence[tuple[str, float]]], top: float
) -> None:
    numbers = itertools.count()
    for place, row in enumerate(rows):
        x, y = 0.0, top + _KEY_ROW * place
        for name, width in row:
            group = child(drawing, "g", class_=f"look-{next(numbers) % LOOKS + 1}")
            sample = f"M{written(x)} {written(y + 8)}h{_SAMPLE}"
            child(group, "path", class_="line", d=sample)
            child(drawing, "text", name, x=x + _SAMPLE + 6, y=y + 12)
            x += width
