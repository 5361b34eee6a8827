"""What kinds of mistakes a detector makes, and what each kind costs.

In the manner of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020, https://arxiv.org/abs/2008.08115).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detr_kit.errors import DetrKitError
from detr_kit.evaluation.accumulation import average_precisions
from detr_kit.evaluation.coco import Evaluation
from detr_kit.evaluation.match_table import UNMATCHED, Matches
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.ordering import falling_ranks, order_by
from detr_kit.evaluation.overlaps import Pairs, overlapping_pairs

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
_BACKGROUND_IOU = 0.1
# Pairs of one picture that are looked at in one go; more would only take memory.
_CHUNK = 1 << 19


@dataclass(frozen=True)
class ErrorKinds:
    """The W wrong detections by kind, and the objects that were missed.

    - `iou`: from here on a detection has found an object; `background_iou`: below it there is
      nothing under a detection;
    - `ap`: mean over the classes with objects, at `iou`; None where no class has any;
    - `counts`: of each of KINDS, wrong detections or, of "missed", objects;
    - `costs`: the AP that is gained where only this kind is mended; None where `ap` is None;
    - `false_positive_cost`, `missed_cost`: where all wrong detections go, and where all objects
      that were not found need not be found;
    - `kinds` (W,) int8, places in KINDS, of `rows` (W,) int64, rows of `found`, by class, then
      falling score;
    - `partners` (W,) int32, rows of `truth`: the object that a detection overlaps most, of its
      class where it is a localisation error or a duplicate, of another class where it is a
      classification error or both; UNMATCHED on background;
    - `missed_objects`: rows of `truth`.
    """

    iou: float
    background_iou: float
    ap: float | None
    counts: dict[str, int]
    costs: dict[str, float | None]
    false_positive_cost: float | None
    missed_cost: float | None
    kinds: np.ndarray
    rows: np.ndarray
    partners: np.ndarray
    missed_objects: np.ndarray


def error_kinds(
    evaluation: Evaluation, iou: float = 0.5, background_iou: float | None = None
) -> ErrorKinds:
    """Sort mistakes into kinds; with `b` = background_iou, in the order of the authors' toolbox:

    - localisation: the best IoU with an object of the class lies in [b, iou);
    - classification: the best IoU with an object of another class is `iou` or more;
    - duplicate: the best IoU with an object of the class is `iou` or more, so that a better-scored
      detection has the object;
    - both: the best IoU with an object of another class lies in [b, iou);
    - background: all that are left;
    - missed: objects not found that no localisation or classification error is about.

    To mend a localisation or classification error is to make it right, in the class of its object;
    but it is removed where the object is found already, or where an error of the same kind with a
    higher score is about the same object. Mended wrong detections of other kinds are removed, and
    mended missed objects are taken from the number of objects. No cost is below 0.

    What differs from TIDE: the AP, the cut at the number of detections and what is ignored are
    COCO's, as in the other figures. An IoU that equals a threshold belongs to the kind above it;
    TIDE has overlapping bounds. Each kind is mended by itself; TIDE makes no classification error
    right where a better-scored localisation error is about the same object, nor the other way
    round. A class whose objects were all taken away counts as 1 where no detection of it is left,
    else as 0; TIDE leaves it out in the former case, so that a class that was never found at all
    would seem to cost nothing.

    `background_iou` is 0.1 unless given, at most half of `iou`. Raises DetrKitError where `iou` is
    not among the thresholds of the evaluation or `background_iou` does not lie between 0 and `iou`.
    """
    options = evaluation.table.options
    threshold = options.required_threshold_index(iou)
    if background_iou is None:
        background_iou = min(_BACKGROUND_IOU, iou / 2)
    if not 0 < background_iou < iou:
        raise DetrKitError(f"background IoU must lie between 0 and {iou:g}, got {background_iou:g}")
    matches = evaluation.table.at(threshold)
    kinds, partners = _sorted_out(matches, lowest_iou(options, threshold), background_iou)
    explained = partners[(kinds == LOCALISATION) | (kinds == CLASSIFICATION)]
    missed = matches.missed
    missed = missed[~np.isin(missed, explained)]
    counts = np.bincount(kinds, minlength=len(KINDS))
    counts[MISSED] = len(missed)
    oracle = _Oracle(matches, kinds, partners)
    return ErrorKinds(
        iou=iou,
        background_iou=background_iou,
        ap=oracle.ap,
        counts=dict(zip(KINDS, counts.tolist(), strict=True)),
        costs={
            "classification": oracle.cost_of_mending(CLASSIFICATION),
            "localisation": oracle.cost_of_mending(LOCALISATION),
            "both": oracle.cost_of_removing(kinds == BOTH),
            "duplicate": oracle.cost_of_removing(kinds == DUPLICATE),
            "background": oracle.cost_of_removing(kinds == BACKGROUND),
            "missed": oracle.cost_of_missing(missed),
        },
        false_positive_cost=oracle.cost_of_removing(np.ones(len(kinds), dtype=np.bool_)),
        missed_cost=oracle.cost_of_missing(matches.missed),
        kinds=kinds,
        rows=matches.rows[matches.is_false],
        partners=partners,
        missed_objects=missed,
    )


def lowest_iou(options: ScoringOptions, threshold_index: int) -> float:
    """Return the lowest IoU that is a match, at a threshold of 1 a little less, as in matching."""
    return min(options.iou_thresholds[threshold_index], 1 - 1e-10)


def _sorted_out(
    matches: Matches, foreground_iou: float, background_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kinds (W,) and partners (W,) of the wrong detections."""
    wrong = np.flatnonzero(matches.is_false)
    kinds = np.full(len(wrong), BACKGROUND, dtype=np.int8)
    partners = np.full(len(wrong), UNMATCHED, dtype=np.int32)
    for part, pairs in _nearby(matches, wrong, background_iou):
        same = (
            matches.object_classes[pairs.objects] == matches.classes[wrong[part]][pairs.detections]
        )
        size = part.stop - part.start
        own_ious, own = _best(pairs, same, size)
        other_ious, others = _best(pairs, ~same, size)
        # what comes later goes before
        rules = (
            (BOTH, other_ious >= background_iou, others),
            (DUPLICATE, own_ious >= foreground_iou, own),
            (CLASSIFICATION, other_ious >= foreground_iou, others),
            (LOCALISATION, (own_ious >= background_iou) & (own_ious < foreground_iou), own),
        )
        for kind, holds, objects in rules:
            kinds[part][holds] = kind
            partners[part][holds] = objects[holds]
    return kinds, partners


def _nearby(
    matches: Matches, places: np.ndarray, least_iou: float
) -> Iterator[tuple[slice, Pairs]]:
    """Yield parts of `places` (W,), each with its pairs with objects that count, of any class.

    Detections of pairs are places in the part, objects are rows of `truth`.
    """
    truth, found = matches.truth, matches.found
    objects = np.flatnonzero(~matches.object_ignored)
    object_images = truth.image_rows[objects]
    images = matches.image_rows[places]
    candidates = np.cumsum(np.bincount(object_images, minlength=truth.num_images)[images])
    total = int(candidates[-1]) if len(candidates) else 0
    cuts = np.unique(np.searchsorted(candidates, np.arange(_CHUNK, total, _CHUNK)))
    for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(places)], strict=True):
        part = slice(first, last)
        pairs = overlapping_pairs(
            images[part],
            found.boxes_xywh[matches.rows[places[part]]],
            object_images,
            truth.boxes_xywh[objects],
            truth.is_crowd[objects],
            least_iou=least_iou,
        )
        yield part, Pairs(pairs.detections, objects[pairs.objects], pairs.ious)


def _best(pairs: Pairs, allowed: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest IoU (n,) of each of `size` detections, 0 where none, and its object (n,).

    Of equal ones it is the first; `allowed` (P,) bool are the pairs to choose from.
    """
    ious = np.zeros(size)
    objects = np.full(size, UNMATCHED, dtype=np.int32)
    detections, candidates = pairs.detections[allowed], pairs.objects[allowed]
    values = pairs.ious[allowed]
    if len(values):
        starts = np.flatnonzero(np.diff(detections, prepend=-1))
        ious[detections[starts]] = np.maximum.reduceat(values, starts)
        highest = np.flatnonzero(values == ious[detections])[::-1]
        objects[detections[highest]] = candidates[highest]  # the last that is written stays
    return ious, objects


class _Oracle:
    """AP with some mistakes mended, less AP as it is."""

    def __init__(self, matches: Matches, kinds: np.ndarray, partners: np.ndarray) -> None:
        counted = ~matches.ignored
        self.matches = matches
        self.kinds = kinds
        self.partners = partners
        self.rows = matches.rows[counted]
        self.classes = matches.classes[counted]
        self.is_true = matches.is_true[counted]
        self.wrong = np.flatnonzero(~self.is_true)
        self.num_objects = matches.num_objects
        self.ap = self._ap(self.classes, self.is_true, self.num_objects)

    def cost_of_removing(self, chosen: np.ndarray) -> float | None:
        """`chosen` (W,) bool: wrong detections that go."""
        kept = np.ones(len(self.rows), dtype=np.bool_)
        kept[self.wrong[chosen]] = False
        return self._cost(self.classes[kept], self.is_true[kept], self.num_objects)

    def cost_of_missing(self, objects: np.ndarray) -> float | None:
        """`objects`: rows of `truth` of those that need not be found."""
        gone = np.bincount(self.matches.object_classes[objects], minlength=len(self.num_objects))
        return self._cost(self.classes, self.is_true, self.num_objects - gone)

    def cost_of_mending(self, kind: int) -> float | None:
        """Wrong detections of a kind become right, or go."""
        chosen = np.flatnonzero(self.kinds == kind)
        best = chosen[self._first_of_each_object(chosen)]
        classes, is_true = self.classes.copy(), self.is_true.copy()
        kept = np.ones(len(self.rows), dtype=np.bool_)
        kept[self.wrong[chosen]] = False
        mended = self.wrong[best]
        kept[mended] = is_true[mended] = True
        places = np.flatnonzero(kept)
        if kind == CLASSIFICATION and len(mended):
            classes[mended] = self.matches.object_classes[self.partners[best]]
            places = places[self._by_class_and_score(classes[places], self.rows[places])]
        return self._cost(classes[places], is_true[places], self.num_objects)

    def _first_of_each_object(self, chosen: np.ndarray) -> np.ndarray:
        """Return the places in `chosen` that have the best score for an object not yet found."""
        by_score = order_by(falling_ranks(self.matches.found.scores[self.rows[self.wrong[chosen]]]))
        objects = self.partners[chosen[by_score]]
        unique, first = np.unique(objects, return_index=True)
        return by_score[first[np.isin(unique, self.matches.missed)]]

    def _by_class_and_score(self, classes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Equal scores stand by picture, then as in the results, as in matching by classes."""
        found = self.matches.found
        order = order_by(found.image_rows[rows], rows)
        return order[order_by(classes[order], falling_ranks(found.scores[rows[order]]))]

    def _cost(
        self, classes: np.ndarray, is_true: np.ndarray, num_objects: np.ndarray
    ) -> float | None:
        ap = self._ap(classes, is_true, num_objects)
        return None if ap is None or self.ap is None else ap - self.ap

    def _ap(
        self, classes: np.ndarray, is_true: np.ndarray, num_objects: np.ndarray
    ) -> float | None:
        """Mean over the classes that have objects in fact, also where none is left to be found."""
        known = self.num_objects > 0
        if not known.any():
            return None
        by_class = average_precisions(classes, is_true, num_objects)
        has_detections = np.bincount(classes, minlength=len(num_objects)) > 0
        by_class = np.where(num_objects > 0, by_class, np.where(has_detections, 0.0, 1.0))
        return float(by_class[known].mean())
