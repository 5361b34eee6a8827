"""Which classes a detector takes for which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detr_kit.errors import DetrKitError
from detr_kit.evaluation.coco import Evaluation
from detr_kit.evaluation.error_kinds import lowest_iou
from detr_kit.evaluation.match_table import Matches
from detr_kit.evaluation.ordering import falling_ranks, order_by
from detr_kit.evaluation.overlaps import overlapping_pairs


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often an object of a class was detected as what.

    - `names`: of the K classes;
    - `counts` (K + 1, K + 1) int64: rows are true classes, columns predicted ones, the last of
      both is background. A row sums to the objects of its class, a column to the detections;
    - `iou`, `score_threshold`: what counted as found; the latter a number, or (K,) by class.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    iou: float
    score_threshold: float | np.ndarray


def confusion_matrix(
    evaluation: Evaluation, score_threshold: float | np.ndarray, iou: float = 0.5
) -> ConfusionMatrix:
    """Count detections of at least `score_threshold` by what they lie on, one to one.

    First come COCO's matches, so that the diagonal is what precision and recall count at these
    scores. Then the detections that are left choose among the objects that are left, by falling
    score, each the one that it overlaps most, by `iou` or more: all of these are of another class.
    What then has no partner stands on the background. Crowd regions are no objects, and detections
    that COCO ignores are left out.

    `score_threshold` is a number or (K,), see `reaches`. Raises DetrKitError where `iou` is not
    among the thresholds of the evaluation.
    """
    table = evaluation.table
    threshold = table.options.required_threshold_index(iou)
    matches = table.at(threshold)
    shown = reaches(matches, score_threshold)
    right = np.flatnonzero(shown & matches.is_true)
    wrong = np.flatnonzero(shown & matches.is_false)
    is_left = ~matches.object_ignored
    num_objects = np.bincount(matches.object_classes[is_left], minlength=table.num_classes)
    is_left[matches.objects[right]] = False
    detections, objects = _confused(
        matches, wrong, np.flatnonzero(is_left), lowest_iou(table.options, threshold)
    )
    size = table.num_classes + 1
    true_classes = matches.object_classes[np.concatenate([matches.objects[right], objects])]
    predicted = matches.classes[np.concatenate([right, detections])]
    cells = true_classes.astype(np.int64) * size + predicted
    counts = np.bincount(cells, minlength=size * size).reshape(size, size)
    num_detections = np.bincount(
        matches.classes[np.concatenate([right, wrong])], minlength=table.num_classes
    )
    counts[:-1, -1] = num_objects - counts[:-1].sum(axis=1)
    counts[-1, :-1] = num_detections - counts[:-1, :-1].sum(axis=0)
    return ConfusionMatrix(table.class_names, counts, iou, score_threshold)


def reaches(matches: Matches, score_threshold: float | np.ndarray) -> np.ndarray:
    """Return which detections (D,) have at least the score that is asked of their class.

    `score_threshold` is a number, or (K,) with NaN for classes of which none does. Raises
    DetrKitError for other shapes.
    """
    thresholds = np.asarray(score_threshold, dtype=np.float64)
    if thresholds.shape not in ((), (matches.num_classes,)):
        raise DetrKitError(
            f"score threshold: expected a number or one for each of {matches.num_classes} classes, "
            f"got an array {thresholds.shape}"
        )
    by_class = np.broadcast_to(thresholds, matches.num_classes)
    return matches.scores >= by_class[matches.classes]


def _confused(
    matches: Matches, wrong: np.ndarray, objects: np.ndarray, least_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return places of detections and rows of `truth` that are paired, of different classes."""
    truth, found = matches.truth, matches.found
    by_score = wrong[order_by(falling_ranks(matches.scores[wrong]))]
    pairs = overlapping_pairs(
        matches.image_rows[by_score],
        found.boxes_xywh[matches.rows[by_score]],
        truth.image_rows[objects],
        truth.boxes_xywh[objects],
        truth.is_crowd[objects],
        least_iou=least_iou,
    )
    order = order_by(pairs.detections, falling_ranks(pairs.ious))
    chosen, chosen_objects = _in_turn(pairs.detections[order], pairs.objects[order])
    return by_score[chosen], objects[chosen_objects]


def _in_turn(detections: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take each pair of which neither side is taken, in the order of the pairs (P,).

    A pair that is the first of its detection and of its object is taken whatever the others do, so
    that all such pairs are taken at once, then again among those that are left.
    """
    taken_detections, taken_objects = [detections[:0]], [objects[:0]]
    while len(detections):
        mutual = _is_first(detections) & _is_first(objects)
        taken_detections.append(detections[mutual])
        taken_objects.append(objects[mutual])
        left = ~np.isin(detections, detections[mutual]) & ~np.isin(objects, objects[mutual])
        detections, objects = detections[left], objects[left]
    return np.concatenate(taken_detections), np.concatenate(taken_objects)


def _is_first(values: np.ndarray) -> np.ndarray:
    """Return which of `values` (P,) stand before all that are equal."""
    first = np.zeros(len(values), dtype=np.bool_)
    first[np.unique(values, return_index=True)[1]] = True
    return first
