"""AP as if each picture stood in the data set several times, or not at all.

Detections stay in their order, so that weighted cumulative counts give precision and recall, and
nothing is matched or sorted again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detr_kit.evaluation.accumulation import counted_before
from detr_kit.evaluation.match_table import UNMATCHED, MatchTable
from detr_kit.evaluation.options import ALL_AREAS, RECALLS

NUM_FOLDS = 20
# Numbers that are worked on in one go: they fit in the cache of a core, more would be slower.
_CHUNK = 1 << 16
_ROUNDING = 1e-12
_ABOVE = np.append(RECALLS[1:], np.inf)  # the next recall


@dataclass(frozen=True)
class _Counts:
    """Right detections, and all that count, of each segment up to and with each hit (B, E)."""

    right: np.ndarray
    counted: np.ndarray

    def precision(self) -> np.ndarray:
        return self.right / np.maximum(self.counted, 1)


class WeightedPrecision:
    """The AP of a table, over all areas, whose pictures count several times or not at all.

    Detections that match at some IoU threshold are E hits, in S segments of one IoU threshold and
    class each. Weights are integers (B, I), one row for each of B resamples.
    """

    def __init__(self, table: MatchTable) -> None:
        part = table.slices.names.index(ALL_AREAS)
        self.num_images = table.truth.num_images
        self.num_thresholds = len(table.options.iou_thresholds)
        self.num_classes = table.num_classes
        self._detection_images = table.found.image_rows[table.rows].astype(np.intp)
        self._inside = ~table.slices.outside[table.rows, part]
        object_ignored = table.slices.object_ignored[:, part]
        self._set_hits(table, table.objects[:, :, part].T, object_ignored)
        self._set_objects(table, ~object_ignored)

    def _set_hits(self, table: MatchTable, objects: np.ndarray, ignored: np.ndarray) -> None:
        matched = objects != UNMATCHED
        is_right = matched & ~ignored[objects] if objects.size else matched
        inside = self._inside[table.hits]
        # A match may count though the detection lies outside, or be ignored though it lies inside.
        changes = np.where(matched, is_right, inside).astype(np.int32) - inside
        thresholds, hits = np.nonzero(is_right | (changes != 0))
        places = table.hits[hits]
        self._classes = table.classes[places].astype(np.intp)
        self._is_right = is_right[thresholds, hits]
        self._changes = changes[thresholds, hits]
        self._images = self._detection_images[places]
        self._ends = places + 1
        self._starts = np.searchsorted(table.classes, np.arange(self.num_classes))[self._classes]
        self._segments = thresholds * self.num_classes + self._classes
        num_segments = self.num_thresholds * self.num_classes
        self._bounds = np.searchsorted(self._segments, np.arange(num_segments + 1))
        self._segment_starts = self._bounds[self._segments]
        self._lifts = 2.0 * (num_segments - self._segments)

    def _set_objects(self, table: MatchTable, counts: np.ndarray) -> None:
        classes, images = table.object_classes[counts], table.truth.image_rows[counts]
        order = np.argsort(classes, kind="stable")
        self._object_images = images[order].astype(np.intp)
        self._object_bounds = np.searchsorted(classes[order], np.arange(self.num_classes + 1))
        shown = np.unique(classes.astype(np.int64) * max(self.num_images, 1) + images)
        shown_classes = shown // max(self.num_images, 1)
        self.images_of_class = np.bincount(shown_classes, minlength=self.num_classes)
        self.objects_of_class = np.diff(self._object_bounds)
        self.num_images_with_objects = len(np.unique(images))

    @property
    def rows_at_once(self) -> int:
        """How many resamples to ask for in one go."""
        return max(1, _CHUNK // (len(self._detection_images) + 2 * len(self._images) + 1))

    def class_precisions(self, weights: np.ndarray) -> np.ndarray:
        """Return the AP (B, K) of each class, NaN where none of its objects is drawn."""
        num_objects = self._num_objects(weights)
        counts = self._counts(weights)
        at_hits = self._num_recalls(counts, num_objects) * self._best_beyond(counts.precision())
        sums = np.zeros((len(weights), len(self._bounds) - 1))
        some = np.flatnonzero(np.diff(self._bounds))
        if len(some):
            sums[:, some] = np.add.reduceat(at_hits, self._bounds[some], axis=1)
        means = sums.reshape(-1, self.num_thresholds, self.num_classes).mean(axis=1) / len(RECALLS)
        return np.where(num_objects > 0, means, np.nan)

    def held_out_precisions(self, seed: int, num_folds: int = NUM_FOLDS) -> np.ndarray:
        """Return the AP (K,) of points chosen without the pictures that they are judged by.

        The pictures are dealt into folds. Without one of them, the curve tells for each recall
        which score has the highest precision at or beyond it; the fold left out gives the
        detections of at least that score. Their sum over the folds is the precision at that recall.
        Where no detection of any fold is left, that of the next recall stands, and AP's own after
        the last. NaN for classes without objects, and where there is one picture.
        """
        num_folds = min(num_folds, self.num_images)
        folds = np.random.default_rng((seed, 1)).permutation(self.num_images) % max(num_folds, 1)
        shape = (len(self._bounds) - 1, len(RECALLS))
        right, counted, reached = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        num_chosen_by = np.zeros(self.num_classes, dtype=np.int64)
        for fold in range(num_folds):
            held_out = (folds == fold)[None].astype(np.int32)
            num_objects, counts = self._num_objects(1 - held_out), self._counts(1 - held_out)
            num_recalls = self._num_recalls(counts, num_objects)
            peaks, judged = self._peaks(counts.precision()[0]), self._counts(held_out)
            num_chosen_by += num_objects[0] > 0
            right += self._at_recalls(judged.right[0, peaks], num_recalls)
            counted += self._at_recalls(judged.counted[0, peaks], num_recalls)
            reached += self._at_recalls(np.ones_like(peaks), num_recalls)
        precision = self._judged(right, counted).reshape(self.num_thresholds, self.num_classes, -1)
        with np.errstate(invalid="ignore"):  # no objects
            shares = reached.reshape(precision.shape) / num_chosen_by[:, None]
        return (precision * shares).mean(axis=(0, 2))

    def _judged(self, right: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """Divide (S, R); where nothing counted, take the next recall, then AP's own precision."""
        once = np.ones((1, self.num_images), dtype=np.int32)
        counts = self._counts(once)
        num_recalls = self._num_recalls(counts, self._num_objects(once))
        own = self._at_recalls(self._best_beyond(counts.precision())[0], num_recalls)
        columns = np.where(counted > 0, np.arange(len(RECALLS)), len(RECALLS) - 1)
        columns = np.minimum.accumulate(columns[:, ::-1], axis=1)[:, ::-1]
        right, counted = (np.take_along_axis(part, columns, axis=1) for part in (right, counted))
        return np.where(counted > 0, right / np.maximum(counted, 1), own)

    def _num_objects(self, weights: np.ndarray) -> np.ndarray:
        before = counted_before(weights[:, self._object_images])
        return np.diff(before[:, self._object_bounds], axis=1)

    def _counts(self, weights: np.ndarray) -> _Counts:
        by_detection = np.take(weights, self._detection_images, axis=1)
        if not self._inside.all():
            by_detection *= self._inside
        before = counted_before(by_detection)
        counted = np.take(before, self._ends, axis=1)
        counted -= np.take(before, self._starts, axis=1)
        by_hit = np.take(weights, self._images, axis=1)
        if self._changes.any():
            counted += self._in_segments(by_hit * self._changes)
        return _Counts(self._in_segments(by_hit * self._is_right), counted)

    def _in_segments(self, values: np.ndarray) -> np.ndarray:
        """Return cumulative sums (B, E) within each segment."""
        before = counted_before(values)
        return before[:, 1:] - np.take(before, self._segment_starts, axis=1)

    def _num_recalls(self, counts: _Counts, num_objects: np.ndarray) -> np.ndarray:
        """Return how many of the R recalls each hit (B, E) is the first to reach."""
        shares = counts.right / np.maximum(np.take(num_objects, self._classes, axis=1), 1)
        # The highest recall that is not above a share, as pycocotools compares: a rounded product
        # is one off at times.
        reached = (shares * (len(RECALLS) - 1)).astype(np.intp)
        reached += _ABOVE[reached] <= shares
        reached -= RECALLS[reached] > shares
        reached += counts.right > 0
        new = np.diff(reached, axis=1, prepend=0)
        firsts = self._bounds[:-1][np.diff(self._bounds) > 0]
        new[:, firsts] = reached[:, firsts]
        return new

    def _best_beyond(self, precision: np.ndarray) -> np.ndarray:
        """Return the highest precision at or after each hit (B, E) in its segment."""
        # Lifted above all later segments, each starts anew. Costs the last 3 of 16 digits.
        lifted = precision + self._lifts
        return np.maximum.accumulate(lifted[:, ::-1], axis=1)[:, ::-1] - self._lifts

    def _peaks(self, precision: np.ndarray) -> np.ndarray:
        """Return the first hit (E,) at or after each one that has the highest precision there."""
        best = self._best_beyond(precision[None])[0]
        places = np.where(precision >= best - _ROUNDING, np.arange(len(best)), len(best))
        return np.minimum.accumulate(places[::-1])[::-1]

    def _at_recalls(self, values: np.ndarray, num_recalls: np.ndarray) -> np.ndarray:
        """Return the values (E,) of the hits that reach each recall first (S, R), or 0."""
        reached = np.bincount(
            self._segments, weights=num_recalls[0], minlength=len(self._bounds) - 1
        )
        at_recalls = np.zeros((len(reached), len(RECALLS)), dtype=values.dtype)
        at_recalls[np.arange(len(RECALLS)) < reached[:, None]] = values.repeat(num_recalls[0])
        return at_recalls
