"""Entries of COCO results, of a file or of a list: read fast where all are sound, else one by one.

The slow way names the entry at fault.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from detr_kit.data.coco_file import NO_ID
from detr_kit.data.json_file import read_bytes
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import LARGEST

LISTED = 5  # ids or keys in one error
_KEYS = ("image_id", "category_id", "bbox", "score")
_BOX_EXPECTED = f"expected x, y, width, height as finite numbers up to {LARGEST:g}"
_SCORE_EXPECTED = "expected a finite number"

_Int64 = Annotated[int, msgspec.Meta(ge=NO_ID + 1, le=2**63 - 1)]


class ResultRow(msgspec.Struct, gc=False):
    """One entry of a results file; its other keys are skipped."""

    image_id: _Int64
    category_id: _Int64
    bbox: tuple[float, float, float, float]
    score: float


def read_results(path: Path) -> ResultColumns:
    content = read_bytes(path, "results file")
    try:
        # All at once: taken apart into records first, as annotations are, it takes twice as long.
        return _of_typed(str(path), msgspec.json.decode(content, type=list[ResultRow]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # Slow, but it names the entry at fault, and reads NaN and Infinity, which json has not.
    try:
        rows = json.loads(content, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise DetrKitError(f"{path}: not a json file: {_json_fault(content, error)}") from error
    if not isinstance(rows, list):
        raise DetrKitError(
            f"{path}: not a COCO results file: expected a list of detections, got {_top(rows)}"
        )
    return columns_of_rows(str(path), rows)


def _whole(digits: str) -> float:
    """Python refuses to read thousands of digits; no float has more than 309."""
    return int(digits) if len(digits) < 400 else math.inf


def _json_fault(content: bytes, error: Exception) -> str:
    if content.startswith(b"\x1f\x8b"):
        return "a gzip archive; unpack it first"
    if not content.strip():
        return "the file is empty"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    place = f"line {error.lineno} column {error.colno}"
    if error.msg == "Extra data":
        return f"more follows at {place}, where it should end; put all entries in one list"
    if error.pos >= len(error.doc.rstrip()):
        return f"it ends too early, in line {error.lineno}; the file is cut off"
    return f"{error.msg} at {place}"


def _top(content: Any) -> str:
    """Say what a file holds in place of a list."""
    if not isinstance(content, dict):
        return short(content)
    if {"images", "annotations"} <= content.keys():
        return "a COCO annotation file; are results and annotations swapped?"
    lists = [key for key, value in content.items() if isinstance(value, list)]
    advice = f"; write the list under {short(lists[0])} alone" if len(lists) == 1 else ""
    return f"an object with {', '.join(map(short, list(content)[:LISTED])) or 'nothing'}{advice}"


def _of_typed(name: str, rows: list[ResultRow]) -> ResultColumns:
    count = len(rows)
    flat = chain.from_iterable(row.bbox for row in rows)
    return required_finite(
        ResultColumns(
            name,
            np.fromiter((row.image_id for row in rows), np.int64, count),
            np.fromiter((row.category_id for row in rows), np.int64, count),
            np.fromiter(flat, np.float64, 4 * count).reshape(count, 4),
            np.fromiter((row.score for row in rows), np.float64, count),
        )
    )


def columns_of_rows(name: str, rows: Iterable[Any]) -> ResultColumns:
    checked = [_row(name, number, row) for number, row in enumerate(rows)]
    return required_finite(_of_typed(name, checked))


def _row(name: str, number: int, row: Any) -> ResultRow:
    entry = f"{name}: entry {number}"
    if not isinstance(row, Mapping):
        raise DetrKitError(
            f"{entry} is not a COCO result: {short(row)}, expected an object with "
            f"{', '.join(_KEYS)}"
        )
    if missing := [key for key in _KEYS if key not in row]:
        raise DetrKitError(f"{entry} is not a COCO result: it has no {', '.join(missing)}")
    image_id, category_id, box_xywh, score = (row[key] for key in _KEYS)
    for kind, id_ in (("image_id", image_id), ("category_id", category_id)):
        if not is_id(id_):
            fault = "is beyond 64 bits" if type(id_) is int else "is not an integer"
            raise DetrKitError(f"{entry} has {kind} {short(id_)}, which {fault}")
    if not _is_box(box_xywh):
        raise DetrKitError(f"{entry} has bbox {short(box_xywh)}, {_BOX_EXPECTED}")
    if not _is_finite(score):
        raise DetrKitError(f"{entry} has score {short(score)}, {_SCORE_EXPECTED}")
    x, y, w, h = (float(value) for value in box_xywh)
    return ResultRow(int(image_id), int(category_id), (x, y, w, h), float(score))


def required_finite(columns: ResultColumns) -> ResultColumns:
    boxes_xywh, scores = columns.boxes_xywh, columns.scores
    in_range = (np.abs(boxes_xywh) <= LARGEST).all(axis=1)
    if not in_range.all():
        row = int(np.argmin(in_range))
        shown = f"bbox {boxes_xywh[row].tolist()}, {_BOX_EXPECTED}"
    elif not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores)))
        shown = f"score {float(scores[row])}, {_SCORE_EXPECTED}"
    else:
        return columns
    raise DetrKitError(f"{columns.name}: entry {row} has {shown}")


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list | tuple | np.ndarray)
        and len(value) == 4
        and all(_is_finite(number) for number in value)
    )


def _is_finite(value: Any) -> bool:
    """Whether the value is a finite number, of Python or of numpy."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def is_id(value: Any) -> bool:
    return _is_finite(value) and int(value) == value and abs(value) < 2**63


def short(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
        return f"of type {type(value).__name__} and boundless length"
    return text if len(text) <= 80 else f"{text[:77]}..."
