"""The confusion matrix of an evaluation's report: in numbers for few classes, else as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from detr_kit.evaluation.confusion import ConfusionMatrix
from detr_kit.visualization.charts import (
    FONT_SIZE,
    HEAT_RGB,
    WIDTH,
    Figure,
    child,
    heat_map,
    markup,
    name_width_of,
    svg,
    written,
)
from detr_kit.visualization.texts import compact, counted, fitted, percent, readable, width_of

# So many classes are shown with names and numbers.
GRID_CLASSES = 8
BACKGROUND = "background"
# Text stays legible on the fullest colour, on light and on dark ground.
_FULL = 0.55
_HEADER_MOST = 90


@dataclass(frozen=True)
class ConfusedPair:
    """Objects of class `true` that were detected as `predicted`, and their share of its objects."""

    true: str
    predicted: str
    count: int
    share: str


def confused_pairs(confusion: ConfusionMatrix, most: int) -> list[ConfusedPair]:
    """Return up to `most` pairs of different classes, the most frequent first."""
    between = confusion.counts[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:most]
    pairs = []
    for true, predicted in zip(*np.unravel_index(order, between.shape), strict=True):
        count = int(between[true, predicted])
        if count:
            share = percent(count, confusion.counts[true].sum())
            name, other = (readable(confusion.names[k], 60) for k in (true, predicted))
            pairs.append(ConfusedPair(name, other, count, share))
    return pairs


def confusion_figure(confusion: ConfusionMatrix) -> Figure:
    """Show the matrix with background, row by row as shares of a true class's objects."""
    if len(confusion.names) <= GRID_CLASSES:
        return _grid_figure(confusion)
    totals = np.maximum(confusion.counts.sum(axis=1, keepdims=True), 1)
    shares = np.rint(100 * confusion.counts / totals).astype(np.int64)
    found = percent(np.trace(confusion.counts), confusion.counts[:-1].sum())
    drawing = heat_map(
        shares,
        label=f"Confusion matrix of {len(confusion.names)} classes: {found} of the objects found",
        x_label="detected as",
        y_label="true class",
        unit="%",
    )
    note = (
        "Each row adds up to 100 %. Classes in the order of the annotation file; the last row and "
        "column are background: detections of nothing, and objects not found."
    )
    return Figure("Confusion matrix", (drawing,), note)


def _grid_figure(confusion: ConfusionMatrix) -> Figure:
    names = [*confusion.names, BACKGROUND]
    left = min(name_width_of(names), 0.3 * WIDTH) + 26
    cell_wh = width, height = (WIDTH - left) / len(names), min((WIDTH - left) / len(names), 44)
    is_turned = name_width_of(names) > width - 4
    top = 22 + (min(name_width_of(names), _HEADER_MOST) + 4 if is_turned else 14)
    drawing = svg("Confusion matrix", WIDTH, top + height * len(names))
    _draw_headers(drawing, names, (left, top), cell_wh, is_turned)
    totals = np.maximum(confusion.counts.sum(axis=1), 1)
    for row, true in enumerate(names):
        for column, predicted in enumerate(names):
            if row == column == len(names) - 1:
                continue
            count = int(confusion.counts[row, column])
            _draw_cell(
                drawing,
                (left + width * column, top + height * row),
                cell_wh,
                count / int(totals[row]),
                count,
                f"{true} detected as {predicted}: {counted(count, 'time')}",
                "cell right" if row == column else "cell",
            )
    note = (
        "Rows: what an object is; columns: what it was detected as. The framed diagonal is right, "
        "the last row are detections of nothing, the last column objects not found."
    )
    return Figure("Confusion matrix", (markup(drawing),), note)


def _draw_headers(
    drawing: ElementTree.Element,
    names: list[str],
    corner_xy: tuple[float, float],
    cell_wh: tuple[float, float],
    is_turned: bool,
) -> None:
    """Write the classes to the left of the cells and above them, there upwards if need be."""
    left, top = corner_xy
    width, height = cell_wh
    child(drawing, "text", "detected as", class_="middle soft", x=(left + WIDTH) / 2, y=11)
    middle = top + height * len(names) / 2
    turned = f"rotate(-90 11 {written(middle)})"
    child(drawing, "text", "true class", class_="middle soft", x=11, y=middle, transform=turned)
    for place, name in enumerate(names):
        y = top + height * (place + 0.5) + 4
        child(drawing, "text", fitted(name, left - 26, FONT_SIZE), class_="end", x=left - 5, y=y)
        x = left + width * (place + 0.5)
        if is_turned:
            x += 4
            turned = f"rotate(-90 {written(x)} {written(top - 5)})"
            shown = fitted(name, _HEADER_MOST, FONT_SIZE)
            child(drawing, "text", shown, x=x, y=top - 5, transform=turned)
        else:
            child(drawing, "text", name, class_="middle", x=x, y=top - 5)


def _draw_cell(
    drawing: ElementTree.Element,
    corner_xy: tuple[float, float],
    cell_wh: tuple[float, float],
    share: float,
    count: int,
    tooltip: str,
    look: str,
) -> None:
    x, y = corner_xy
    width, height = cell_wh
    group = child(drawing, "g")
    child(group, "title", tooltip)
    rect = child(group, "rect", class_=look, x=x + 1, y=y + 1, width=width - 2, height=height - 2)
    rect.attrib |= {"fill": f"rgb{HEAT_RGB}", "fill-opacity": f"{_FULL * share:.2f}"}
    text = _short(count)
    look = "middle" if width_of(text, FONT_SIZE) <= width else "middle tiny"
    child(group, "text", text, class_=look, x=x + width / 2, y=y + height / 2 + 4)


def _short(count: int) -> str:
    """Write a count in five signs at most."""
    return str(count) if count < 10_000 else compact(float(f"{count:.2g}"))
