"""Detections whose places decide what they match, so that all figures are known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from detr_kit.categories import CategoryTable
from detr_kit.data.coco_file import PackedText
from detr_kit.evaluation.coco import Evaluation, evaluation_of
from detr_kit.evaluation.found import FoundObjects, ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import ScoringOptions

RIGHT, WRONG, IGNORED = "right", "wrong", "ignored"
LOOSE = "loose"  # right up to an IoU of 0.6
NAMES = ("cat", "dog", "emu")


class Found(NamedTuple):
    column: int
    score: float
    kind: str = RIGHT


def placed(
    found: list[Found],
    missed: tuple[int, ...] = (),
    options: ScoringOptions | None = None,
    num_images: int = 1,
) -> Evaluation:
    """Detections that are right, wrong or on a crowd region, and missed objects of some classes.

    Each has a place of its own in the first picture, so that it is known what matches what.
    """
    places = np.arange(len(found) + len(missed)) * 100.0
    boxes_xywh = np.stack([places, *np.full((3, len(places)), 10.0)], axis=1)
    found_boxes_xywh = boxes_xywh[: len(found)].copy()
    found_boxes_xywh[[row.kind == LOOSE for row in found], 2] = 6.0
    columns = np.array([row.column for row in found] + list(missed), dtype=np.int32)
    labelled = np.array([row.kind != WRONG for row in found] + [True] * len(missed), dtype=bool)
    crowds = np.array([row.kind == IGNORED for row in found] + [False] * len(missed), dtype=bool)
    truth = GroundTruth(
        path=Path("val.json"),
        categories=CategoryTable((1, 2, 3), NAMES),
        image_ids=np.arange(num_images),
        file_names=PackedText.pack([b""] * num_images),
        sizes_hw=np.zeros((num_images, 2), np.int32),
        image_rows=np.zeros(labelled.sum(), np.int32),
        class_columns=columns[labelled],
        boxes_xywh=boxes_xywh[labelled],
        areas=np.full(labelled.sum(), 100.0),
        is_crowd=crowds[labelled],
        annotation_ids=np.arange(labelled.sum()),
    )
    detections = FoundObjects(
        "results",
        np.zeros(len(found), np.int32),
        columns[: len(found)],
        found_boxes_xywh,
        np.array([row.score for row in found], dtype=np.float64),
    )
    return evaluation_of_found(truth, detections, options)


def evaluation_of_found(
    truth: GroundTruth, found: FoundObjects, options: ScoringOptions | None = None
) -> Evaluation:
    columns = ResultColumns(
        found.name,
        truth.image_ids[found.image_rows],
        truth.categories.ids_array[found.class_columns],
        found.boxes_xywh,
        found.scores,
    )
    return evaluation_of(columns, truth, options=options, warn=False)
