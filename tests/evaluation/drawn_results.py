"""A drawn data set, and the results of a detector that finds most of its objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detr_kit.evaluation.doubts import doubts_of
from detr_kit.evaluation.ground_truth import GroundTruth, load_ground_truth
from detr_kit.evaluation.match_table import match
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.results import found_objects
from tests.evaluation.coco_problems import write_json

IMAGE, X, Y, W, H, SCORE, CLASS = range(7)  # columns of results


def truth_file(
    path: Path, *, num_images: int = 40, per_image: int = 6, num_classes: int = 4, seed: int = 0
) -> GroundTruth:
    """Pictures of many sizes, of ids 10, 13, 16 ..., with objects of many sizes anywhere."""
    rng = np.random.default_rng(seed)
    sizes_wh = rng.integers(300, 640, (num_images, 2))
    images = [
        {"id": 10 + 3 * row, "file_name": f"{-row % 7}_{row}.jpg", "width": w, "height": h}
        for row, (w, h) in enumerate(sizes_wh.tolist())
    ]
    rows = np.arange(num_images).repeat(per_image)
    boxes_xywh = placed(rng, sizes_wh[rows])
    classes = 1 + rng.integers(0, num_classes, len(rows))
    annotations = [
        {"id": 1 + n, "image_id": 10 + 3 * row, "category_id": class_, "bbox": box}
        for n, (row, class_, box) in enumerate(
            zip(rows.tolist(), classes.tolist(), boxes_xywh.round(2).tolist(), strict=True)
        )
    ]
    # of the last class, 90, there are no objects
    categories = [{"id": id_, "name": f"c{id_}"} for id_ in (*range(1, num_classes + 1), 90)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    return load_ground_truth(write_json(path, content))


def placed(rng: np.random.Generator, sizes_wh: np.ndarray) -> np.ndarray:
    sides = np.exp(rng.uniform(np.log(16), np.log(250), sizes_wh.shape))
    return np.concatenate([rng.uniform(0, 1, sides.shape) * (sizes_wh - sides), sides], axis=1)


def detected(
    truth: GroundTruth, *, seed: int = 0, jitter: float = 0.08, share: float = 0.8, wrong: int = 14
) -> np.ndarray:
    """Results (D, 7) of a fair detector: most objects, about, and `wrong` others a picture."""
    rng = np.random.default_rng(seed)
    kept = np.flatnonzero(rng.random(truth.num_objects) < share)
    boxes_xywh = truth.boxes_xywh[kept]
    sides = boxes_xywh[:, 2:]
    shaken = np.concatenate(
        [
            boxes_xywh[:, :2] + rng.normal(0, jitter, sides.shape) * sides,
            sides * np.exp(rng.normal(0, jitter, sides.shape)),
        ],
        axis=1,
    )
    others = np.arange(truth.num_images).repeat(wrong)
    rows = np.concatenate([truth.image_rows[kept], others])
    num_classes = len(truth.categories) - 1
    classes = np.concatenate([truth.class_columns[kept], rng.integers(0, num_classes, len(others))])
    scores = np.concatenate([rng.beta(3, 2, len(kept)), rng.beta(1, 4, len(others))])
    boxes = np.concatenate([shaken, placed(rng, truth.sizes_hw[others, ::-1])])
    ids = truth.categories.ids_array[classes]
    return np.column_stack([truth.image_ids[rows], boxes, scores, ids])


def doubts(results: np.ndarray, truth: GroundTruth, **options: object) -> list[str]:
    return doubts_of(match(truth, found_objects(results, truth), ScoringOptions(**options)))  # type: ignore[arg-type]


def sizes(results: np.ndarray, truth: GroundTruth) -> np.ndarray:
    """Width and height (D, 2) of the picture of each result."""
    return truth.sizes_hw[np.searchsorted(truth.image_ids, results[:, IMAGE]), ::-1]


def with_boxes(results: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    changed = results.copy()
    changed[:, X:SCORE] = np.stack(columns, axis=1)
    return changed
