"""The curves of a run as SVG: losses, AP, rates, gradients and the matching over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detr_kit.visualization.charts import Figure
from detr_kit.visualization.histories import values_of
from detr_kit.visualization.line_charts import (
    Axis,
    Line,
    axis_over,
    line_chart,
    whole_axis,
)

Rows = Sequence[Mapping[str, Any]]

_LOSSES = (("class", "class"), ("l1", "L1"), ("giou", "GIoU"))
_SCORES = (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"))
_CHANGED = ("matching", "query_changed")


def training_figures(history: Rows) -> list[Figure]:
    """Show the rows of a `metrics.jsonl`, see `detr_kit.training.run_files`; nothing of none.

    What a row does not hold, or holds as no finite number, is left out.
    """
    if not history:
        return []
    epochs = values_of(history, "epoch")
    if not np.isfinite(epochs).all():
        epochs = np.arange(1.0, len(history) + 1)
    x_axis = whole_axis(int(epochs.min()), int(epochs.max()), "epoch")

    def line(name: str, *keys: str) -> Line:
        """Return the points of the rows that have the value: not each epoch is evaluated."""
        values = values_of(history, *keys)
        known = np.isfinite(values)
        return Line(name, epochs[known], values[known])

    losses = [line(name, "train", key) for key, name in _LOSSES]
    total = [line("weighted sum of all layers", "train", "loss")]
    validation = [line(name, "val", key) for key, name in _SCORES]
    figures = [
        _figure("Losses of the last layer", losses, x_axis, "loss"),
        _figure("Training loss", total, x_axis, "loss"),
        _figure("AP in validation", validation, x_axis, "AP"),
        _figure("Learning rate", [line("learning rate", "lr")], x_axis, "learning rate"),
    ]
    # Not every run records these.
    more = [
        ("Gradient norm", line("before clipping", "train", "grad_norm"), "norm"),
        (
            "Settling of the matching",
            line("objects found by another query than an epoch before", *_CHANGED),
            "share",
        ),
    ]
    figures += [
        _figure(title, [drawn], x_axis, label) for title, drawn, label in more if len(drawn.xs)
    ]
    return figures


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
