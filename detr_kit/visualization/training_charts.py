"""The curves of a run as SVG: losses, AP and learning rate over epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detr_kit.visualization.charts import Figure
from detr_kit.visualization.line_charts import (
    Axis,
    Line,
    axis_over,
    line_chart,
    whole_axis,
)

_LOSSES = (("class", "class"), ("l1", "L1"), ("giou", "GIoU"))
_SCORES = (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"))


def training_figures(history: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Show the rows of a `metrics.jsonl`, see `detr_kit.training.recorder`; nothing of none.

    What a row does not hold, or holds as no finite number, is left out.
    """
    if not history:
        return []
    train = [_part(row, "train") for row in history]
    scores = [_part(row, "val") for row in history]
    epochs = np.array([_number(row.get("epoch")) for row in history])
    if not np.isfinite(epochs).all():
        epochs = np.arange(1.0, len(history) + 1)
    x_axis = whole_axis(int(epochs.min()), int(epochs.max()), "epoch")
    losses = [_line(name, key, train, epochs) for key, name in _LOSSES]
    total = [_line("weighted sum of all layers", "loss", train, epochs)]
    validation = [_line(name, key, scores, epochs) for key, name in _SCORES]
    rate = [_line("learning rate", "lr", history, epochs)]
    return [
        _figure("Losses of the last layer", losses, x_axis, "loss"),
        _figure("Training loss", total, x_axis, "loss"),
        _figure("AP in validation", validation, x_axis, "AP"),
        _figure("Learning rate", rate, x_axis, "learning rate"),
    ]


def _part(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = row.get(name)
    return part if isinstance(part, Mapping) else {}


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def _line(name: str, key: str, rows: Sequence[Mapping[str, Any]], epochs: np.ndarray) -> Line:
    """Return the points of the rows that have the value: not each epoch is evaluated."""
    values = np.array([_number(row.get(key)) for row in rows])
    known = np.isfinite(values)
    return Line(name, epochs[known], values[known])


def _figure(title: str, lines: Sequence[Line], x_axis: Axis, y_label: str) -> Figure:
    lines = [line for line in lines if len(line.xs)]
    if not lines:
        return Figure(title, (), "The history holds none.")
    values = np.concatenate([line.ys for line in lines])
    y_axis = axis_over(values, y_label, from_zero=True)
    ends = ", ".join(f"{line.name} {line.ys[-1]:.4g}" for line in lines)
    drawing = line_chart(
        lines, label=f"{title}, at the end {ends}", x_axis=x_axis, y_axis=y_axis, height=150
    )
    return Figure(title, (drawing,), f"At the end: {ends}.")
