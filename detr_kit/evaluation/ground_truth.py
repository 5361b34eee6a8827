"""A COCO annotation file as scoring reads it: crowds kept, boxes as written, gaps filled."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError


class _Image(msgspec.Struct, gc=False):
    id: int


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float] | None = None
    id: int | None = None
    area: float | None = None
    iscrowd: int | bool = 0


class _CocoFile(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


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
    path = Path(path)
    coco = _decode(path)
    counts = Counter(image.id for image in coco.images)
    twice = [id_ for id_, count in counts.items() if count > 1]
    if twice:
        raise DetrKitError(f"{path}: image id {twice[0]} appears twice")
    try:
        categories = CategoryTable.from_coco([msgspec.structs.asdict(c) for c in coco.categories])
    except DetrKitError as error:
        raise DetrKitError(f"{path}: {error}") from error
    boxed: list[tuple[_Annotation, tuple[float, ...]]] = []
    for annotation in coco.annotations:
        fault = _unknown_id(annotation, counts, categories)
        if fault:
            raise DetrKitError(f"{path}: annotation {annotation.id}: {fault}")
        if annotation.bbox is not None and all(map(math.isfinite, annotation.bbox)):
            boxed.append((annotation, annotation.bbox))
        elif on_bad_box == "raise" and not (annotation.iscrowd and annotation.bbox is None):
            shown = "missing" if annotation.bbox is None else f"{list(annotation.bbox)}"
            raise DetrKitError(
                f"{path}: annotation {annotation.id}: bbox is {shown}, not four finite numbers"
            )
    dataset: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": id_} for id_ in counts],
        "categories": [
            {"id": id_, "name": name}
            for id_, name in zip(categories.ids, categories.names, strict=True)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": a.image_id,
                "category_id": a.category_id,
                "bbox": list(bbox),
                "area": bbox[2] * bbox[3] if a.area is None else a.area,
                "iscrowd": int(a.iscrowd),
            }
            for number, (a, bbox) in enumerate(boxed, start=1)
        ],
    }
    return GroundTruth(path, dataset, frozenset(counts), categories)


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


def _decode(path: Path) -> _CocoFile:
    try:
        # Typed from the start: what scoring does not ask for, polygons above all, is not built.
        return msgspec.json.decode(path.read_bytes(), type=_CocoFile)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as first:
        if isinstance(first, msgspec.ValidationError):
            raise DetrKitError(f"{path}: not a COCO annotation file: {first}") from first
        values = read_json(path)
    try:
        return msgspec.convert(values, type=_CocoFile)
    except msgspec.ValidationError as error:
        raise DetrKitError(f"{path}: not a COCO annotation file: {error}") from error


def _unknown_id(annotation: _Annotation, images: Counter[int], categories: CategoryTable) -> str:
    if annotation.image_id not in images:
        return f"no image has the id {annotation.image_id}"
    if annotation.category_id not in categories.column_of:
        return f"no category has the id {annotation.category_id}"
    return ""
