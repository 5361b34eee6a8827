"""What the charts of a data set show, as numbers: how many, how large, where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detr_kit.data.box_faults import clip_boxes
from detr_kit.data.checks.label_faults import repeated
from detr_kit.data.coco_file import CocoColumns
from detr_kit.data.soundness import rows_of

# Cells of the map of positions along either side.
MAP_CELLS = 64


@dataclass(frozen=True)
class Distributions:
    """The numbers of one annotation file. Objects are annotations that are no crowd region.

    - `image_row` (N,) int64, the row of each annotation's image, -1 where there is none;
    - `is_object` (N,) bool;
    - `objects_of_image` (I,) int64, 0 for the second row of an id that is there twice;
    - `is_first` (I,) bool: the row is the first of its id;
    - `category_rows` (C,) int64, the first row of each category id, and `objects_of_category` (C,)
      int64; `num_unknown_category` objects are in none;
    - `annotation_of_side` (M,) int64 and `sides` (M,) float64: the objects with a finite box of
      positive sides, and the square root of its area in pixels;
    - `log_aspects` (M,) float64, log2 of width over height;
    - `annotation_of_share` (K,) int64 and `shares` (K,) float64: those of them that reach into an
      image of known size, and the square root of their part of its area, in [0, 1];
    - `coverage` (64, 64) int64: how many of these K boxes touch each cell of their image, row 0
      at the top.
    """

    image_row: np.ndarray
    is_object: np.ndarray
    objects_of_image: np.ndarray
    is_first: np.ndarray
    category_rows: np.ndarray
    objects_of_category: np.ndarray
    num_unknown_category: int
    annotation_of_side: np.ndarray
    sides: np.ndarray
    log_aspects: np.ndarray
    annotation_of_share: np.ndarray
    shares: np.ndarray
    coverage: np.ndarray

    @property
    def num_objects(self) -> int:
        return int(self.is_object.sum())

    @property
    def num_crowd(self) -> int:
        return len(self.is_object) - self.num_objects

    @property
    def num_empty(self) -> int:
        """Images without objects."""
        return int((self.objects_of_image[self.is_first] == 0).sum())

    @property
    def max_objects(self) -> int:
        """The most objects in one image."""
        return int(self.objects_of_image.max(initial=0))

    @property
    def median_objects(self) -> float:
        counts = self.objects_of_image[self.is_first]
        return float(np.median(counts)) if len(counts) else 0.0


def distributions_of(columns: CocoColumns) -> Distributions:
    """Count what the charts show; faulty boxes and unknown ids are left out where they would."""
    is_object = columns.iscrowd != 1
    image_row = rows_of(columns.image_id_of, columns.image_ids)
    category_row = rows_of(columns.category_id_of, columns.category_ids)
    first_categories = np.flatnonzero(~repeated(columns.category_ids))
    of_image = _counts(image_row[is_object], len(columns.image_ids))
    of_category = _counts(category_row[is_object], len(columns.category_ids))
    sized = np.flatnonzero(is_object & _has_area(columns.boxes_xywh))
    width, height = columns.boxes_xywh[sized, 2:].T
    inside, inside_xyxy = _inside(columns, sized, image_row)
    return Distributions(
        image_row=image_row,
        is_object=is_object,
        objects_of_image=of_image,
        is_first=~repeated(columns.image_ids),
        category_rows=first_categories,
        objects_of_category=of_category[first_categories],
        num_unknown_category=int((category_row[is_object] < 0).sum()),
        annotation_of_side=sized,
        sides=_roots(width, height),
        log_aspects=np.log2(width) - np.log2(height),
        annotation_of_share=inside,
        shares=np.sqrt((inside_xyxy[:, 2:] - inside_xyxy[:, :2]).prod(axis=1)),
        coverage=_coverage(inside_xyxy),
    )


def _counts(rows: np.ndarray, length: int) -> np.ndarray:
    return np.bincount(rows[rows >= 0], minlength=length).astype(np.int64)


def _has_area(boxes_xywh: np.ndarray) -> np.ndarray:
    return np.isfinite(boxes_xywh).all(axis=1) & (boxes_xywh[:, 2:] > 0).all(axis=1)


def _roots(width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Return the square root of the area, also where the area itself is no float64."""
    with np.errstate(over="ignore", under="ignore"):
        area = width * height
    extreme = ~np.isfinite(area) | (area < np.finfo(np.float64).tiny)
    return np.where(extreme, np.sqrt(width) * np.sqrt(height), np.sqrt(area))


def _inside(
    columns: CocoColumns, sized: np.ndarray, image_row: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return which boxes reach into their image, (K,), and boxes_xyxy (K, 4) in fractions of it."""
    sized = sized[image_row[sized] >= 0]
    sizes_hw = columns.sizes_hw[image_row[sized]]
    has_size = (sizes_hw > 0).all(axis=1)
    sized, sizes_hw = sized[has_size], sizes_hw[has_size]
    clipped = clip_boxes(columns.boxes_xywh[sized], sizes_hw)
    good = ~clipped.bad
    border = np.tile(sizes_hw[good, ::-1], 2).astype(np.float64)
    return sized[good], clipped.boxes_xyxy[good] / border


def _coverage(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Count the boxes on every cell: +1 and -1 at their corners, summed up along both axes."""
    low = np.floor(boxes_xyxy[:, :2] * MAP_CELLS).astype(np.int64).clip(0, MAP_CELLS - 1)
    high = np.ceil(boxes_xyxy[:, 2:] * MAP_CELLS).astype(np.int64).clip(low + 1, MAP_CELLS)
    side = MAP_CELLS + 1
    corners = np.zeros(side * side, dtype=np.int64)
    for x, y, sign in (
        (low[:, 0], low[:, 1], 1),
        (high[:, 0], low[:, 1], -1),
        (low[:, 0], high[:, 1], -1),
        (high[:, 0], high[:, 1], 1),
    ):
        corners += sign * np.bincount(y * side + x, minlength=side * side)
    return corners.reshape(side, side).cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
