"""A COCO annotation file as scoring reads it: crowds kept, boxes as written, gaps filled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from detr_kit.categories import CategoryTable
from detr_kit.data.coco_file import CocoColumns, PackedText, read_columns
from detr_kit.data.soundness import category_table, reference_rows, require_unique_images
from detr_kit.errors import DetrKitError

LARGEST = 1e100  # of a box: the products of larger numbers overflow


@dataclass(frozen=True)
class GroundTruth:
    """The pictures of a file by rising id, and its objects in the order of the file.

    - `image_ids` (I,) int64, rising, `file_names` I texts, "" where missing, `sizes_hw` (I, 2)
      int32, 0 where missing;
    - `image_rows` (G,) int32: the picture of each object, a row of the above;
    - `class_columns` (G,) int32: its class, a column of `categories`;
    - `boxes_xywh` (G, 4) float64 pixels, `areas` (G,) float64 square pixels;
    - `is_crowd` (G,) bool;
    - `annotation_ids` (G,) int64 as in the file, to name objects only; NO_ID where missing.
    """

    path: Path
    categories: CategoryTable
    image_ids: np.ndarray
    file_names: PackedText
    sizes_hw: np.ndarray
    image_rows: np.ndarray
    class_columns: np.ndarray
    boxes_xywh: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    annotation_ids: np.ndarray

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    @property
    def num_objects(self) -> int:
        """The number of objects, crowd regions among them."""
        return len(self.image_rows)


def load_ground_truth(
    path: str | Path, *, on_bad_box: Literal["raise", "skip"] = "raise"
) -> GroundTruth:
    """Read a COCO json for scoring.

    A missing `iscrowd` is 0 and a missing `area` is width times height. Boxes are not clipped, as
    the reference does not; crowds without a box are left out. Raises DetrKitError naming the file
    and the annotation: no COCO json, an id without its image or category, a box that is not four
    finite numbers up to LARGEST, unless `on_bad_box="skip"` leaves it out.
    """
    columns = read_columns(path)
    columns.require_well_formed()
    require_unique_images(columns)
    categories = category_table(columns)
    file_rows = reference_rows(columns, "image", columns.image_id_of, columns.image_ids)
    classes = reference_rows(columns, "category", columns.category_id_of, categories.ids_array)
    with np.errstate(invalid="ignore"):  # NaN is in no range
        finite = (np.abs(columns.boxes_xywh) <= LARGEST).all(axis=1)
    if on_bad_box == "raise":
        _require_boxes(columns, finite)
    kept = np.flatnonzero(finite)
    by_id = np.argsort(columns.image_ids)
    place = np.empty(len(by_id), dtype=np.int32)
    place[by_id] = np.arange(len(by_id), dtype=np.int32)
    boxes_xywh, areas = columns.boxes_xywh[kept], columns.areas[kept]
    return GroundTruth(
        path=columns.path,
        categories=categories,
        image_ids=columns.image_ids[by_id],
        file_names=_reordered(columns.file_names, by_id),
        sizes_hw=columns.sizes_hw[by_id],
        image_rows=place[file_rows[kept]],
        class_columns=classes[kept].astype(np.int32),
        boxes_xywh=boxes_xywh,
        areas=np.where(np.isnan(areas), boxes_xywh[:, 2] * boxes_xywh[:, 3], areas),
        is_crowd=columns.iscrowd[kept] == 1,
        annotation_ids=columns.annotation_ids[kept],
    )


def _reordered(texts: PackedText, order: np.ndarray) -> PackedText:
    if (order[1:] > order[:-1]).all():
        return texts
    return PackedText.pack(texts[row].encode() for row in order.tolist())


def _require_boxes(columns: CocoColumns, finite: np.ndarray) -> None:
    bad = np.flatnonzero(~finite & ~(~columns.has_box & (columns.iscrowd == 1)))
    if len(bad):
        row = bad[0]
        shown = f"{columns.boxes_xywh[row].tolist()}" if columns.has_box[row] else "missing"
        raise DetrKitError(
            f"{columns.path}: {columns.annotation_name(row)}: bbox is {shown}, not four finite "
            f"numbers up to {LARGEST:g}"
        )
