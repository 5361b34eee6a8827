"""All that explains the figures of an evaluation, computed from its matches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detr_kit.evaluation.breakdowns import Breakdown, breakdowns
from detr_kit.evaluation.calibration import Calibration, calibration
from detr_kit.evaluation.coco import Evaluation
from detr_kit.evaluation.confusion import ConfusionMatrix, confusion_matrix
from detr_kit.evaluation.curves import (
    PrecisionRecallCurves,
    ScoreCurves,
    precision_recall_curves,
    score_curves,
)
from detr_kit.evaluation.error_kinds import ErrorKinds, error_kinds

USUAL_IOU = 0.5
# A matrix of so many classes has four million cells; of LVIS' 1,203, 1.4 million.
MOST_CONFUSED = 2_000


@dataclass(frozen=True)
class Analysis:
    """What a report shows; all but the precision-recall curves by IoU are at one `iou`.

    `score_threshold` is the one of the best F1 of all classes together, 0.5 where nothing is right;
    the confusion matrix is at that, and None of more than MOST_CONFUSED classes. `calibration` is
    None where scores are not in [0, 1].
    """

    evaluation: Evaluation
    iou: float
    precision_recall: PrecisionRecallCurves
    score_curves: ScoreCurves
    score_threshold: float
    calibration: Calibration | None
    confusion: ConfusionMatrix | None
    errors: ErrorKinds
    breakdowns: tuple[Breakdown, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for json, without the curves: None is null there."""
        names = self.evaluation.table.class_names
        errors = self.errors
        return {
            "iou": self.iou,
            "thresholds": self.score_curves.to_dict(names),
            "errors": {
                "ap": errors.ap,
                "counts": errors.counts,
                "costs": errors.costs,
                "false_positive_cost": errors.false_positive_cost,
                "missed_cost": errors.missed_cost,
            },
            "calibration_error": None if self.calibration is None else self.calibration.error,
            "score_threshold": self.score_threshold,
            "confusion": None if self.confusion is None else _cells(self.confusion),
            "breakdowns": {part.title: part.to_dict() for part in self.breakdowns},
        }


def _cells(confusion: ConfusionMatrix) -> list[dict[str, Any]]:
    """Return the cells that are not 0, most first; None is nothing: no object, or none found."""
    names = [*confusion.names, None]
    rows, columns = np.nonzero(confusion.counts)
    counts = confusion.counts[rows, columns]
    return [
        {"true": names[rows[place]], "found": names[columns[place]], "count": int(counts[place])}
        for place in np.argsort(-counts, kind="stable").tolist()
    ]


def analyse(evaluation: Evaluation) -> Analysis:
    """Explain an evaluation, at IoU 0.5 or at the lowest threshold where that is not evaluated."""
    options = evaluation.table.options
    has_usual = options.threshold_index(USUAL_IOU) is not None
    iou = USUAL_IOU if has_usual else options.iou_thresholds[0]
    by_score = score_curves(evaluation, iou)
    best = by_score.pooled_best_threshold
    score_threshold = 0.5 if best is None else best
    has_few_classes = evaluation.table.num_classes <= MOST_CONFUSED
    return Analysis(
        evaluation,
        iou,
        precision_recall=precision_recall_curves(evaluation, iou),
        score_curves=by_score,
        score_threshold=score_threshold,
        calibration=calibration(evaluation, iou),
        confusion=confusion_matrix(evaluation, score_threshold, iou) if has_few_classes else None,
        errors=error_kinds(evaluation, iou),
        breakdowns=breakdowns(evaluation, iou),
    )
