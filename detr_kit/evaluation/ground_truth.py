"""A COCO annotation file as scoring reads it: crowds kept, boxes as written, gaps filled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from detr_kit.categories import CategoryTable
from detr_kit.data.coco_file import CocoColumns, read_columns
from detr_kit.data.soundness import category_table, reference_rows, require_unique_images
from detr_kit.errors import DetrKitError


@dataclass(frozen=True)
class GroundTruth:
    """`dataset` has the layout of a COCO file, reduced to what scoring boxes needs."""

    path: Path
    dataset: dict[str, list[dict[str, Any]]]
    image_ids: frozenset[int]
    categories: CategoryTable


def load_ground_truth(
    path: str | Path, *, on_bad_box: Literal["raise", "skip"] = "raise"
) -> GroundTruth:
    """Read a COCO json for scoring.

    Annotations get ids from 1 in memory, as COCOeval takes id 0 for "no match"; a missing
    `iscrowd` is 0 and a missing `area` is width times height. Boxes are not clipped, as the
    reference does not; crowds without a box are left out. Raises DetrKitError naming the file and
    the annotation: no COCO json, an id without its image or category, a box that is not four
    finite numbers, unless `on_bad_box="skip"` leaves it out.
    """
    columns = read_columns(path)
    columns.require_well_formed()
    require_unique_images(columns)
    categories = category_table(columns)
    reference_rows(columns, "image", columns.image_id_of, columns.image_ids)
    reference_rows(columns, "category", columns.category_id_of, categories.ids_array)
    finite = np.isfinite(columns.boxes_xywh).all(axis=1)
    if on_bad_box == "raise":
        _require_boxes(columns, finite)
    dataset: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": id_} for id_ in columns.image_ids.tolist()],
        "categories": [
            {"id": id_, "name": name}
            for id_, name in zip(categories.ids, categories.names, strict=True)
        ],
        "annotations": _annotation_dicts(columns, np.flatnonzero(finite)),
    }
    return GroundTruth(columns.path, dataset, frozenset(columns.image_ids.tolist()), categories)


def _require_boxes(columns: CocoColumns, finite: np.ndarray) -> None:
    bad = np.flatnonzero(~finite & ~(~columns.has_box & (columns.iscrowd == 1)))
    if len(bad):
        row = bad[0]
        shown = f"{columns.boxes_xywh[row].tolist()}" if columns.has_box[row] else "missing"
        raise DetrKitError(
            f"{columns.path}: {columns.annotation_name(row)}: bbox is {shown}, not four finite "
            "numbers"
        )


def _annotation_dicts(columns: CocoColumns, rows: np.ndarray) -> list[dict[str, Any]]:
    boxes = columns.boxes_xywh[rows]
    areas = columns.areas[rows]
    areas = np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)
    values = zip(
        columns.image_id_of[rows].tolist(),
        columns.category_id_of[rows].tolist(),
        boxes.tolist(),
        areas.tolist(),
        (columns.iscrowd[rows] == 1).astype(int).tolist(),
        strict=True,
    )
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    return [dict(zip(keys, (number, *row), strict=True)) for number, row in enumerate(values, 1)]


def read_json(path: Path) -> Any:
    """Return the content of a json file; raises DetrKitError naming it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DetrKitError(f"{path}: no such file") from error
    except OSError as error:
        raise DetrKitError(f"{path}: cannot read the file: {error.strerror}") from error
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:  # Python writes NaN and Infinity, which json has not: they are named where they stand.
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DetrKitError(f"{path}: not a json file: {error}") from error
