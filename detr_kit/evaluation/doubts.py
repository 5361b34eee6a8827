"""What makes figures doubtful though they can be computed: said once, in one line each."""

from __future__ import annotations

import warnings

import numpy as np

from detr_kit.data.box_faults import suspected_format
from detr_kit.errors import DetrKitWarning
from detr_kit.evaluation.found import FoundObjects
from detr_kit.evaluation.match_table import MatchTable
from detr_kit.evaluation.ordering import falling_ranks, order_by

# Other detectors' own evaluations cut at 0.05 at most; more costs AP.
USUAL_CUT = 0.05
# A handful of detections may well all be wrong or odd; of so many, some are not.
ENOUGH = 100
_SAMPLE = 20_000  # boxes whose format is looked at


def warn_of_doubts(table: MatchTable, *, stacklevel: int = 3) -> None:
    """Warn of each of `doubts_of` the results."""
    for doubt in doubts_of(table):
        warnings.warn(f"{table.found.name}: {doubt}", DetrKitWarning, stacklevel=stacklevel)


def doubts_of(table: MatchTable) -> list[str]:
    """Return a line for results that are empty, cut at a score, not in [0, 1], repeated, misplaced.

    Misplaced are boxes in another format than COCO's, of negative sides, or none of them near an
    object.
    """
    found = table.found
    if not len(found):
        return ["there are no detections, so every figure is 0"]
    doubts = [
        _of_threshold(found, table.truth.num_images, table.options.max_detections[-1]),
        _of_scale(found),
        _of_repeats(table),
        _of_sides(table),
        _of_places(table),
    ]
    return [doubt for doubt in doubts if doubt]


def _of_threshold(found: FoundObjects, num_images: int, most: int) -> str:
    """The sign: no score at or below 0.05, though some image has fewer detections than are scored.

    And images differ in their number: a detector with a fixed number of queries that keeps all of
    them gives every image the same number, whatever its scores.
    """
    lowest = found.scores.min()
    counts = np.bincount(found.image_rows, minlength=num_images)
    if lowest <= USUAL_CUT or counts.min() >= most or counts.min() == counts.max():
        return ""
    return (
        f"the lowest score is {lowest:.3f}, so detections seem to be cut at a threshold; AP counts "
        "low-scored detections too and comes out lower: predict at threshold 0 to score"
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
    negative = np.flatnonzero((found.boxes_xywh[:, 2:] < 0).any(axis=1))
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
    sizes_hw = truth.sizes_hw[found.image_rows]
    known = np.flatnonzero((sizes_hw > 0).all(axis=1))
    known = known[:: len(known) // _SAMPLE + 1]
    if len(known) >= ENOUGH:
        suspected = suspected_format(found.boxes_xywh[known], sizes_hw[known])
        if suspected:
            return f"the boxes look like {suspected}; COCO's are (x, y, w, h) in pixels"
    if len(table.rows) < ENOUGH or len(table.hits) or truth.is_crowd.all():
        return ""
    return (
        f"none of {len(table.rows)} detections overlaps an object of its class by an IoU of "
        f"{table.options.iou_thresholds[0]:g}; do ids and boxes mean those of {truth.path}?"
    )
