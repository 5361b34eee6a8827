"""Charts as inline SVG for the reports: bars and histograms.

They are drawn 360 units wide, about the pixels of a phone, so that their text stays legible there.
Colours come from the classes of `templates/page.html`, which knows light and dark.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from detr_kit.visualization.texts import compact, fitted, grouped, readable, width_of

WIDTH = 360
FONT_SIZE = 12


@dataclass(frozen=True)
class Tick:
    """A text at a position of an axis, in the unit of the axis."""

    position: float
    text: str


@dataclass(frozen=True)
class Figure:
    """A titled row of SVG drawings with a note under them."""

    title: str
    drawings: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Band:
    """A part of an axis, told by lines of text that are left out where there is no room.

    It is divided from the next one by a stroke.
    """

    start: float
    end: float
    lines: tuple[str, ...]


def element(tag: str, **attributes: float | str) -> ElementTree.Element:
    """Return an SVG element; `_` in names stands for `-`, numbers keep one decimal."""
    return ElementTree.Element(tag, _attributes(attributes))


def child(
    parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: float | str
) -> ElementTree.Element:
    """Append an SVG element, see `element`, that may hold a text."""
    added = ElementTree.SubElement(parent, tag, _attributes(attributes))
    added.text = None if text is None else readable(text)
    return added


def _attributes(values: dict[str, float | str]) -> dict[str, str]:
    return {name.rstrip("_").replace("_", "-"): written(value) for name, value in values.items()}


def written(value: float | str) -> str:
    """Return a number with one decimal at most."""
    return value if isinstance(value, str) else f"{round(float(value), 1):.10g}"


def svg(label: str, width: float, height: float) -> ElementTree.Element:
    """Return an empty drawing that a screen reader calls `label`."""
    box = f"0 0 {written(width)} {written(height)}"
    return element("svg", viewBox=box, role="img", aria_label=readable(label), class_="chart")


def markup(drawing: ElementTree.Element) -> str:
    """Return the text of a drawing; everything in it is escaped."""
    return ElementTree.tostring(drawing, encoding="unicode")


def bars(
    names: Sequence[str],
    values: Sequence[float],
    *,
    label: str,
    tooltips: Sequence[str],
    texts: Sequence[str] | None = None,
    top: float | None = None,
    name_width: float | None = None,
) -> str:
    """Return horizontal bars with their names before them and their values behind them.

    Values are counts unless `texts` says how they are written. Charts that are to be compared share
    `top`, the value of a full bar, and `name_width`, see `name_width_of`. Names that are wider are
    cut.
    """
    name_width = name_width_of(names) if name_width is None else name_width
    zero_class = "soft" if texts else "zero"
    if texts is None:
        top = max(1, top or 0, *values)
        texts, widest = [grouped(value) for value in values], [grouped(top)]
    else:
        top, widest = max(0, top or 0, *values) or 1, list(texts)
    left, row = name_width + 6, 19
    room = WIDTH - left - max(width_of(text, FONT_SIZE) for text in widest) - 4
    drawing = svg(label, WIDTH, row * len(names))
    for place, (name, value, text) in enumerate(zip(names, values, texts, strict=True)):
        y = row * place
        group = child(drawing, "g", class_="bin")
        child(group, "title", tooltips[place])
        child(group, "rect", class_="hit", x=0, y=y, width=WIDTH, height=row)
        shown = fitted(name, name_width, FONT_SIZE)
        child(group, "text", shown, x=left - 6, y=y + 14, class_="end")
        length = max(1.0, room * value / top) if value > 0 else 0.0
        if length:
            child(group, "rect", class_="bar", x=left, y=y + 3, width=length, height=row - 6)
        text_class = "soft" if length else zero_class
        child(group, "text", text, x=left + length + 4, y=y + 14, class_=text_class)
    return markup(drawing)


def name_width_of(names: Sequence[str]) -> float:
    """Return the room that `bars` gives to names: what the longest needs, or two fifths."""
    widths = [width_of(readable(name, 60), FONT_SIZE) for name in names]
    return min(max(widths, default=0.0), 0.4 * WIDTH)


def histogram(
    counts: np.ndarray,
    edges: np.ndarray,
    *,
    label: str,
    ticks: Sequence[Tick],
    tooltips: Sequence[str],
    x_label: str,
    y_label: str,
    bands: Sequence[Band] = (),
) -> str:
    """Return the histogram of counts (B,) between edges (B + 1,), with a tooltip for each bar.

    A scale that is not linear is up to the caller: `edges`, `ticks` and `bands` are positions.
    """
    plot = Plot(
        left=40,
        top=34 if bands else 22,
        width=WIDTH - 52,
        height=150,
        x_from=edges[0],
        x_to=edges[-1],
    )
    drawing = svg(label, WIDTH, plot.bottom + 38)
    highest = _draw_y_axis(drawing, plot, int(counts.max(initial=0)), y_label)
    for count, start, end, tooltip in zip(counts, edges[:-1], edges[1:], tooltips, strict=True):
        _draw_bin(drawing, plot, (start, end), plot.height * float(count) / highest, tooltip)
    _draw_bands(drawing, plot, bands)
    draw_x_axis(drawing, plot, ticks, x_label)
    return markup(drawing)


@dataclass(frozen=True)
class Plot:
    """Where the data of a chart are drawn."""

    left: float
    top: float
    width: float
    height: float
    x_from: float
    x_to: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def x(self, position: float) -> float:
        return self.left + self.width * (position - self.x_from) / (self.x_to - self.x_from)


def _draw_bin(
    drawing: ElementTree.Element,
    plot: Plot,
    span: tuple[float, float],
    height: float,
    tooltip: str,
) -> None:
    """Draw a bar, and over the whole height what shows its tooltip."""
    x = plot.x(span[0])
    width = plot.x(span[1]) - x
    group = child(drawing, "g", class_="bin")
    child(group, "title", tooltip)
    child(group, "rect", class_="hit", x=x, y=plot.top, width=width, height=plot.height)
    if height:
        height, gap = max(1.0, height), min(1.0, width / 5)
        place = {"x": written(x + gap / 2), "y": written(plot.bottom - height)}
        size = {"width": written(width - gap), "height": written(height)}
        child(group, "rect", None, class_="bar", **place, **size)


def _draw_y_axis(drawing: ElementTree.Element, plot: Plot, highest: int, label: str) -> int:
    """Draw lines at round numbers and return the number at the top of the plot."""
    steps = round_steps(highest)
    for value in steps:
        y = plot.bottom - plot.height * value / steps[-1]
        child(drawing, "line", class_="grid", x1=plot.left, x2=plot.right, y1=y, y2=y)
        child(drawing, "text", compact(value), class_="end soft", x=plot.left - 5, y=y + 4)
    child(drawing, "text", label, class_="soft", x=0, y=11)
    return steps[-1]


def round_steps(highest: int, most: int = 5) -> list[int]:
    """Return the multiples of 1, 2 or 5 times a power of ten from 0 until `highest` is reached."""
    highest = max(highest, 1)
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    step = next(step for step in steps if step * most >= highest)
    return [step * number for number in range(-(-highest // step) + 1)]


def draw_x_axis(
    drawing: ElementTree.Element, plot: Plot, ticks: Sequence[Tick], label: str
) -> None:
    """Write the ticks: all, or every second, third ... where they would overlap."""
    child(
        drawing, "line", class_="axis", x1=plot.left, x2=plot.right, y1=plot.bottom, y2=plot.bottom
    )
    for tick in ticks[:: _stride(plot, ticks)]:
        x, y = plot.x(tick.position), plot.bottom
        child(drawing, "line", class_="axis", x1=x, x2=x, y1=y, y2=y + 4)
        # The last one may not leave the drawing.
        x = min(x, WIDTH - width_of(tick.text, FONT_SIZE) / 2)
        child(drawing, "text", tick.text, class_="middle soft", x=x, y=y + 16)
    middle = plot.left + plot.width / 2
    child(drawing, "text", label, class_="middle soft", x=middle, y=plot.bottom + 33)


def _stride(plot: Plot, ticks: Sequence[Tick]) -> int:
    spans = [(plot.x(tick.position), width_of(tick.text, FONT_SIZE) / 2 + 2) for tick in ticks]
    stride = 1
    while any(
        x - half < before + half_before
        for (before, half_before), (x, half) in itertools.pairwise(spans[::stride])
    ):
        stride += 1
    return stride


def _draw_bands(drawing: ElementTree.Element, plot: Plot, bands: Sequence[Band]) -> None:
    for place, band in enumerate(bands):
        left = max(plot.left, plot.x(band.start))
        right = min(plot.right, plot.x(band.end))
        if place:
            child(
                drawing, "line", class_="mark", x1=left, x2=left, y1=plot.top - 26, y2=plot.bottom
            )
        if any(width_of(line, FONT_SIZE) > right - left for line in band.lines):
            continue
        for number, line in enumerate(band.lines):
            y = plot.top - 17 + 13 * number
            child(drawing, "text", line, class_="middle", x=(left + right) / 2, y=y)


def data_uri(kind: str, content: bytes) -> str:
    """Return bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
