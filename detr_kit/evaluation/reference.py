"""The same arrays from pycocotools, which defines AP: slower by far, for comparison."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_kit.evaluation.accumulation import PrecisionArrays
from detr_kit.evaluation.found import FoundObjects
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import RECALLS, ScoringOptions


def accumulate_by_pycocotools(
    truth: GroundTruth, found: FoundObjects, options: ScoringOptions
) -> PrecisionArrays:
    """Return what COCOeval computes of the detections.

    Objects get ids from 1, as COCOeval takes id 0 for "no match".
    """
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        scorer = COCOeval(
            _indexed(truth, _objects(truth)), _indexed(truth, _detections(found, truth)), "bbox"
        )
        scorer.params.iouThrs = np.array(options.iou_thresholds)
        scorer.params.recThrs = RECALLS
        scorer.params.maxDets = list(options.max_detections)
        scorer.params.areaRng = [list(bounds) for bounds in options.areas.values()]
        scorer.params.areaRngLbl = list(options.areas)
        scorer.params.useCats = int(not options.class_agnostic)
        scorer.evaluate()
        scorer.accumulate()
    return PrecisionArrays(*(scorer.eval[name] for name in ("precision", "recall", "scores")))


def _indexed(truth: GroundTruth, annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": id_} for id_ in truth.image_ids.tolist()],
        "categories": [{"id": id_} for id_ in truth.categories.ids],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _objects(truth: GroundTruth) -> list[dict[str, Any]]:
    values = zip(
        truth.image_ids[truth.image_rows].tolist(),
        truth.categories.ids_array[truth.class_columns].tolist(),
        truth.boxes_xywh.tolist(),
        truth.areas.tolist(),
        truth.is_crowd.astype(int).tolist(),
        strict=True,
    )
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    return [dict(zip(keys, (number, *row), strict=True)) for number, row in enumerate(values, 1)]


def _detections(found: FoundObjects, truth: GroundTruth) -> list[dict[str, Any]]:
    """Return what COCO.loadRes makes of results, without the copies that it takes."""
    boxes_xywh = found.boxes_xywh
    values = zip(
        truth.image_ids[found.image_rows].tolist(),
        truth.categories.ids_array[found.class_columns].tolist(),
        boxes_xywh.tolist(),
        (boxes_xywh[:, 2] * boxes_xywh[:, 3]).tolist(),
        found.scores.tolist(),
        strict=True,
    )
    keys = ("id", "image_id", "category_id", "bbox", "area", "score", "iscrowd")
    return [dict(zip(keys, (number, *row, 0), strict=True)) for number, row in enumerate(values, 1)]
