"""The COCO figures of any detector's results."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detr_kit.evaluation.accumulation import PrecisionArrays, accumulate
from detr_kit.evaluation.doubts import warn_of_doubts
from detr_kit.evaluation.ground_truth import GroundTruth, load_ground_truth
from detr_kit.evaluation.match_table import MatchTable, match
from detr_kit.evaluation.metrics import CocoMetrics, summarise
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.reference import accumulate_by_pycocotools
from detr_kit.evaluation.results import Results, found_objects

Backend = Literal["numpy", "pycocotools"]


@dataclass(frozen=True)
class Evaluation:
    """Figures with what they were computed from, and what explains them."""

    table: MatchTable
    arrays: PrecisionArrays
    metrics: CocoMetrics

    @property
    def truth(self) -> GroundTruth:
        return self.table.truth


def evaluate_results(
    results: Results,
    annotations: str | Path | GroundTruth,
    *,
    options: ScoringOptions | None = None,
    backend: Backend = "numpy",
    warn: bool = True,
) -> CocoMetrics:
    """Score results against a COCO annotation file, or what was read from one.

    `results` is a results file, its list of dicts, a mapping of image id to Detections, or an
    array, see `detr_kit.evaluation.results.result_columns`. Every image of the annotation file
    counts, with or without results. Both backends give the same numbers.

    Unless `warn` is False, warns of results that are there but doubtful, as `doubts_of` tells: no
    detections at all (AP 0), detections that look cut at a score, repeated or misplaced, other
    scores than [0, 1]. Raises DetrKitError for files that are not COCO, for numbers that are not
    finite, and for image or category ids that the annotation file does not know.
    """
    return evaluation_of(
        results, annotations, options=options, backend=backend, warn=warn, stacklevel=4
    ).metrics


def evaluation_of(
    results: Results,
    annotations: str | Path | GroundTruth,
    *,
    options: ScoringOptions | None = None,
    backend: Backend = "numpy",
    warn: bool = True,
    stacklevel: int = 3,
) -> Evaluation:
    """Score results as `evaluate_results` does, and keep the matches for all that explains them."""
    options = options or ScoringOptions()
    started = time.perf_counter()
    truth = annotations if isinstance(annotations, GroundTruth) else load_ground_truth(annotations)
    found = found_objects(results, truth)
    table = match(truth, found, options)
    if warn:
        warn_of_doubts(table, stacklevel=stacklevel)
    if backend == "pycocotools":
        arrays = accumulate_by_pycocotools(truth, found, options)
    else:
        arrays = accumulate(table)
    metrics = summarise(
        arrays,
        options,
        dict(zip(table.class_names, table.num_objects.tolist(), strict=True)),
        num_images=truth.num_images,
        num_detections=len(found),
        seconds=time.perf_counter() - started,
    )
    return Evaluation(table, arrays, metrics)
