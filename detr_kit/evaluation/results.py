"""COCO results, of this library or of any other: reading, checking, writing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detr_kit.data.soundness import rows_of
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.found import FoundObjects, ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.result_rows import (
    LISTED,
    ResultRow,
    columns_of_rows,
    is_id,
    read_results,
    required_finite,
    short,
)
from detr_kit.files import atomic_write

_COLUMNS = 7  # of an array: image id, x, y, w, h, score, category id

Results = (
    str | Path | Sequence[Mapping[str, Any]] | Mapping[int, Detections] | np.ndarray | ResultColumns
)


def result_columns(results: Results) -> ResultColumns:
    """Return results of any form as columns.

    A results file, its list of dicts, Detections by image id, or an array (D, 7) of image id, x,
    y, w, h, score and category id, as `pycocotools.COCO.loadRes` takes it. Raises DetrKitError
    naming the file and the entry that is no COCO result, or is not finite.
    """
    if isinstance(results, ResultColumns):
        return results
    if isinstance(results, str | Path):
        return read_results(Path(results))
    if isinstance(results, np.ndarray):
        return _of_array(results)
    if isinstance(results, Mapping):
        return _of_detections(results)
    if not isinstance(results, Iterable):
        raise DetrKitError(
            "results: expected a COCO results file, its list of dicts, Detections by image id, or "
            f"an array, got {type(results).__name__}"
        )
    return columns_of_rows("results", results)


def joined(parts: Sequence[ResultColumns]) -> ResultColumns:
    """Return the detections of several parts, one after the other."""
    return ResultColumns(
        parts[0].name,
        np.concatenate([part.image_ids for part in parts]),
        np.concatenate([part.category_ids for part in parts]),
        np.concatenate([part.boxes_xywh for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def found_objects(results: Results, truth: GroundTruth) -> FoundObjects:
    """Return results as scoring takes them; see `result_columns` for what they may be.

    Raises DetrKitError for image or category ids that the annotation file does not know, listing
    the first of them.
    """
    columns = result_columns(results)
    image_rows = rows_of(columns.image_ids, truth.image_ids)
    class_columns = rows_of(columns.category_ids, truth.categories.ids_array)
    for kind, ids, rows in (
        ("image", columns.image_ids, image_rows),
        ("category", columns.category_ids, class_columns),
    ):
        if (rows < 0).any():
            unknown, first_places = np.unique(ids[rows < 0], return_index=True)
            unknown = unknown[np.argsort(first_places)]
            listed = ", ".join(str(id_) for id_ in unknown[:LISTED])
            more = f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
            raise DetrKitError(f"{columns.name}: {kind} ids {listed}{more} are not in {truth.path}")
    return FoundObjects(
        columns.name,
        image_rows.astype(np.int32),
        class_columns.astype(np.int32),
        columns.boxes_xywh,
        columns.scores,
    )


def write_results(path: str | Path, results: Results) -> None:
    """Write a COCO results file: a list with image_id, category_id, bbox (xywh) and score.

    Raises DetrKitError where an entry is no COCO result or is not finite.
    """
    columns = result_columns(results)
    rows = zip(
        columns.image_ids.tolist(),
        columns.category_ids.tolist(),
        columns.boxes_xywh.tolist(),
        columns.scores.tolist(),
        strict=True,
    )
    encoder = msgspec.json.Encoder()
    separator = b"["
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for image_id, category_id, box_xywh, score in rows:
            row = ResultRow(image_id, category_id, tuple(box_xywh), score)
            file.write(separator + encoder.encode(row))
            separator = b",\n"
        file.write(b"]\n" if len(columns) else b"[]\n")


def _of_array(array: np.ndarray) -> ResultColumns:
    if array.ndim != 2 or array.shape[1] != _COLUMNS or array.dtype.kind not in "fiu":
        raise DetrKitError(
            f"results: expected an array (D, {_COLUMNS}) of image id, x, y, w, h, score and "
            f"category id, got {array.shape} {array.dtype}"
        )
    image_ids, category_ids = _ids(array, 0, "image_id"), _ids(array, 6, "category_id")
    boxes_xywh = np.ascontiguousarray(array[:, 1:5], dtype=np.float64)
    scores = np.ascontiguousarray(array[:, 5], dtype=np.float64)
    return required_finite(ResultColumns("results", image_ids, category_ids, boxes_xywh, scores))


def _ids(array: np.ndarray, place: int, kind: str) -> np.ndarray:
    values = array[:, place]
    with np.errstate(invalid="ignore"):  # NaN has no integer; the comparison finds it
        ids = values.astype(np.int64)
    fault, bad = "is not an integer", ids != values
    if not bad.any() and array.dtype.kind == "f":
        # 2,008,000,008 in float32 would silently become another picture
        fault = f"{array.dtype} may have rounded; use float64 or rows of dicts"
        bad = np.abs(values) > 2.0 ** (np.finfo(array.dtype).nmant + 1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DetrKitError(f"results: entry {row} has {kind} {values[row]}, which {fault}")
    return ids


def _of_detections(results: Mapping[int, Detections]) -> ResultColumns:
    """Width and height are taken in float64, as `Detections.to_coco` does."""
    for image_id, found in results.items():
        if not isinstance(found, Detections) or not is_id(image_id):
            raise DetrKitError(
                f"results: expected Detections by image id, got {type(found).__name__} under "
                f"{short(image_id)}"
            )
    counts = [len(found) for found in results.values()]
    corners = [np.empty((0, 4)), *(found.boxes_xyxy for found in results.values())]
    boxes_xywh = np.concatenate(corners, dtype=np.float64)
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    category_ids = [np.empty(0, np.int64), *(found.category_ids for found in results.values())]
    scores = [np.empty(0), *(found.scores for found in results.values())]
    return ResultColumns(
        "results",
        np.array([int(image_id) for image_id in results], dtype=np.int64).repeat(counts),
        np.concatenate(category_ids),
        boxes_xywh,
        np.concatenate(scores, dtype=np.float64),
    )
