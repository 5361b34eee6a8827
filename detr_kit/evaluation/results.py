"""COCO results, of this library or of any other: reading, checking, writing."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.evaluation.ground_truth import GroundTruth, read_json
from detr_kit.files import atomic_write

Results = str | Path | Sequence[Mapping[str, Any]] | Mapping[int, Detections]

MAX_DETECTIONS = 100  # an image and class, as COCO scores them
# Other detectors' own evaluations cut at 0.05 at most; more costs AP.
USUAL_CUT = 0.05
LISTED = 5  # unknown ids in one error


def result_rows(results: Results) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """Return what errors call the results, and one COCO dict a detection."""
    if isinstance(results, str | Path):
        rows = read_json(Path(results))
        if not isinstance(rows, list):
            raise DetrKitError(f"{results}: not a COCO results file: expected a list at the top")
        return str(results), rows
    if isinstance(results, Mapping):
        return "results", [
            row for image_id, found in results.items() for row in found.to_coco(int(image_id))
        ]
    return "results", results


def write_results(path: str | Path, results: Results) -> None:
    """Write a COCO results file: a list with image_id, category_id, bbox (xywh) and score."""
    _, rows = result_rows(results)
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(list(rows), file, allow_nan=False)


def result_annotations(
    name: str, rows: Sequence[Mapping[str, Any]], truth: GroundTruth
) -> list[dict[str, Any]]:
    """Check the results and return them as the annotations that pycocotools would make of them.

    Raises DetrKitError for a row without a key, a box or score that is not finite, and for ids
    that the annotation file does not know, listing the first of them.
    """
    unknown: dict[str, dict[Any, None]] = {"image": {}, "category": {}}
    annotations = []
    for number, row in enumerate(rows):
        try:
            image_id, category_id = row["image_id"], row["category_id"]
            box_xywh, score = row["bbox"], row["score"]
        except (KeyError, TypeError, IndexError) as error:
            raise DetrKitError(
                f"{name}: entry {number} is not a COCO result: expected image_id, category_id, "
                "bbox and score"
            ) from error
        if not _is_box(box_xywh) or not _is_finite(score):
            raise DetrKitError(
                f"{name}: entry {number} has bbox {box_xywh!r} and score {score!r}, "
                "expected finite numbers"
            )
        if not _known(image_id, truth.image_ids):
            unknown["image"][str(image_id)] = None
        elif not _known(category_id, truth.categories.column_of):
            unknown["category"][str(category_id)] = None
        annotations.append(
            {
                "id": number + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box_xywh,
                "area": box_xywh[2] * box_xywh[3],
                "iscrowd": 0,
                "score": score,
            }
        )
    for kind, ids in unknown.items():
        if ids:
            first = ", ".join(list(ids)[:LISTED])
            more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
            raise DetrKitError(f"{name}: {kind} ids {first}{more} are not in {truth.path}")
    return annotations


def warn_of_threshold(name: str, rows: Sequence[Mapping[str, Any]], num_images: int) -> None:
    """Warn where results look cut at a score, which takes AP away.

    The sign: no score at or below 0.05, in a data set where some image has fewer than the 100
    detections that are scored, and images differ in their number of detections (a detector with a
    fixed number of queries that keeps all of them gives every image the same number, whatever its
    scores).
    """
    if not rows:
        return
    lowest = min(row["score"] for row in rows)
    _, counts = np.unique([row["image_id"] for row in rows], return_counts=True)
    fewest = int(counts.min()) if len(counts) == num_images else 0
    if lowest > USUAL_CUT and fewest < MAX_DETECTIONS and fewest != counts.max():
        warnings.warn(
            f"{name}: the lowest score is {lowest:.3f}, so detections seem to be cut at a "
            "threshold; AP counts low-scored detections too and comes out lower: predict at "
            "threshold 0 to score",
            DetrKitWarning,
            stacklevel=3,
        )


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list | tuple | np.ndarray)
        and len(value) == 4
        and all(_is_finite(number) for number in value)
    )


def _is_finite(value: Any) -> bool:
    """Whether the value is a finite number, of Python or of numpy."""
    return isinstance(value, Real) and math.isfinite(value)


def _known(id_: Any, ids: Any) -> bool:
    try:
        return id_ in ids
    except TypeError:  # a list, say
        return False
