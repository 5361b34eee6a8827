"""AP and recall by what objects are like: their size, their shape, how many are in the picture.

Each part is scored as COCO scores a range of area: objects of other parts may be found but are not
looked for, and a detection that finds nothing counts only in the part that it would belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from detr_kit.errors import DetrKitError
from detr_kit.evaluation.accumulation import accumulate
from detr_kit.evaluation.coco import Evaluation
from detr_kit.evaluation.match_table import MatchTable, Slices, match
from detr_kit.evaluation.options import ALL_AREAS, AREAS

# Sides of squares, in pixels. COCO's own bounds, 32 and 96, are among them.
SIDES: tuple[float, ...] = (16, 32, 64, 96, 192)
_CROWDING = {"1 object": 1, "2 to 4": 2, "5 to 9": 5, "10 to 19": 10, "20 and more": 20}
_RATIOS = ("below 1:3", "1:3 to 1:2", "1:2 to 2:1", "2:1 to 3:1", "above 3:1")


@dataclass(frozen=True)
class Breakdown:
    """Figures of B parts of a data set, None where a part has no objects.

    - `num_objects` (B,) int64: the objects that count, of all classes;
    - `ap`: mean over the IoU thresholds and the classes that have objects in the part;
      `ap_at_iou`: at `iou` alone; both with the largest number of detections;
    - `recall`: the share of the objects, of all classes together, that is found at `iou`, whatever
      the score;
    - `note`: how objects and detections fall into the parts.
    """

    title: str
    names: tuple[str, ...]
    num_objects: np.ndarray
    ap: tuple[float | None, ...]
    ap_at_iou: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    note: str

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """Return the figures of each part for json."""
        rows = zip(self.num_objects.tolist(), self.ap, self.ap_at_iou, self.recall, strict=True)
        keys = ("objects", "ap", "ap_at_iou", "recall")
        return {
            name: dict(zip(keys, row, strict=True))
            for name, row in zip(self.names, rows, strict=True)
        }


def breakdowns(evaluation: Evaluation, iou: float = 0.5) -> tuple[Breakdown, Breakdown, Breakdown]:
    """Return the figures by size, by crowding and by shape.

    Raises DetrKitError where `iou` is not among the thresholds of the evaluation.
    """
    return (
        by_size(evaluation, iou),
        by_crowding(evaluation, iou),
        by_aspect_ratio(evaluation, iou),
    )


def by_size(
    evaluation: Evaluation, iou: float = 0.5, *, sides: Sequence[float] = SIDES
) -> Breakdown:
    """Return the figures by the labelled area, finer than COCO, which has `sides=(32, 96)`.

    The part between two sides holds the areas from the one's square to the other's, both included,
    as in pycocotools. Raises DetrKitError as `breakdowns` does, and where sides do not rise.
    """
    if not len(sides) or min(np.diff([0, *sides])) <= 0:
        raise DetrKitError(f"sides must rise from above 0, got {list(sides)}")
    table = evaluation.table
    squares = [float(side) ** 2 for side in sides]
    low, high = np.array([0.0, *squares]), np.array([*squares, AREAS[ALL_AREAS][1]])
    areas = table.truth.areas[:, None]
    box_areas = (table.found.boxes_xywh[:, 2] * table.found.boxes_xywh[:, 3])[:, None]
    between = [f"{a:g} to {b:g} px" for a, b in pairwise(sides)]
    return _breakdown(
        evaluation,
        iou,
        "Size",
        (f"below {sides[0]:g} px", *between, f"above {sides[-1]:g} px"),
        (areas < low) | (areas > high),
        (box_areas < low) | (box_areas > high),
        "By the labelled area, as in COCO, and detections by the area of their boxes; 32 px stands "
        "for 32 x 32 square pixels. An area that is a bound belongs to both sides of it.",
    )


def by_crowding(evaluation: Evaluation, iou: float = 0.5) -> Breakdown:
    """Return the figures by the number of objects in the picture, of all classes together.

    Each part equals an evaluation of its pictures alone. Raises DetrKitError as `breakdowns` does.
    """
    table = evaluation.table
    truth = table.truth
    counted = ~table.slices.object_ignored[:, table.slices.names.index(ALL_AREAS)]
    counts = np.bincount(truth.image_rows[counted], minlength=truth.num_images)
    parts = np.searchsorted(list(_CROWDING.values()), counts, "right") - 1
    return _breakdown(
        evaluation,
        iou,
        "Objects in the picture",
        tuple(_CROWDING),
        *_outside(parts[truth.image_rows], parts[table.found.image_rows], len(_CROWDING)),
        "By the number of objects of all classes in the picture, crowd regions left out. Pictures "
        "without objects, and what is found in them, are in no part.",
    )


def by_aspect_ratio(evaluation: Evaluation, iou: float = 0.5) -> Breakdown:
    """Return the figures by width to height of the labelled box.

    A ratio that is a bound belongs to the part nearer to the square. Raises DetrKitError as
    `breakdowns` does.
    """
    table = evaluation.table
    object_parts = _ratio_parts(table.truth.boxes_xywh)
    detection_parts = _ratio_parts(table.found.boxes_xywh)
    return _breakdown(
        evaluation,
        iou,
        "Width to height",
        _RATIOS,
        *_outside(object_parts, detection_parts, len(_RATIOS)),
        "By width to height of the labelled box; detections that find nothing count by their own.",
    )


def _ratio_parts(boxes_xywh: np.ndarray) -> np.ndarray:
    """Return the part (N,) of each box, 2 for those near the square; so that turning mirrors."""
    width, height = boxes_xywh[:, 2], boxes_xywh[:, 3]
    longer, shorter = np.maximum(width, height), np.minimum(width, height)
    steps = (longer > 2 * shorter).astype(np.int64) + (longer > 3 * shorter)
    return 2 + np.where(width > height, steps, -steps)


def _outside(
    object_parts: np.ndarray, detection_parts: np.ndarray, num_parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return which objects (G, B) and which detections (D, B) are not of each part."""
    parts = np.arange(num_parts)
    return object_parts[:, None] != parts, detection_parts[:, None] != parts


def _breakdown(
    evaluation: Evaluation,
    iou: float,
    title: str,
    names: tuple[str, ...],
    object_outside: np.ndarray,
    detection_outside: np.ndarray,
    note: str,
) -> Breakdown:
    """Match anew with objects (G, B) and detections (D, B) outside each part ignored."""
    index = evaluation.table.options.required_threshold_index(iou)
    table = evaluation.table
    whole = table.slices.names.index(ALL_AREAS)
    slices = Slices(
        names,
        object_outside | table.slices.object_ignored[:, [whole]],
        detection_outside | table.slices.outside[:, [whole]],
    )
    options = replace(table.options, max_detections=table.options.max_detections[-1:])
    parts = match(table.truth, table.found, options, slices)
    precision = accumulate(parts).precision[..., -1]  # (T, R, K, B)
    num_objects = (~slices.object_ignored).sum(axis=0)
    return Breakdown(
        title,
        names,
        num_objects,
        ap=tuple(_mean(precision[..., part]) for part in range(len(names))),
        ap_at_iou=tuple(_mean(precision[index, ..., part]) for part in range(len(names))),
        recall=_recalls(parts, index, num_objects),
        note=note,
    )


def _recalls(table: MatchTable, index: int, num_objects: np.ndarray) -> tuple[float | None, ...]:
    num_found = [int(table.at(index, name).is_true.sum()) for name in table.slices.names]
    pairs = zip(num_found, num_objects.tolist(), strict=True)
    return tuple(found / total if total else None for found, total in pairs)


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return float(np.mean(known)) if len(known) else None
