"""Data sets drawn by a law, with crowds and ties, and the same with pictures that repeat."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from detr_kit.data.coco_file import PackedText
from detr_kit.errors import DetrKitWarning
from detr_kit.evaluation.coco import Evaluation, evaluation_of
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import ScoringOptions
from tests.evaluation.coco_problems import coco_content, quiet_evaluation, write_json
from tools.interval_coverage import Law, drawn_results, drawn_truth

SMALL = Law(12, (0.7, 0.4, 0.1), wrong=6.0)


def quiet(
    results: ResultColumns, truth: GroundTruth, options: ScoringOptions | None = None
) -> Evaluation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DetrKitWarning)
        return evaluation_of(results, truth, options=options)


def drawn(seed: int, law: Law = SMALL) -> tuple[GroundTruth, ResultColumns]:
    """Objects and detections with crowds, a box too large for any area, and equal scores.

    Only detections of different pictures are equal: those of one have no order to be repeated in.
    """
    rng = np.random.default_rng(seed)
    truth, hardness = drawn_truth(rng, law, law.num_images)
    truth = replace(truth, is_crowd=rng.random(truth.num_objects) < 0.1)
    found = drawn_results(rng, law, truth, hardness)
    boxes_xywh = found.boxes_xywh.copy()
    boxes_xywh[rng.random(len(found)) < 0.03] = [0, 0, 2e5, 2e5]
    rank_in_picture = np.array(
        [np.sum(found.image_ids[:row] == id_) for row, id_ in enumerate(found.image_ids)]
    )
    scores = found.scores.round(1) - 0.001 * rank_in_picture
    return truth, replace(found, boxes_xywh=boxes_xywh, scores=scores)


def repeated(
    truth: GroundTruth, found: ResultColumns, weights: np.ndarray
) -> tuple[GroundTruth, ResultColumns]:
    """Build the data set in which each picture stands as often as its weight says."""
    copies = np.arange(len(weights)).repeat(weights)
    objects = [np.flatnonzero(truth.image_rows == row) for row in copies]
    detections = [np.flatnonzero(found.image_ids == row) for row in copies]
    rows = np.concatenate([np.empty(0, np.int64), *objects]).astype(np.int64)
    found_rows = np.concatenate([np.empty(0, np.int64), *detections]).astype(np.int64)
    new_ids = np.arange(len(copies))
    return (
        GroundTruth(
            path=truth.path,
            categories=truth.categories,
            image_ids=new_ids,
            file_names=PackedText.pack([b""] * len(copies)),
            sizes_hw=truth.sizes_hw[copies],
            image_rows=new_ids.repeat([len(part) for part in objects]).astype(np.int32),
            class_columns=truth.class_columns[rows],
            boxes_xywh=truth.boxes_xywh[rows],
            areas=truth.areas[rows],
            is_crowd=truth.is_crowd[rows],
            annotation_ids=np.arange(len(rows)),
        ),
        ResultColumns(
            "repeated",
            new_ids.repeat([len(part) for part in detections]),
            found.category_ids[found_rows],
            found.boxes_xywh[found_rows],
            found.scores[found_rows],
        ),
    )


def class_precisions(evaluation: Evaluation) -> np.ndarray:
    values = evaluation.metrics.per_class.values()
    return np.array([np.nan if value is None else value for value in values])


def evaluation_of_rows(
    annotations: list[dict], rows: list[dict], image_ids: tuple[int, ...]
) -> Evaluation:
    content = coco_content(annotations, image_ids=image_ids, category_ids=(1, 2, 3))
    with tempfile.TemporaryDirectory() as folder:
        return quiet_evaluation(rows, write_json(Path(folder) / "val.json", content))
