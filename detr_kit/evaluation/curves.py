"""Precision against recall, and precision, recall and F1 against the score that is asked for.

With TP the right detections, FP the wrong ones and FN the objects not found: precision is
TP / (TP + FP), recall TP / (TP + FN), and F1 their harmonic mean, 2 TP / (2 TP + FP + FN)
(van Rijsbergen 1979, Information Retrieval, chapter 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detr_kit.evaluation.coco import Evaluation
from detr_kit.evaluation.options import ALL_AREAS, RECALLS

# By division, so that each is the decimal that people and json files write.
_STEPS = np.arange(101) / 100


@dataclass(frozen=True)
class PrecisionRecallCurves:
    """The highest precision at or beyond each recall, with the largest number of detections.

    - `recalls` (R,): the 101 recalls of COCO, 0 to 1;
    - `iou_thresholds` (T,); `by_threshold` (T, R): mean over the classes that have objects, NaN
      where none has; the mean of a row is the AP at that threshold;
    - `by_class` (K, R): at `iou`, NaN for classes without objects.
    """

    recalls: np.ndarray
    iou_thresholds: np.ndarray
    by_threshold: np.ndarray
    by_class: np.ndarray
    iou: float


@dataclass(frozen=True)
class ScoreCurves:
    """What becomes of precision, recall and F1 if only detections of some score are kept.

    - `thresholds` (S,), rising: 0 to 1 by 0.01, or the range of the scores where some lie outside;
      a detection counts if its score is at least the threshold;
    - `precision`, `recall`, `f1` (K, S): NaN for classes without objects; the precision is also
      NaN where no detection has the score;
    - `pooled_precision`, `pooled_recall`, `pooled_f1` (S,): over the detections of all classes
      together, those of classes without objects being wrong; NaN where there are no objects;
    - `best_thresholds`, `best_f1`, `best_precision`, `best_recall` (K,): the score of a detection
      at which the F1 is highest of all, the higher score of equals, not only among `thresholds`;
      NaN for classes without objects or without a right detection;
    - `pooled_best_...`: the same for all classes with one threshold, None where it would be NaN.

    Ignored detections, those of crowd regions, count neither as right nor as wrong.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    pooled_precision: np.ndarray
    pooled_recall: np.ndarray
    pooled_f1: np.ndarray
    best_thresholds: np.ndarray
    best_f1: np.ndarray
    best_precision: np.ndarray
    best_recall: np.ndarray
    pooled_best_threshold: float | None
    pooled_best_f1: float | None
    pooled_best_precision: float | None
    pooled_best_recall: float | None
    iou: float

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the best thresholds for json: of all classes together, and of each by its name.

        Each has `threshold`, `f1`, `precision` and `recall`, or is None where none is known.
        """
        best = (self.best_thresholds, self.best_f1, self.best_precision, self.best_recall)
        points = zip(*(values.tolist() for values in best), strict=True)
        pooled = (
            self.pooled_best_threshold,
            self.pooled_best_f1,
            self.pooled_best_precision,
            self.pooled_best_recall,
        )
        return {
            "iou": self.iou,
            "all": _named(pooled),
            "classes": {
                name: _named(point) for name, point in zip(class_names, points, strict=True)
            },
        }


def precision_recall_curves(evaluation: Evaluation, iou: float = 0.5) -> PrecisionRecallCurves:
    """Return the curves whose mean is the AP, as COCO interpolates those of PASCAL VOC.

    The precision at a recall is the highest at that recall or beyond (Everingham et al. 2010,
    https://doi.org/10.1007/s11263-009-0275-4), here at the 101 recalls of COCO
    (Lin et al. 2014, https://arxiv.org/abs/1405.0312). Raises DetrKitError where `iou` is not
    among the thresholds of the evaluation.
    """
    index = evaluation.table.options.required_threshold_index(iou)
    options = evaluation.table.options
    precision = evaluation.arrays.precision[..., options.area_names.index(ALL_AREAS), -1]
    precision = precision.transpose(0, 2, 1)  # (T, K, R)
    known = precision[index, :, 0] > -1
    by_threshold = np.full((len(precision), len(RECALLS)), np.nan)
    if known.any():
        by_threshold = precision[:, known].mean(axis=1)
    return PrecisionRecallCurves(
        recalls=RECALLS.copy(),
        iou_thresholds=np.array(options.iou_thresholds),
        by_threshold=by_threshold,
        by_class=np.where(known[:, None], precision[index], np.nan),
        iou=float(options.iou_thresholds[index]),
    )


def score_curves(evaluation: Evaluation, iou: float = 0.5) -> ScoreCurves:
    """Return precision, recall and F1 by score, and the scores of the highest F1.

    Over the detections that AP is over: of each picture and class the best-scored
    `options.max_detections[-1]`. Raises DetrKitError where `iou` is not among the thresholds of
    the evaluation.
    """
    index = evaluation.table.options.required_threshold_index(iou)
    matches = evaluation.table.at(index)
    counted = ~matches.ignored
    judged = _Judged(
        matches.classes[counted],
        matches.scores[counted],
        matches.is_true[counted],
        matches.num_objects,
    )
    thresholds = _thresholds(evaluation.table.found.scores)
    num_true, num_found = judged.reaching(thresholds)
    num_objects = judged.num_objects[:, None]
    precision, recall, f1 = _figures(num_true, num_found, num_objects)
    pooled = _figures(num_true.sum(axis=0), num_found.sum(axis=0), num_objects.sum())
    best = judged.best()
    pooled_best = [
        None if np.isnan(value) else value for value in judged.pooled().best()[:, 0].tolist()
    ]
    return ScoreCurves(
        thresholds=thresholds,
        precision=precision,
        recall=recall,
        f1=f1,
        pooled_precision=pooled[0],
        pooled_recall=pooled[1],
        pooled_f1=pooled[2],
        best_thresholds=best[0],
        best_f1=best[1],
        best_precision=best[2],
        best_recall=best[3],
        pooled_best_threshold=pooled_best[0],
        pooled_best_f1=pooled_best[1],
        pooled_best_precision=pooled_best[2],
        pooled_best_recall=pooled_best[3],
        iou=float(evaluation.table.options.iou_thresholds[index]),
    )


@dataclass(frozen=True)
class _Judged:
    """The detections that count, by class, then falling score, and the objects of each class.

    `classes`, `scores` and `is_true` (D,), `num_objects` (K,).
    """

    classes: np.ndarray
    scores: np.ndarray
    is_true: np.ndarray
    num_objects: np.ndarray

    def pooled(self) -> _Judged:
        """Return all classes as one."""
        order = np.argsort(-self.scores)
        return _Judged(
            np.zeros_like(self.classes),
            self.scores[order],
            self.is_true[order],
            self.num_objects.sum(keepdims=True),
        )

    def reaching(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how many right ones, and how many at all, have at least each score (K, S)."""
        shape = (len(self.num_objects), len(thresholds) + 1)
        reached = np.searchsorted(thresholds, self.scores, "right")
        keys = self.classes * np.int64(shape[1]) + reached
        true_and_all = []
        for own in (keys[self.is_true], keys):
            counts = np.bincount(own, minlength=shape[0] * shape[1]).reshape(shape)
            true_and_all.append(counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:])
        return true_and_all[0], true_and_all[1]

    def best(self) -> np.ndarray:
        """Return the score of the highest F1, that F1, its precision and its recall (4, K)."""
        # Of equal scores all count or none, so figures are read after the last of them.
        is_last = np.ones(len(self.scores), dtype=np.bool_)
        is_last[:-1] = (self.classes[1:] != self.classes[:-1]) | (
            self.scores[1:] != self.scores[:-1]
        )
        lasts = np.flatnonzero(is_last)
        classes = self.classes[lasts]
        num_classes = len(self.num_objects)
        starts = np.searchsorted(self.classes, np.arange(num_classes))[classes]
        true_before = np.concatenate([[0], np.cumsum(self.is_true)])
        num_true = true_before[lasts + 1] - true_before[starts]
        figures = _figures(num_true, lasts + 1 - starts, self.num_objects[classes])
        f1 = np.where(num_true > 0, figures[2], -1.0)
        highest = np.zeros(num_classes)
        np.maximum.at(highest, classes, f1)
        ties = np.flatnonzero(f1 == highest[classes])
        known, firsts = np.unique(classes[ties], return_index=True)
        chosen = ties[firsts]
        best = np.full((4, num_classes), np.nan)
        for row, values in enumerate((self.scores[lasts], f1, figures[0], figures[1])):
            best[row, known] = values[chosen]
        return best


def _figures(
    num_true: np.ndarray, num_found: np.ndarray, num_objects: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and F1, NaN where there are no objects."""
    objects = np.where(num_objects > 0, num_objects, np.nan)
    with np.errstate(invalid="ignore"):  # nothing found: no precision
        precision = np.where(num_objects > 0, num_true / num_found, np.nan)
    return precision, num_true / objects, 2 * num_true / (num_found + objects)


def _thresholds(scores: np.ndarray) -> np.ndarray:
    low, high = scores.min(initial=0.0), scores.max(initial=1.0)
    if low >= 0 and high <= 1:
        return _STEPS.copy()
    low, high = scores.min(), scores.max()
    # not by their difference, which may be too large for a float
    return np.clip(low * (1 - _STEPS) + high * _STEPS, low, high)


def _named(point: Sequence[float | None]) -> dict[str, float] | None:
    values = [value for value in point if value is not None and not np.isnan(value)]
    names = ("threshold", "f1", "precision", "recall")
    return dict(zip(names, values, strict=True)) if values else None
