"""Comparing runs by their records."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.files import is_one_of
from detr_kit.training.run_files import METRICS_FILE, read_metrics
from detr_kit.visualization.run_comparison import RunSummary, XAxis, draw_runs, summary_of


class UnfinishedRunWarning(DetrKitWarning):
    """A run has no finished epoch yet."""


def plot_runs(
    folders: Sequence[str | Path], out: str | Path, *, metric: str = "ap", x: XAxis = "epoch"
) -> list[RunSummary]:
    """Draw the curves of runs into one picture or HTML page, and return what each came to.

    `metric` is a figure of the validation, see `draw_runs`. Runs without a finished epoch are left
    out with a warning. Raises DetrKitError for a folder that is no run, a broken record, a metric
    that no run has, and where no run has an epoch to draw.
    """
    paths = [Path(folder) for folder in folders]
    runs = dict(zip(_names(paths), map(_rows, paths), strict=True))
    if is_one_of(out, [path / METRICS_FILE for path in paths]):
        raise DetrKitError(f"{out}: it is a file of a run; choose another to write")
    draw_runs(runs, out, metric=metric, x=x)
    for name, rows in runs.items():
        if not rows:
            warnings.warn(f"{name}: no finished epoch yet", UnfinishedRunWarning, stacklevel=2)
    return [summary_of(name, rows, metric) for name, rows in runs.items() if rows]


def _rows(folder: Path) -> list[dict[str, Any]]:
    if not folder.is_dir():
        raise DetrKitError(f"{folder}: no such run")
    return read_metrics(folder)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return each folder's name, or its path below what all have in common, where names repeat."""
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise DetrKitError(f"{twice}: named twice")
    names = [place.name for place in places]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath(places)
    return [place.relative_to(common).as_posix() for place in places]
