"""Precision at 101 recalls and recall, from matches: `COCOeval.accumulate` of pycocotools 2.0.

Precision falls only where a detection is wrong and is read only where one is right, so that the
curves are computed at the right ones alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detr_kit.evaluation.match_table import UNMATCHED, Matches, MatchTable
from detr_kit.evaluation.options import RECALLS


@dataclass(frozen=True)
class PrecisionArrays:
    """What `COCOeval.eval` holds, float64, -1 where a class has no objects in a range of area.

    - `precision` (T, R, K, A, M): highest precision at or beyond each of the R recalls;
    - `recall` (T, K, A, M): highest recall;
    - `scores` (T, R, K, A, M): the score at which each recall is reached, 0 where it is not.

    T IoU thresholds, K classes, A ranges of area, M numbers of detections.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray


def accumulate(table: MatchTable) -> PrecisionArrays:
    """Return the precision and recall of all matches of a table."""
    options, num_classes = table.options, table.num_classes
    num_thresholds, num_most = len(options.iou_thresholds), len(options.max_detections)
    shape = (num_most, len(table.slices.names), num_thresholds, num_classes)
    precision = np.full((*shape, len(RECALLS)), -1.0)
    scores = np.full((*shape, len(RECALLS)), -1.0)
    recall = np.full(shape, -1.0)
    for part in range(len(table.slices.names)):
        curves = _Slice(table, part)
        known = curves.num_objects > 0
        for place, most in enumerate(options.max_detections):
            here = (place, part)
            found = curves.at_most(most)
            precision[here][:, known] = found.precision[:, known]
            recall[here][:, known] = found.recall[:, known]
            scores[here][:, known] = found.scores[:, known]
    return PrecisionArrays(
        precision.transpose(2, 4, 3, 1, 0),
        recall.transpose(2, 3, 1, 0),
        scores.transpose(2, 4, 3, 1, 0),
    )


def average_precisions(
    classes: np.ndarray, is_true: np.ndarray, num_objects: np.ndarray
) -> np.ndarray:
    """Return the AP (K,) of each class at one IoU threshold, NaN where it has no objects.

    `classes` (D,), never falling, and `is_true` (D,) bool are those of the detections that count,
    by falling score in each class; `num_objects` (K,) are the objects to be found.
    """
    true_places = np.flatnonzero(is_true)
    segments = classes[true_places]
    starts = np.searchsorted(classes, np.arange(len(num_objects)))
    tp, num_true = _numbered(segments, len(num_objects))
    fp = true_places - starts[segments] + 1 - tp
    precision, _ = _at_recalls(_precision(tp, fp), None, num_true, needed_for_recalls(num_objects))
    return np.where(num_objects > 0, precision.mean(axis=1), np.nan)


def average_precision_of(matches: Matches) -> np.ndarray:
    """Return the AP (K,) of each class of a matching, NaN where it has no objects."""
    counted = ~matches.ignored
    return average_precisions(
        matches.classes[counted], matches.is_true[counted], matches.num_objects
    )


@dataclass(frozen=True)
class _Curves:
    """Of one slice and number of detections: (T, K, R), (T, K), (T, K, R)."""

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray


class _Slice:
    """One slice of a table, at all IoU thresholds."""

    def __init__(self, table: MatchTable, part: int) -> None:
        self.table = table
        num_classes = table.num_classes
        object_ignored = table.slices.object_ignored[:, part]
        self.inside = ~table.slices.outside[table.rows, part]
        self.scores = table.found.scores[table.rows]
        self.class_starts = np.searchsorted(table.classes, np.arange(num_classes + 1))
        hit_classes = table.classes[table.hits]
        self.hit_starts = np.searchsorted(hit_classes, np.arange(num_classes))
        objects = np.ascontiguousarray(table.objects[:, :, part].T)  # (T, H)
        # Wrong ones are all that are inside, without those that match: right or ignored.
        self.matched_inside = (objects != UNMATCHED) & self.inside[table.hits]
        # UNMATCHED reads what stands behind the objects
        is_right = np.append(~object_ignored, False)
        true_entries = np.flatnonzero(is_right[objects])
        self.thresholds, self.hits = np.divmod(true_entries, max(1, len(table.hits)))
        self.classes = hit_classes[self.hits]
        counted = table.object_classes[~object_ignored]
        self.num_objects = np.bincount(counted, minlength=num_classes)
        self.needed = np.tile(needed_for_recalls(self.num_objects), (len(objects), 1))

    def at_most(self, most: int) -> _Curves:
        """Return the curves of the `most` best-scored detections of each picture and class."""
        table = self.table
        shape = (len(table.options.iou_thresholds), table.num_classes, len(RECALLS))
        kept = table.ranks < most
        chosen = np.flatnonzero(kept[table.hits[self.hits]])
        thresholds, hits, classes = (
            column[chosen] for column in (self.thresholds, self.hits, self.classes)
        )
        segments = thresholds * table.num_classes + classes
        tp, num_true = _numbered(segments, shape[0] * shape[1])
        places = table.hits[hits]
        inside = counted_before(self.inside & kept)
        fp = inside[places + 1] - inside[self.class_starts[classes]]
        matched = counted_before(self.matched_inside & kept[table.hits])
        fp -= matched[thresholds, hits + 1] - matched[thresholds, self.hit_starts[classes]]
        precision, scores = _at_recalls(
            _precision(tp, fp), self.scores[places], num_true, self.needed
        )
        scores = scores.reshape(shape)
        self._set_first_scores(scores)
        with np.errstate(invalid="ignore"):  # no objects: no recall
            recall = num_true.reshape(shape[:2]) / self.num_objects
        return _Curves(precision.reshape(shape), recall, scores)

    def _set_first_scores(self, scores: np.ndarray) -> None:
        """Recall 0 is reached by the first detection, be it right or wrong."""
        # the best-scored of a class is also the best of its picture, so it is kept
        starts, ends = self.class_starts[:-1], self.class_starts[1:]
        some = np.flatnonzero(ends > starts)
        scores[:, some, 0] = self.scores[starts[some]]


def counted_before(values: np.ndarray) -> np.ndarray:
    """Return the sums (..., D + 1) int32 of what goes before each of the values, and of all."""
    summed = np.zeros((*values.shape[:-1], values.shape[-1] + 1), dtype=np.int32)
    np.cumsum(values, axis=-1, out=summed[..., 1:])
    return summed


def _numbered(segments: np.ndarray, num_segments: int) -> tuple[np.ndarray, np.ndarray]:
    """Number the entries of each segment from 1; return the numbers, and the last of each."""
    lengths = np.bincount(segments, minlength=num_segments)
    starts = np.cumsum(lengths) - lengths
    return np.arange(1, len(segments) + 1) - starts[segments], lengths


def _precision(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    return tp / (fp + tp + np.spacing(1))


def needed_for_recalls(num_objects: np.ndarray) -> np.ndarray:
    """Return the number of right detections, less one, that reach each recall (..., R).

    As `np.searchsorted` finds it among the quotients that pycocotools compares: a rounded product
    is one off at times. `num_objects` (...) are those of a class.
    """
    total = np.maximum(num_objects, 1).astype(np.float64)[..., None]
    needed = np.ceil(RECALLS * total)
    needed -= (needed - 1) / total >= RECALLS
    needed += needed / total < RECALLS
    return np.maximum(needed, 1).astype(np.int64) - 1


def _at_recalls(
    precision: np.ndarray,
    scores: np.ndarray | None,
    num_true: np.ndarray,
    needed: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest precision at or beyond each recall, and the score there, both (S, R).

    `precision` and `scores` are those of the right detections, segment after segment; `num_true`
    (S,) is the length of each segment, `needed` (S, R) comes from `needed_for_recalls`.
    """
    highest = np.zeros((len(num_true), len(RECALLS)))
    reached_score = np.zeros_like(highest)
    some = np.flatnonzero(num_true)
    if not len(some):
        return highest, reached_score
    lengths = num_true[some, None]
    starts = np.cumsum(lengths, axis=0) - lengths
    reached = needed[some] < lengths
    places = starts + np.minimum(needed[some], lengths - 1)
    # each recall's stretch up to the next one's, then the highest of all that follow
    best = np.maximum.reduceat(precision, places.ravel()).reshape(places.shape)
    best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
    highest[some] = np.where(reached, best, 0.0)
    if scores is not None:
        reached_score[some] = np.where(reached, scores[places], 0.0)
    return highest, reached_score
