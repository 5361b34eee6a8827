"""The COCO figures of any detector's results, computed by pycocotools."""

from __future__ import annotations

import io
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_kit.errors import DetrKitWarning
from detr_kit.evaluation.ground_truth import GroundTruth, load_ground_truth
from detr_kit.evaluation.metrics import FIGURES, CocoMetrics
from detr_kit.evaluation.results import (
    Results,
    result_annotations,
    result_rows,
    warn_of_threshold,
)


def evaluate_results(results: Results, annotations: str | Path | GroundTruth) -> CocoMetrics:
    """Score results against a COCO annotation file, or what was read from one.

    `results` is a results file, its list of dicts, or a mapping of image id to Detections. Every
    image of the annotation file counts, with or without results. Warns where there are no
    detections at all (AP 0) and where they look cut at a score. Raises DetrKitError for files that
    are not COCO, and for image or category ids that the annotation file does not know.
    """
    started = time.perf_counter()
    truth = annotations if isinstance(annotations, GroundTruth) else load_ground_truth(annotations)
    name, rows = result_rows(results)
    detected = result_annotations(name, rows, truth)
    if not detected:
        warnings.warn(
            f"{name}: there are no detections, so every figure is 0", DetrKitWarning, stacklevel=2
        )
    warn_of_threshold(name, detected, len(truth.image_ids))
    figures, precision = _score(truth.dataset, {**truth.dataset, "annotations": detected})
    names = [row["name"] for row in truth.dataset["categories"]]
    return CocoMetrics(
        **{field: _figure(value) for (field, _, _), value in zip(FIGURES, figures, strict=True)},
        per_class=_class_means(names, precision),
        per_class_ap50=_class_means(names, precision[:1]),
        num_images=len(truth.image_ids),
        num_detections=len(detected),
        seconds=time.perf_counter() - started,
    )


def _score(truth: dict[str, Any], detected: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the 12 figures and the (IoU, recall, class) precision over all areas.

    The detections are indexed as COCO.loadRes does it, without the copies that it makes.
    """
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        scorer = COCOeval(_indexed(truth), _indexed(detected), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    # precision: (IoU, recall, class, area range, most detections); all areas, 100 detections
    return np.asarray(scorer.stats), scorer.eval["precision"][:, :, :, 0, -1]


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _class_means(names: list[str], precision: np.ndarray) -> dict[str, float | None]:
    """Mean over IoU and recall; a class is -1 throughout where it has no ground truth."""
    means = precision.mean(axis=(0, 1))  # (class,)
    return {name: _figure(mean) for name, mean in zip(names, means, strict=True)}


def _figure(value: float) -> float | None:
    return None if value < 0 else float(value)
