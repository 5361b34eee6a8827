"""All that explains the figures of an evaluation, computed from its matches."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Analysis:
    """What a report shows; all but the precision-recall curves by IoU are at one `iou`.

    `calibration` is None where scores are not in [0, 1]. The confusion matrix is at the score
    threshold that is best for all classes together.
    """

    evaluation: Evaluation
    iou: float
    precision_recall: PrecisionRecallCurves
    score_curves: ScoreCurves
    calibration: Calibration | None
    confusion: ConfusionMatrix
    errors: ErrorKinds
    breakdowns: tuple[Breakdown, ...]


def analyse(evaluation: Evaluation) -> Analysis:
    """Explain an evaluation, at IoU 0.5 or at the lowest threshold where that is not evaluated."""
    options = evaluation.table.options
    has_usual = options.threshold_index(USUAL_IOU) is not None
    iou = USUAL_IOU if has_usual else options.iou_thresholds[0]
    by_score = score_curves(evaluation, iou)
    best = by_score.pooled_best_threshold
    return Analysis(
        evaluation,
        iou,
        precision_recall=precision_recall_curves(evaluation, iou),
        score_curves=by_score,
        calibration=calibration(evaluation, iou),
        confusion=confusion_matrix(evaluation, 0.5 if best is None else best, iou),
        errors=error_kinds(evaluation, iou),
        breakdowns=breakdowns(evaluation, iou),
    )
