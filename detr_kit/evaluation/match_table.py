"""Which detection is which object, at every IoU threshold and in every range of area at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from detr_kit.evaluation.found import FoundObjects
from detr_kit.evaluation.greedy import UNMATCHED, choose
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import ALL_AREAS, ScoringOptions
from detr_kit.evaluation.ordering import falling_ranks, order_by, places_in_runs
from detr_kit.evaluation.overlaps import overlapping_pairs, paired_ious

ALL_CLASSES = ("all classes",)


@dataclass(frozen=True)
class Slices:
    """Which objects and detections count in each of A parts of a data set, such as ranges of area.

    - `object_ignored` (G, A) bool: the object is not looked for, but may be found;
    - `outside` (D, A) bool, by rows of FoundObjects: the detection is ignored where it matches
      nothing.
    """

    names: tuple[str, ...]
    object_ignored: np.ndarray
    outside: np.ndarray


def area_slices(truth: GroundTruth, found: FoundObjects, options: ScoringOptions) -> Slices:
    """Return COCO's slices: by the labelled area, and by the area of a detection's box."""
    low, high = np.array(list(options.areas.values())).T
    areas = truth.areas[:, None]
    box_areas = (found.boxes_xywh[:, 2] * found.boxes_xywh[:, 3])[:, None]
    return Slices(
        options.area_names,
        truth.is_crowd[:, None] | (areas < low) | (areas > high),
        (box_areas < low) | (box_areas > high),
    )


@dataclass(frozen=True)
class Matches:
    """The matching at one IoU threshold in one slice; detections by class, then falling score.

    - `rows` (D,) int64: rows of `found`; `classes` (D,) int32, never falling;
    - `objects` (D,) int32: rows of `truth`, UNMATCHED where none;
    - `ignored` (D,) bool: counts neither as right nor as wrong;
    - `object_ignored` (G,) bool, `object_classes` (G,) int32: by rows of `truth`.

    Classes are columns of the category table, or 0 throughout where they do not matter.
    """

    truth: GroundTruth
    found: FoundObjects
    rows: np.ndarray
    classes: np.ndarray
    objects: np.ndarray
    ignored: np.ndarray
    object_ignored: np.ndarray
    object_classes: np.ndarray
    num_classes: int

    @property
    def is_true(self) -> np.ndarray:
        """(D,) bool: the detection found an object that counts."""
        return (self.objects != UNMATCHED) & ~self.ignored

    @property
    def is_false(self) -> np.ndarray:
        """(D,) bool: the detection found nothing and counts."""
        return (self.objects == UNMATCHED) & ~self.ignored

    @property
    def scores(self) -> np.ndarray:
        """(D,) float64."""
        return self.found.scores[self.rows]

    @property
    def image_rows(self) -> np.ndarray:
        """(D,) int32."""
        return self.found.image_rows[self.rows]

    @property
    def num_objects(self) -> np.ndarray:
        """(K,) int64: the objects of each class that count."""
        counted = self.object_classes[~self.object_ignored]
        return np.bincount(counted, minlength=self.num_classes)

    @property
    def missed(self) -> np.ndarray:
        """Rows of `truth` of the objects that count and were not found."""
        was_found = np.zeros(len(self.object_ignored), dtype=np.bool_)
        was_found[self.objects[self.objects != UNMATCHED]] = True
        return np.flatnonzero(~was_found & ~self.object_ignored)

    def ious(self) -> np.ndarray:
        """Return the IoU (D,) of each detection with its object, 0 where it has none."""
        ious = np.zeros(len(self.rows))
        matched = np.flatnonzero(self.objects != UNMATCHED)
        objects = self.objects[matched]
        ious[matched] = paired_ious(
            self.found.boxes_xywh[self.rows[matched]],
            self.truth.boxes_xywh[objects],
            self.truth.is_crowd[objects],
        )
        return ious


@dataclass(frozen=True)
class MatchTable:
    """Every detection that counts, with its object at T IoU thresholds in A slices.

    - `rows` (D,) int64: rows of `found`, of each picture and class the best-scored
      `options.max_detections[-1]`; by class, then falling score, then picture;
    - `classes` (D,) int32: see `Matches`;
    - `ranks` (D,) int32: how many of its picture and class go before a detection;
    - `hits` (H,) int64, rising: positions of the detections that overlap an object of their class
      by the lowest threshold; all others match nothing;
    - `objects` (H, T, A) int32: rows of `truth`, UNMATCHED where none.
    """

    truth: GroundTruth
    found: FoundObjects
    options: ScoringOptions
    slices: Slices
    rows: np.ndarray
    classes: np.ndarray
    ranks: np.ndarray
    hits: np.ndarray
    objects: np.ndarray

    @property
    def num_classes(self) -> int:
        return 1 if self.options.class_agnostic else len(self.truth.categories)

    @property
    def class_names(self) -> tuple[str, ...]:
        return ALL_CLASSES if self.options.class_agnostic else self.truth.categories.names

    @property
    def object_classes(self) -> np.ndarray:
        """(G,) int32: see `Matches`."""
        return _classes(self.truth.class_columns, self.options)

    @property
    def num_objects(self) -> np.ndarray:
        """(K,) int64: the objects of each class that count in all areas."""
        ignored = self.slices.object_ignored[:, self.slices.names.index(ALL_AREAS)]
        return np.bincount(self.object_classes[~ignored], minlength=self.num_classes)

    def at(self, threshold_index: int, slice_name: str = ALL_AREAS) -> Matches:
        """Return the matching at one of the IoU thresholds, in one slice."""
        part = self.slices.names.index(slice_name)
        objects = np.full(len(self.rows), UNMATCHED, dtype=np.int32)
        objects[self.hits] = self.objects[:, threshold_index, part]
        object_ignored = self.slices.object_ignored[:, part]
        matched = objects != UNMATCHED
        ignored = ~matched & self.slices.outside[self.rows, part]
        ignored[matched] = object_ignored[objects[matched]]
        return Matches(
            self.truth,
            self.found,
            self.rows,
            self.classes,
            objects,
            ignored,
            object_ignored,
            self.object_classes,
            self.num_classes,
        )


def match(
    truth: GroundTruth,
    found: FoundObjects,
    options: ScoringOptions,
    slices: Slices | None = None,
) -> MatchTable:
    """Match detections to objects; in COCO's ranges of area unless `slices` are given."""
    slices = slices or area_slices(truth, found, options)
    classes = _classes(found.class_columns, options)
    score_ranks = falling_ranks(found.scores)
    rows, ranks = _by_picture(found, classes, score_ranks, options.max_detections[-1])
    classes = classes[rows]
    keys = _keys(classes, found.image_rows[rows], truth.num_images)
    # pycocotools takes a threshold of 1 for a little less
    thresholds = np.minimum(options.iou_thresholds, 1 - 1e-10)
    # Where classes do not matter, pycocotools still has objects by class: the last of equals wins.
    order = order_by(truth.class_columns)
    object_keys = _keys(_classes(truth.class_columns, options), truth.image_rows, truth.num_images)
    pairs = overlapping_pairs(
        keys,
        found.boxes_xywh[rows],
        object_keys[order],
        truth.boxes_xywh[order],
        truth.is_crowd[order],
        least_iou=thresholds[0],
    )
    pairs = replace(pairs, objects=order[pairs.objects])
    by_score = order_by(classes, score_ranks[rows])
    place = np.empty(len(rows), dtype=np.int64)
    place[by_score] = np.arange(len(rows))
    hits, objects = choose(pairs, keys, place, truth.is_crowd, slices.object_ignored, thresholds)
    return MatchTable(
        truth,
        found,
        options,
        slices,
        rows=rows[by_score],
        classes=classes[by_score],
        ranks=ranks[by_score],
        hits=hits,
        objects=objects,
    )


def _classes(class_columns: np.ndarray, options: ScoringOptions) -> np.ndarray:
    return np.zeros_like(class_columns) if options.class_agnostic else class_columns


def _keys(classes: np.ndarray, image_rows: np.ndarray, num_images: int) -> np.ndarray:
    return classes.astype(np.int64) * num_images + image_rows


def _by_picture(
    found: FoundObjects, classes: np.ndarray, score_ranks: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that count, by class, picture and falling score, and their ranks.

    Equal scores keep the order of the results, that of their classes first where classes do not
    matter, as pycocotools gathers them so.
    """
    ties = () if classes is found.class_columns else (found.class_columns,)
    order = order_by(classes, found.image_rows, score_ranks, *ties)
    ranks = places_in_runs(classes[order], found.image_rows[order])
    kept = ranks < most
    return order[kept], ranks[kept]
