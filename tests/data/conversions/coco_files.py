"""A COCO file with a bit of everything, for the tests of splits, merges and subsets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detr_kit.data.annotations import load_annotations


def coco_file(path: Path, **changes: Any) -> Path:
    """Four pictures, the last without objects; keys that nobody knows in every kind of record."""
    content: dict[str, Any] = {
        "info": {"year": 2024},
        "licenses": [{"id": 1, "name": "CC BY"}],
        "images": [
            {
                "id": id_, "file_name": f"{id_}.png", "width": 40, "height": 20, "license": 1,
                "camera": {"iso": 100.50},
            }
            for id_ in (5, 6, 7, 8)
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 2, 3, 4.50], "note": "ö"},
            {"id": 2, "image_id": 6, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1,
             "segmentation": {"counts": [1, 2], "size": [20, 40]}},
            {"id": 3, "image_id": 6, "category_id": 9, "bbox": [1, 2, 3, 4], "attributes": {}},
            {"id": 4, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4]},
        ],
        "categories": [
            {"id": 9, "name": "star", "supercategory": "shape"}, {"id": 3, "name": "circle"},
        ],
        "odd key": [1, {"a": None}],
    }  # fmt: skip
    path.write_text(json.dumps({**content, **changes}, indent=2))
    return path


def by_id(records: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {record["id"]: record for record in records}


def classes_of_images(path: Path) -> list[set[int]]:
    annotations = load_annotations(path, on_bad_box="skip")
    return [{*annotations.objects_of(row)[1].tolist()} for row in range(len(annotations))]
