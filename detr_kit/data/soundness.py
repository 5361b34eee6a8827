"""What must hold of a COCO file before anything is done with it; else one line names the fault."""

from __future__ import annotations

from typing import Literal

import numpy as np

from detr_kit.categories import CategoryTable
from detr_kit.data.box_faults import describe_fault
from detr_kit.data.coco_file import CocoColumns
from detr_kit.data.names import stays_inside
from detr_kit.errors import DetrKitError

OnBadBox = Literal["raise", "skip"]


def category_table(columns: CocoColumns) -> CategoryTable:
    """Return the table of a file's categories; raises DetrKitError naming the file."""
    pairs = zip(columns.category_ids.tolist(), columns.category_names, strict=True)
    try:
        return CategoryTable.from_coco({"id": id_, "name": name} for id_, name in pairs)
    except DetrKitError as error:
        raise DetrKitError(f"{columns.path}: {error}") from error


def require_unique_images(columns: CocoColumns) -> None:
    """Raise DetrKitError where two images have one id."""
    unique, counts = np.unique(columns.image_ids, return_counts=True)
    if (counts > 1).any():
        raise DetrKitError(f"{columns.path}: image id {unique[counts > 1][0]} appears twice")


def require_images(columns: CocoColumns) -> None:
    """Raise DetrKitError where an image has no size, or no name inside the image folder."""
    flat = np.flatnonzero((columns.sizes_hw < 1).any(axis=1))
    if len(flat):
        height, width = columns.sizes_hw[flat[0]]
        raise DetrKitError(
            f"{columns.path}: image {columns.image_ids[flat[0]]}: width {width} and height "
            f"{height} must be given and positive"
        )
    for row, name in enumerate(columns.file_names):
        if not stays_inside(name):
            raise DetrKitError(
                f"{columns.path}: image {columns.image_ids[row]}: file_name {name!r} must lead to "
                "a file inside the image folder"
            )


def rows_of(ids: np.ndarray, known_ids: np.ndarray) -> np.ndarray:
    """Return where each id stands among `known_ids`, first where twice, -1 where it does not."""
    rows: np.ndarray = np.full(len(ids), -1, dtype=np.int64)
    if not len(known_ids) or not len(ids):
        return rows
    order = np.argsort(known_ids, kind="stable")
    by_size = known_ids[order]
    place = np.minimum(_places(ids, by_size), len(known_ids) - 1)
    found = by_size[place] == ids
    rows[found] = order[place[found]]
    return rows


def _places(ids: np.ndarray, by_size: np.ndarray) -> np.ndarray:
    """Return np.searchsorted(by_size, ids), from a table where the ids leave few gaps."""
    low, high = int(by_size[0]), int(by_size[-1])
    if high - low > 8 * len(by_size):
        return np.searchsorted(by_size, ids)
    table = np.searchsorted(by_size, np.arange(low, high + 1))
    return table[np.clip(ids, low, high) - low]


def reference_rows(
    columns: CocoColumns, kind: str, ids: np.ndarray, known_ids: np.ndarray
) -> np.ndarray:
    """Return the position of each annotation's image or category, (N,) int64."""
    rows = rows_of(ids, known_ids)
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        name = columns.annotation_name(unknown[0])
        raise DetrKitError(f"{columns.path}: {name}: no {kind} has the id {ids[unknown[0]]}")
    return rows


def require_boxes(
    columns: CocoColumns, rows: np.ndarray, bad: np.ndarray, on_bad_box: OnBadBox
) -> None:
    """Raise DetrKitError where one of `rows`, no crowd regions, is `bad`, unless to be skipped."""
    if bad.any() and on_bad_box == "raise":
        row = rows[np.flatnonzero(bad)[0]]
        box = columns.boxes_xywh[row]
        fault = describe_fault(box) if columns.has_box[row] else "bbox is missing"
        raise DetrKitError(
            f"{columns.path}: {columns.annotation_name(row)}: {fault} "
            f"({int(bad.sum())} such in the file; on_bad_box=skip leaves them out)"
        )
