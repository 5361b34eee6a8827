"""The confusion matrix of an evaluation's report: in numbers for few classes, else as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from detr_kit.evaluation.confusion import ConfusionMatrix
from detr_kit.visualization.charts import (
    FONT_SIZE,
    WIDTH,
    Figure,
    child,
    markup,
    name_width_of,
    svg,
    written,
)
from detr_kit.visualization.heat_maps import HEAT_RGB, heat_map
from detr_kit.visualization.texts import compact, counted, fitted, percent, readable, width_of

# So many classes are shown with names and numbers.
GRID_CLASSES = 8
# The last row, and the last column.
BACKGROUND, NOT_FOUND = "background", "not found"
# Pairs of fewer objects may be chance.
LEAST_PAIR = 3
# Cells of a picture that have a tooltip, those of the highest counts: each takes 130 bytes or more.
_MOST_TOOLTIPS = 600
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
    """Return up to `most` pairs of different classes.

    Those of `LEAST_PAIR` objects or more come first, by the share of the true class's objects that
    they are, then rarer ones by their number: else a frequent class would fill the list.
    """
    rows, columns = np.nonzero(confusion.counts[:-1, :-1])
    is_between = rows != columns
    rows, columns = rows[is_between], columns[is_between]
    between, totals = confusion.counts[rows, columns], confusion.counts.sum(axis=1)
    of_many = between >= LEAST_PAIR
    keys = (between / totals[rows], np.where(of_many, 0, between), of_many)
    order = np.lexsort([-key.astype(np.float64) for key in keys])[:most]
    return [
        ConfusedPair(
            readable(confusion.names[rows[place]], 60),
            readable(confusion.names[columns[place]], 60),
            int(between[place]),
            percent(between[place], totals[rows[place]]),
        )
        for place in order.tolist()
    ]


def confusion_figure(confusion: ConfusionMatrix) -> Figure:
    """Show the matrix with background, row by row as shares of a true class's objects."""
    if len(confusion.names) <= GRID_CLASSES:
        return _grid_figure(confusion)
    found = percent(np.trace(confusion.counts), confusion.counts[:-1].sum())
    drawing = heat_map(
        _percents(confusion.counts),
        label=f"Confusion matrix of {len(confusion.names)} classes: {found} of the objects found",
        x_label="detected as",
        y_label="true class",
        unit="%",
        tooltips=_tooltips(confusion),
        height=290,
    )
    note = (
        "Point at a cell to see its classes. Each row adds up to 100 %. Classes in the order of "
        "the annotation file; the last row are detections of nothing, the last column objects not "
        "found."
    )
    return Figure("Confusion matrix", (drawing,), note)


def _percents(counts: np.ndarray) -> np.ndarray:
    """Return the cells (C, C) as whole percent of their row, in uint8.

    Row by row: of a thousand classes a copy in a wider type would be large.
    """
    percents = np.empty(counts.shape, dtype=np.uint8)
    for row, cells in enumerate(counts):
        percents[row] = np.rint(100 * cells / max(int(cells.sum()), 1))
    return percents


def _tooltips(confusion: ConfusionMatrix) -> dict[tuple[int, int], str]:
    """Return the texts of the cells of a picture that hold most, by row and column."""
    counts = confusion.counts
    totals = counts.sum(axis=1)
    names = [readable(name, 40) for name in confusion.names]
    filled = np.nonzero(counts)
    order = np.argsort(-counts[filled], kind="stable")[:_MOST_TOOLTIPS]
    rows, columns = (places[order].tolist() for places in filled)
    return {
        (row, column): f"{_cell_text(names, row, column)}: {counted(counts[row, column], 'time')}, "
        f"{percent(counts[row, column], totals[row])}"
        for row, column in zip(rows, columns, strict=True)
    }


def _cell_text(names: Sequence[str], row: int, column: int) -> str:
    true = [*names, BACKGROUND][row]
    return f"{true} {NOT_FOUND}" if column == len(names) else f"{true} detected as {names[column]}"


def _grid_figure(confusion: ConfusionMatrix) -> Figure:
    rows, names = [*confusion.names, BACKGROUND], [*confusion.names, NOT_FOUND]
    left = min(name_width_of(rows), 0.3 * WIDTH) + 26
    cell_wh = width, height = (WIDTH - left) / len(names), min((WIDTH - left) / len(names), 44)
    is_turned = name_width_of(names) > width - 4
    top = 22 + (min(name_width_of(names), _HEADER_MOST) + 4 if is_turned else 14)
    drawing = svg("Confusion matrix", WIDTH, top + height * len(names))
    _draw_headers(drawing, rows, names, (left, top), cell_wh, is_turned)
    totals = np.maximum(confusion.counts.sum(axis=1), 1)
    for row in range(len(names)):
        for column in range(len(names)):
            if row == column == len(names) - 1:
                continue
            count = int(confusion.counts[row, column])
            _draw_cell(
                drawing,
                (left + width * column, top + height * row),
                cell_wh,
                count / int(totals[row]),
                count,
                f"{_cell_text(confusion.names, row, column)}: {counted(count, 'time')}",
                "cell right" if row == column else "cell",
            )
    note = (
        "Rows: what an object is; columns: what it was detected as. The framed diagonal is right, "
        "the last row are detections of nothing, the last column objects not found in any class."
    )
    return Figure("Confusion matrix", (markup(drawing),), note)


def _draw_headers(
    drawing: ElementTree.Element,
    rows: list[str],
    columns: list[str],
    corner_xy: tuple[float, float],
    cell_wh: tuple[float, float],
    is_turned: bool,
) -> None:
    """Write the classes to the left of the cells and above them, there upwards if need be."""
    left, top = corner_xy
    width, height = cell_wh
    child(drawing, "text", "detected as", class_="middle soft", x=(left + WIDTH) / 2, y=11)
    middle = top + height * len(rows) / 2
    turned = f"rotate(-90 11 {written(middle)})"
    child(drawing, "text", "true class", class_="middle soft", x=11, y=middle, transform=turned)
    for place, name in enumerate(rows):
        y = top + height * (place + 0.5) + 4
        child(drawing, "text", fitted(name, left - 26, FONT_SIZE), class_="end", x=left - 5, y=y)
    for place, name in enumerate(columns):
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
