"""Whether a score means what it says: of the detections scored 0.8, are 80 % right?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detr_kit.errors import DetrKitError
from detr_kit.evaluation.coco import Evaluation


@dataclass(frozen=True)
class Calibration:
    """Scores and precisions of detections in B bins of score, equally wide.

    - `edges` (B + 1,), 0 to 1; a bin holds its upper edge, the first one 0 too;
    - `counts` (B,) int64: detections;
    - `mean_scores`, `precisions` (B,): the mean score, and the share that is right; NaN where a
      bin is empty;
    - `error`: the expected calibration error; None where no detection counts.
    """

    edges: np.ndarray
    counts: np.ndarray
    mean_scores: np.ndarray
    precisions: np.ndarray
    error: float | None
    iou: float


def calibration(evaluation: Evaluation, iou: float = 0.5, bins: int = 15) -> Calibration | None:
    """Return how far scores are from the precision at an IoU; None for scores outside [0, 1].

    The expected calibration error is the sum over bins of (detections of the bin / all detections)
    times |precision - mean score| (Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3),
    with the precision in the place of the accuracy of a classifier (Küppers et al. 2020,
    https://arxiv.org/abs/2004.13546). Over all detections that count at the IoU, of all classes;
    many with low scores, as detectors with queries give, therefore weigh much.

    Raises DetrKitError where `iou` is not among the thresholds of the evaluation, or `bins` is
    below 1.
    """
    index = evaluation.table.options.required_threshold_index(iou)
    if bins < 1:
        raise DetrKitError(f"calibration needs 1 bin or more, got {bins}")
    all_scores = evaluation.table.found.scores
    if all_scores.min(initial=0.0) < 0 or all_scores.max(initial=1.0) > 1:
        return None
    matches = evaluation.table.at(index)
    counted = ~matches.ignored
    scores, is_true = matches.scores[counted], matches.is_true[counted]
    edges = np.arange(bins + 1) / bins
    places = np.maximum(np.searchsorted(edges, scores, "left") - 1, 0)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):  # an empty bin has no mean
        mean_scores = np.bincount(places, scores, minlength=bins) / counts
        precisions = np.bincount(places, is_true, minlength=bins) / counts
    error = None
    if len(scores):
        gaps = np.nan_to_num(np.abs(precisions - mean_scores))
        error = float((counts * gaps).sum() / counts.sum())
    return Calibration(
        edges,
        counts,
        mean_scores,
        precisions,
        error,
        float(evaluation.table.options.iou_thresholds[index]),
    )
