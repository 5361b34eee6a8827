"""What makes figures doubtful though they can be computed: said once, in one line each."""

from __future__ import annotations

import warnings

import numpy as np

from detr_kit.data.box_faults import suspected_format
from detr_kit.errors import DetrKitWarning
from detr_kit.evaluation.found import FoundObjects
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.match_table import MatchTable
from detr_kit.evaluation.misplaced import explanation_of_low_ap
from detr_kit.evaluation.ordering import falling_ranks, order_by

# Other detectors' own evaluations cut at 0.05 at most; more costs AP.
USUAL_CUT = 0.05
# A handful of detections may well all be wrong or odd; of so many, some are not.
ENOUGH = 100
# Results of a part of the pictures: so many others with objects have no detections.
UNCOVERED_SHARE = 0.1
FEWEST_PICTURES = 10
# A detector hardly has fewer; so many in each picture that has any are all that it predicts.
FEWEST_QUERIES = 10
_SAMPLE = 20_000  # boxes whose format is looked at


def warn_of_doubts(table: MatchTable, *, stacklevel: int = 3) -> None:
    """Warn of each of `doubts_of` the results."""
    for doubt in doubts_of(table):
        warnings.warn(f"{table.found.name}: {doubt}", DetrKitWarning, stacklevel=stacklevel)


def doubts_of(table: MatchTable) -> list[str]:
    """Return a line for each of what is doubtful about results.

    That is: there are none, or none in many pictures with objects; scores are cut, equal or not in
    [0, 1]; detections are repeated; boxes have negative sides, or another format or scale than
    COCO's; ids are those of others; or no detection is near an object.
    """
    found = table.found
    if not len(found):
        so = ", so every figure is 0" if table.num_objects.any() else ""
        advice = "a prediction for scoring keeps all scores (`detr-kit predict --threshold 0`)"
        return [f"there are no detections{so}; {advice}"]
    doubts = [
        _of_threshold(found, table.truth.num_images, table.options.max_detections[-1]),
        _of_scale(found),
        _of_equal_scores(table),
        _of_coverage(table),
        _of_repeats(table),
        _of_sides(table),
        _of_places(table),
    ]
    return [doubt for doubt in doubts if doubt]


def uncovered(found: FoundObjects, truth: GroundTruth) -> np.ndarray:
    """Return the rows (N,) int64 of the pictures that have objects and no detection at all.

    Crowd regions alone are no objects here.
    """
    is_without = np.zeros(truth.num_images, dtype=np.bool_)
    is_without[truth.image_rows[~truth.is_crowd]] = True
    is_without[found.image_rows] = False
    return np.flatnonzero(is_without)


def _of_coverage(table: MatchTable) -> str:
    truth, found = table.truth, table.found
    without = uncovered(found, truth)
    has_objects = np.zeros(truth.num_images, dtype=np.bool_)
    has_objects[truth.image_rows[~truth.is_crowd]] = True
    num_pictures = np.count_nonzero(has_objects)
    num_covered = num_pictures - len(without)
    if num_pictures < FEWEST_PICTURES or len(without) <= UNCOVERED_SHARE * num_pictures:
        return ""
    # Where detections are rare altogether, that some pictures have none says nothing.
    if np.count_nonzero(has_objects[found.image_rows]) <= num_covered:
        return ""
    return (
        f"{len(without)} of {num_pictures} pictures with objects have no detections (the first: id "
        f"{truth.image_ids[without[0]]}); their objects count as missed"
    )


def _of_threshold(found: FoundObjects, num_images: int, most: int) -> str:
    """The sign: no score at or below 0.05, though some image has fewer detections than are scored.

    And images differ in their number: a detector with a fixed number of queries that keeps all of
    them gives every image the same number, whatever its scores; so it does in a part of the images.
    Equal scores, and others than of [0, 1], tell of no threshold.
    """
    lowest, highest = found.scores.min(), found.scores.max()
    if lowest <= USUAL_CUT or highest > 1 or lowest == highest:
        return ""
    counts = np.bincount(found.image_rows, minlength=num_images)
    some = counts[counts > 0]
    is_fixed = some.min() == some.max() and (counts.all() or some.max() >= FEWEST_QUERIES)
    if counts.min() >= most or is_fixed:
        return ""
    return (
        f"the lowest score is {lowest:.3f}, so detections seem to be cut at a threshold; AP counts "
        "low-scored detections too and comes out lower: predict at threshold 0 to score"
    )


def _of_equal_scores(table: MatchTable) -> str:
    """A score that most detections have is their median.

    Many detections of the least score, rounded to 0 say, do no harm as long as few are right.
    """
    scores = table.found.scores
    if len(scores) < ENOUGH:
        return ""
    middle = len(scores) // 2
    median = np.partition(scores, middle)[middle]
    count = np.count_nonzero(scores == median)
    near = scores[table.rows[table.hits]] == median
    if count <= len(scores) / 2 or np.count_nonzero(near) <= 0.1 * len(near):
        return ""
    return (
        f"{count} of {len(scores)} detections have the same score, {median:g}; AP depends on which "
        "of them come first in the results"
    )


def _of_scale(found: FoundObjects) -> str:
    low, high = found.scores.min(), found.scores.max()
    if low >= 0 and high <= 1:
        return ""
    return (
        f"scores from {low:.4g} to {high:.4g}, where [0, 1] is expected; AP needs their order "
        "only, but thresholds and calibration do not mean what they say"
    )


def _of_repeats(table: MatchTable) -> str:
    """The same detection twice comes from a data loader that fills up its last batch."""
    found, rows = table.found, table.rows
    scores = found.scores[rows]
    next_to = np.flatnonzero(scores[1:] == scores[:-1])
    first, second = rows[next_to], rows[next_to + 1]
    same = found.image_rows[first] == found.image_rows[second]
    same &= found.class_columns[first] == found.class_columns[second]
    # Others of the same score may stand between; few have one, so that their boxes can be sorted.
    tied = rows[np.union1d(next_to[same], next_to[same] + 1)]
    columns = (found.image_rows, found.class_columns, found.scores, *found.boxes_xywh.T)
    order = order_by(*(falling_ranks(column[tied]) for column in columns))
    again = np.ones(max(len(order) - 1, 0), dtype=np.bool_)
    for column in columns:
        values = column[tied[order]]
        again &= values[1:] == values[:-1]
    again = order[1:][again]
    count = len(again)
    if not count:
        return ""
    row = tied[again.min()]
    image_id = table.truth.image_ids[found.image_rows[row]]
    return (
        f"{count} of {len(found)} detections repeat the picture, class, box and score of another, "
        f"the first in image {image_id}; each counts as wrong. Were pictures predicted twice, to "
        "fill up a batch?"
    )


def _of_sides(table: MatchTable) -> str:
    found = table.found
    negative = np.flatnonzero((found.boxes_xywh[:, 2] < 0) | (found.boxes_xywh[:, 3] < 0))
    if not len(negative):
        return ""
    row = negative[0]
    image_id = table.truth.image_ids[found.image_rows[row]]
    return (
        f"{len(negative)} of {len(found)} boxes have a negative width or height, the first is "
        f"{found.boxes_xywh[row].tolist()} in image {image_id}; they match nothing"
    )


def _of_places(table: MatchTable) -> str:
    """Boxes in another format give low figures, which look like those of a bad detector."""
    truth, found = table.truth, table.found
    explanation = explanation_of_low_ap(table)
    if explanation:
        return explanation
    is_known = np.asarray((truth.sizes_hw > 0).all(axis=1))
    known = np.flatnonzero(is_known[found.image_rows])
    known = known[:: len(known) // _SAMPLE + 1]
    if len(known) >= ENOUGH:
        sizes_hw = truth.sizes_hw[found.image_rows[known]]
        suspected = suspected_format(found.boxes_xywh[known], sizes_hw)
        if suspected:
            return f"the boxes look like {suspected}; COCO's are (x, y, w, h) in pixels"
    if len(table.rows) < ENOUGH or len(table.hits) or truth.is_crowd.all():
        return ""
    return (
        f"none of {len(table.rows)} detections overlaps an object of its class by an IoU of "
        f"{table.options.iou_thresholds[0]:g}; do ids and boxes mean those of {truth.path}?"
    )
