"""Scenes of a few boxes, built by hand or drawn at random, and their evaluations."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import settings

from detr_kit.categories import CategoryTable
from detr_kit.data.coco_file import PackedText
from detr_kit.errors import DetrKitWarning
from detr_kit.evaluation.coco import Evaluation, evaluation_of
from detr_kit.evaluation.error_kinds import KINDS, ErrorKinds
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import ScoringOptions

Box = tuple[float, float, float, float]
Object = tuple[int, int, Box, bool]  # picture, class, box, crowd
Found = tuple[int, int, Box, float]  # picture, class, box, score

CAT, DOG, OWL = 0, 1, 2
FIXED = settings(derandomize=True, deadline=None, max_examples=60)


def truth_of(objects: Sequence[Object], images: int = 6, classes: int = 3) -> GroundTruth:
    boxes = np.array([box for _, _, box, _ in objects], dtype=np.float64).reshape(-1, 4)
    return GroundTruth(
        path=Path("val.json"),
        categories=CategoryTable(
            tuple(range(1, classes + 1)), tuple(f"class {k}" for k in range(classes))
        ),
        image_ids=np.arange(10, 10 + images),
        file_names=PackedText.pack(b"a.jpg" for _ in range(images)),
        sizes_hw=np.full((images, 2), 600, dtype=np.int32),
        image_rows=np.array([image for image, _, _, _ in objects], dtype=np.int32),
        class_columns=np.array([class_ for _, class_, _, _ in objects], dtype=np.int32),
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        is_crowd=np.array([crowd for _, _, _, crowd in objects], dtype=np.bool_),
        annotation_ids=np.arange(len(objects)),
    )


def evaluated(
    objects: Sequence[Object],
    detections: Sequence[Found],
    options: ScoringOptions | None = None,
    images: int = 6,
    classes: int = 3,
) -> Evaluation:
    columns = ResultColumns(
        "results",
        np.array([10 + image for image, _, _, _ in detections], dtype=np.int64),
        np.array([class_ + 1 for _, class_, _, _ in detections], dtype=np.int64),
        np.array([box for _, _, box, _ in detections], dtype=np.float64).reshape(-1, 4),
        np.array([score for _, _, _, score in detections], dtype=np.float64),
    )
    with warnings.catch_warnings():  # few detections of high score look cut at a score
        warnings.simplefilter("ignore", DetrKitWarning)
        return evaluation_of(columns, truth_of(objects, images, classes), options=options)


def at(place: int, iou: float = 1.0) -> Box:
    """A box with this IoU with `at(place)`, and none with those of other places."""
    return (1000.0 * place, 0.0, 100.0 * iou, 100.0)


def only(**counts: int) -> dict[str, int]:
    return {kind: counts.get(kind, 0) for kind in KINDS}


def kinds_by_row(errors: ErrorKinds) -> dict[int, str]:
    return {row: KINDS[kind] for row, kind in zip(errors.rows.tolist(), errors.kinds, strict=True)}


CAT_AND_DOG = [(0, CAT, at(0), False), (1, DOG, at(0), False)]
CAT_FOUND = (0, CAT, at(0), 0.5)
DOG_FOUND = (1, DOG, at(0), 0.5)


def random_scene(seed: int) -> tuple[list[Object], list[Found]]:
    """Crowds, equal scores, and detections near objects, of their class or not, and elsewhere."""
    rng = np.random.default_rng(seed)

    def shaken(box: Box, by: float) -> Box:
        x, y, w, h = (np.array(box) + rng.normal(0, by, 4)).tolist()
        return (x, y, abs(w) + 0.1, abs(h) + 0.1)

    objects: list[Object] = []
    found: list[Found] = []
    for _ in range(int(rng.integers(0, 14))):
        image, class_ = (int(value) for value in rng.integers(0, (3, 3)))
        box = shaken((*rng.uniform(0, 150, 2), 60.0, 60.0), 10)
        objects.append((image, class_, box, bool(rng.random() < 0.15)))
        for _ in range(int(rng.integers(0, 4))):
            other = int(rng.integers(0, 4)) if rng.random() < 0.4 else class_
            score = round(float(rng.random()), 1)
            found.append((image, other, shaken(box, float(rng.choice([3, 15, 30]))), score))
    return objects, found
