"""The curves of a run: losses and AP over epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_write
from detr_kit.visualization.histories import value_of

_LOSSES = (("class", "class"), ("l1", "L1"), ("giou", "GIoU"))
_FIGURES = (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"))


def draw_curves(metrics: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Draw the rows of a `metrics.jsonl` into a PNG: losses on the left, AP on the right.

    The losses are those of the last decoder layer, unweighted. Raises DetrKitError where there is
    no epoch to draw.
    """
    if not metrics:
        raise DetrKitError(f"{path}: no finished epoch to draw")
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for key, label in _LOSSES:
        _draw(losses, _points(metrics, "train", key), label)
    for key, label in _FIGURES:
        _draw(scores, _points(metrics, "val", key), label)
    losses.set_title("training losses")
    scores.set_title("validation")
    scores.set_ylim(0, 1)
    for axes in (losses, scores):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _points(metrics: Sequence[dict[str, Any]], part: str, key: str) -> list[tuple[int, float]]:
    """Return epochs and values of the rows that have a value: not each epoch is evaluated."""
    values = [(row["epoch"], value_of(row, part, key)) for row in metrics]
    return [(epoch, value) for epoch, value in values if math.isfinite(value)]


def _draw(axes: Axes, points: list[tuple[int, float]], label: str) -> None:
    if points:
        # One finished epoch is a dot, which a line alone would not show.
        axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
