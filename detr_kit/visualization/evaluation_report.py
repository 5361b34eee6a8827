"""The page of an evaluation: figures, what costs AP, curves, classes and pictures of mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_kit.errors import DetrKitError
from detr_kit.evaluation.analysis import MOST_CONFUSED, Analysis
from detr_kit.evaluation.doubts import doubts_of
from detr_kit.evaluation.match_table import MatchTable
from detr_kit.files import is_one_of
from detr_kit.visualization.charts import Figure
from detr_kit.visualization.confusion_charts import (
    GRID_CLASSES,
    LEAST_PAIR,
    ConfusedPair,
    confused_pairs,
    confusion_figure,
)
from detr_kit.visualization.error_charts import MEANINGS, ap_name, error_figures
from detr_kit.visualization.evaluation_charts import (
    breakdown_figure,
    calibration_figures,
    class_curves_figure,
    precision_recall_figure,
    score_figure,
)
from detr_kit.visualization.evaluation_head import ap_text, rules, tiles
from detr_kit.visualization.evaluation_pictures import EvaluationPictures, evaluation_pictures
from detr_kit.visualization.page import write_page
from detr_kit.visualization.texts import decimal
from detr_kit.visualization.training_charts import training_figures

# The most that is shown, and the bytes of the JPEGs of each picture and crop.
_WORST, _CROPS, _PAIRS = 8, 12, 12
_PICTURE_BYTES, _CROP_BYTES = 30_000, 8_000


@dataclass(frozen=True)
class _Detail:
    """How much is told: pictures, crops of each sort, rows of the long table, lines of a list."""

    worst: int
    crops: int
    classes: int
    cases: int


# Tried in turn until the page is small enough.
_DETAILS = (
    _Detail(8, 12, 2000, 20),
    _Detail(4, 8, 500, 10),
    _Detail(2, 4, 100, 3),
    _Detail(0, 0, 0, 0),
)
# Classes of a table that is not folded, and of each end of one that is.
_UNFOLDED = 24
_END = 8


@dataclass(frozen=True)
class _ClassRow:
    """A class in the table; texts, and its AP as a number of percent for a bar."""

    name: str
    ap: str
    percent: str
    ap50: str
    num_objects: int
    threshold: str
    f1: str


@dataclass(frozen=True)
class _ClassTables:
    """All classes in one table, or the two ends by AP and all by name."""

    by_ap: list[_ClassRow]
    best: list[_ClassRow]
    worst: list[_ClassRow]
    by_name: list[_ClassRow]
    has_ap50: bool


def write_evaluation_report(
    analysis: Analysis,
    out: str | Path,
    *,
    images: str | Path | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    title: str,
    subtitle: str = "",
) -> None:
    """Write one HTML file that shows how good a detector is, and what it gets wrong.

    With `images`, the folder of the pictures, the worst images, confident wrong detections and
    missed objects are drawn; with `history`, the rows of a `metrics.jsonl`, the curves of the
    training. The page loads nothing and runs nothing; it tells less where it would be larger than
    `page.MAX_BYTES`. The same data give the same page. Raises DetrKitError where `out` is the
    annotation file or the results file, and where `images` is no folder.
    """
    out = Path(out)
    evaluation = analysis.evaluation
    if is_one_of(out, [evaluation.truth.path, evaluation.table.found.name]):
        raise DetrKitError(f"{out}: it is a file that was evaluated; choose another to write")
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise DetrKitError(f"{folder}: no such image folder")
    values = {
        "title": title,
        "subtitle": subtitle,
        "doubts": doubts_of(evaluation.table),
        "tiles": tiles(analysis),
        "rules": rules(evaluation.table.options),
        "ap": ap_text(analysis),
        "ap_at_iou": ap_name(analysis.iou),
        "iou": f"{analysis.iou:.4g}",
        "score": f"score {analysis.score_threshold:.3g} or more",
        "meanings": MEANINGS,
        "errors": error_figures(analysis),
        "curves": _curves(analysis),
        "confusion": None if analysis.confusion is None else confusion_figure(analysis.confusion),
        "most_confused": MOST_CONFUSED,
        "pairs": _pairs(analysis),
        "least_pair": LEAST_PAIR,
        "breakdowns": [breakdown_figure(part, analysis.iou) for part in analysis.breakdowns],
        "classes": _class_tables(analysis),
        "folder": None if folder is None else str(folder),
        "pictures": _pictures(analysis, folder),
        "training": training_figures(history),
    }
    write_page(out, "evaluation.html", _DETAILS, values)


def _curves(analysis: Analysis) -> list[Figure]:
    figures = [precision_recall_figure(analysis.precision_recall)]
    names = analysis.evaluation.table.class_names
    if len(names) > 1:
        num_objects = _num_objects(analysis.evaluation.table)
        figures.append(class_curves_figure(analysis.precision_recall, names, num_objects))
    figures.append(score_figure(analysis.score_curves))
    return [*figures, *calibration_figures(analysis.calibration)]


def _pairs(analysis: Analysis) -> list[ConfusedPair]:
    confusion = analysis.confusion
    if confusion is None or len(confusion.names) <= GRID_CLASSES:
        return []
    return confused_pairs(confusion, _PAIRS)


def _class_tables(analysis: Analysis) -> _ClassTables:
    """Return rows by falling AP, those without objects last; long tables have their ends apart."""
    rows = _class_rows(analysis)
    aps = list(analysis.evaluation.metrics.per_class.values())
    keys = [-math.inf if ap is None else ap for ap in aps]
    order = sorted(range(len(rows)), key=lambda place: -keys[place])
    has_ap50 = bool(analysis.evaluation.metrics.per_class_ap50)
    if len(rows) <= _UNFOLDED:
        return _ClassTables([rows[place] for place in order], [], [], [], has_ap50)
    known = [rows[place] for place in order if aps[place] is not None]
    best, worst = known[:_END], known[_END:][::-1][:_END]
    by_name = sorted(rows, key=lambda row: row.name.casefold())
    return _ClassTables([], best, worst, by_name, has_ap50)


def _class_rows(analysis: Analysis) -> list[_ClassRow]:
    evaluation, curves = analysis.evaluation, analysis.score_curves
    ap50s = evaluation.metrics.per_class_ap50
    num_objects = _num_objects(evaluation.table)
    return [
        _ClassRow(
            name,
            _number(ap),
            f"{100 * (ap or 0.0):.0f}%",
            _number(ap50s.get(name)),
            int(num_objects[place]),
            _number(float(curves.best_thresholds[place])),
            _number(float(curves.best_f1[place])),
        )
        for place, (name, ap) in enumerate(evaluation.metrics.per_class.items())
    ]


def _num_objects(table: MatchTable) -> np.ndarray:
    return table.at(0).num_objects


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else decimal(value)


def _pictures(analysis: Analysis, folder: Path | None) -> EvaluationPictures:
    return evaluation_pictures(
        analysis,
        folder,
        num_worst=_WORST,
        num_crops=_CROPS,
        max_bytes=_PICTURE_BYTES,
        max_crop_bytes=_CROP_BYTES,
    )
