"""Weights of pictures stand for pictures that repeat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.evaluation.bootstrap import (
    WeightedPrecision,
    ap_interval,
)
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import RECALLS, ScoringOptions
from detr_kit.evaluation.results import ResultColumns
from tests.evaluation.coco_problems import (
    other_options,
    problems,
    quiet_evaluation,
    write_json,
)
from tests.evaluation.drawn_sets import (
    SMALL,
    class_precisions,
    drawn,
    evaluation_of_rows,
    quiet,
    repeated,
)
from tools.interval_coverage import Law, drawn_truth

FIXED = settings(derandomize=True, deadline=None, max_examples=25)
OPTIONS = [
    ScoringOptions(),
    ScoringOptions(iou_thresholds=(0.3, 0.75), max_detections=(1, 2)),
    ScoringOptions(class_agnostic=True),
]


@FIXED
@given(seed=st.integers(0, 2**32 - 1), options=st.sampled_from(OPTIONS))
def test_weights_are_equal_to_repeated_pictures(seed: int, options: ScoringOptions) -> None:
    truth, found = drawn(seed)
    curves = WeightedPrecision(quiet(found, truth, options).table)
    weights = np.random.default_rng(seed).poisson(1.0, (3, truth.num_images)).astype(np.int32)
    weights[0] = 1
    by_weight = curves.class_precisions(weights)
    for row, precisions in zip(weights, by_weight, strict=True):
        again = quiet(*reversed(repeated(truth, found, row)), options)
        np.testing.assert_allclose(precisions, class_precisions(again), rtol=0, atol=1e-12)
        ap = again.metrics.ap
        assert (
            np.isnan(precisions).all()
            if ap is None
            else np.nanmean(precisions) == pytest.approx(ap, abs=1e-12)
        )


@FIXED
@given(problem=problems(other_options()))
def test_weights_of_one_are_equal_to_the_figures(
    tmp_path_factory: pytest.TempPathFactory, problem: object
) -> None:
    path = write_json(tmp_path_factory.mktemp("one") / "val.json", problem.content)
    evaluation = quiet_evaluation(problem.rows, path, problem.options)
    curves = WeightedPrecision(evaluation.table)
    once = np.ones((1, curves.num_images), dtype=np.int32)
    expected = class_precisions(evaluation)
    np.testing.assert_allclose(curves.class_precisions(once)[0], expected, rtol=0, atol=1e-12)
    interval = ap_interval(evaluation, resamples=20)
    if evaluation.metrics.ap is None:
        assert interval is None
    else:
        assert 0 <= interval.low <= evaluation.metrics.ap <= interval.high <= 1


def test_recalls_are_reached_as_comparing_quotients_says() -> None:
    """One class of n perfect detections: each right one reaches the recalls up to its share."""
    for count in [*range(1, 130), 1000, 1001, 4099]:
        shares = np.arange(1, count + 1) / count
        expected = np.searchsorted(RECALLS, shares, "right")
        truth, found = _row_of_objects(count)
        curves = WeightedPrecision(
            quiet(found, truth, ScoringOptions((0.5,), max_detections=(5000,))).table
        )
        once = np.ones((1, 1), dtype=np.int32)
        found_counts = curves._num_recalls(curves._counts(once), np.array([[count]]))
        np.testing.assert_array_equal(np.cumsum(found_counts), expected)


def _row_of_objects(count: int) -> tuple[GroundTruth, ResultColumns]:
    boxes_xywh = np.zeros((count, 4))
    boxes_xywh[:, 0] = np.arange(count) * 20
    boxes_xywh[:, 2:] = 10
    truth, _ = drawn_truth(np.random.default_rng(0), Law(1, (0.0,)), 1)
    truth = replace(
        truth,
        image_rows=np.zeros(count, np.int32),
        class_columns=np.zeros(count, np.int32),
        boxes_xywh=boxes_xywh,
        areas=np.full(count, 100.0),
        is_crowd=np.zeros(count, bool),
        annotation_ids=np.arange(count),
    )
    ids, ones = np.zeros(count, np.int64), np.ones(count, np.int64)
    return truth, ResultColumns("row", ids, ones, boxes_xywh, np.linspace(1, 0, count))


def test_held_out_precisions_are_as_defined() -> None:
    """By loops: choose a detection for each recall without a fold, count the fold's up to it."""
    truth, found = drawn(8, replace(SMALL, num_images=25))
    evaluation = quiet(found, truth, ScoringOptions((0.5, 0.8)))
    table = evaluation.table
    folds = np.random.default_rng((3, 1)).permutation(25) % 4
    expected = np.full((2, 3), np.nan)
    for threshold, class_ in np.ndindex(2, 3):
        matches = table.at(threshold)
        own = (matches.classes == class_) & ~matches.ignored
        images, is_right = matches.image_rows[own], matches.is_true[own]
        shown = truth.image_rows[(truth.class_columns == class_) & ~truth.is_crowd]
        expected[threshold, class_] = _held_out_by_loops(images, is_right, shown, folds, 4)
    curves = WeightedPrecision(table)
    found_precisions = curves.held_out_precisions(seed=3, num_folds=4)
    np.testing.assert_allclose(found_precisions, expected.mean(axis=0), rtol=0, atol=1e-12)
    assert (found_precisions < class_precisions(evaluation)).all()


def _held_out_by_loops(
    images: np.ndarray, is_right: np.ndarray, shown: np.ndarray, folds: np.ndarray, num_folds: int
) -> float:
    right, counted, reached = np.zeros(101), np.zeros(101), np.zeros(101)
    for fold in range(num_folds):
        chosen_by = folds[images] != fold
        num_objects = np.sum(folds[shown] != fold)
        tp = np.cumsum(is_right & chosen_by)
        precision = np.where(is_right & chosen_by, tp / np.maximum(np.cumsum(chosen_by), 1), 0)
        for column, recall in enumerate(RECALLS):
            beyond = np.flatnonzero(is_right & chosen_by & (tp / num_objects >= recall))
            if len(beyond):
                best = beyond[precision[beyond] >= precision[beyond].max() - 1e-12][0]
                judged = ~chosen_by[: best + 1]
                right[column] += np.sum(is_right[: best + 1] & judged)
                counted[column] += judged.sum()
                reached[column] += 1
    tp = np.cumsum(is_right)
    own = np.zeros(101)
    for column, recall in enumerate(RECALLS):
        beyond = np.flatnonzero(is_right & (tp / len(shown) >= recall))
        own[column] = np.max(tp[beyond] / (beyond + 1), initial=0)
    precision = own
    for column in np.flatnonzero(counted)[::-1]:
        precision[: column + 1] = right[column] / counted[column]
    return float(np.mean(precision * reached / num_folds))


def test_held_out_precision_is_aps_own_where_no_picture_can_judge() -> None:
    """Each picture shows another class, found without a mistake."""
    annotations = [
        {"id": id_, "image_id": id_, "category_id": id_, "bbox": [10, 10, 50, 50]}
        for id_ in (1, 2, 3)
    ]
    rows = [
        {"image_id": id_, "category_id": id_, "bbox": [10, 10, 50, 50], "score": 0.01}
        for id_ in (1, 2)
    ]
    evaluation = evaluation_of_rows(annotations, rows, image_ids=(1, 2, 3))
    precisions = WeightedPrecision(evaluation.table).held_out_precisions(seed=0)
    np.testing.assert_allclose(precisions, [1.0, 1.0, 0.0], atol=1e-12)
