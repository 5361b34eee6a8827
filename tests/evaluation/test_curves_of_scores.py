"""Precision, recall and F1 by recall and by score."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.errors import DetrKitError
from detr_kit.evaluation.curves import ScoreCurves, precision_recall_curves, score_curves
from detr_kit.evaluation.options import ScoringOptions
from tests.evaluation.placed_objects import IGNORED, LOOSE, NAMES, RIGHT, WRONG, Found, placed

FIXED = settings(derandomize=True, deadline=None, max_examples=100)


def precision_recall_f1(kept: list[Found], num_objects: int) -> tuple[float, float, float]:
    num_true = sum(row.kind == RIGHT for row in kept)
    precision = num_true / len(kept) if kept else np.nan
    return precision, num_true / num_objects, 2 * num_true / (len(kept) + num_objects)


def best_by_hand(found: list[Found], num_objects: int) -> tuple[float, float, float, float] | None:
    """Threshold, F1, precision and recall, by trying every score."""
    best = None
    for threshold in sorted({row.score for row in found}, reverse=True):
        kept = [row for row in found if row.score >= threshold]
        if not any(row.kind == RIGHT for row in kept) or not num_objects:
            continue
        precision, recall, f1 = precision_recall_f1(kept, num_objects)
        if best is None or f1 > best[1]:
            best = (threshold, f1, precision, recall)
    return best


def best_of(curves: ScoreCurves, column: int) -> tuple[float, ...] | None:
    values = (curves.best_thresholds, curves.best_f1, curves.best_precision, curves.best_recall)
    row = tuple(float(value[column]) for value in values)
    assert np.isnan(row).all() or not np.isnan(row).any()
    return None if np.isnan(row[0]) else row


def pooled_best_of(curves: ScoreCurves) -> tuple[float | None, ...] | None:
    row = (
        curves.pooled_best_threshold,
        curves.pooled_best_f1,
        curves.pooled_best_precision,
        curves.pooled_best_recall,
    )
    return None if row == (None,) * 4 else row


def scenes(scores: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[list[Found], list[int]]]:
    """Few classes and, by the choice of scores, many ties."""
    kinds = st.sampled_from([RIGHT, WRONG, IGNORED])
    found = st.lists(st.builds(Found, st.integers(0, 2), scores, kinds), max_size=25)
    return st.tuples(found, st.lists(st.integers(0, 2), max_size=4))


TIED = scenes(st.sampled_from([0.0, 0.1, 0.29, 0.295, 0.57, 0.9, 1.0]))
ANY_SCALE = scenes(st.one_of(st.floats(-5, 5), st.sampled_from([-2.0, 0.5, 3.0])))


class TestBestThresholds:
    @FIXED
    @given(st.one_of(TIED, ANY_SCALE))
    def test_equal_to_trying_every_score(self, scene: tuple[list[Found], list[int]]) -> None:
        found, missed = scene
        curves = score_curves(placed(found, tuple(missed)))
        found = [row for row in found if row.kind != IGNORED]
        objects = [row.column for row in found if row.kind == RIGHT] + missed
        for column in range(3):
            own = [row for row in found if row.column == column]
            assert best_of(curves, column) == best_by_hand(own, objects.count(column))
        assert pooled_best_of(curves) == best_by_hand(found, len(objects))

    def test_the_higher_score_of_equal_f1_is_taken(self) -> None:
        # both are 2 / 3: 2 * 1 / (1 + 2) at 0.9, 2 * 2 / (4 + 2) at 0.5
        found = [Found(0, 0.5, WRONG), Found(0, 0.5), Found(0, 0.9), Found(0, 0.5, WRONG)]
        assert best_of(score_curves(placed(found)), 0) == (0.9, 2 / 3, 1.0, 0.5)

    def test_equal_scores_count_together(self) -> None:
        found = [Found(0, 0.5), Found(0, 0.5, WRONG), Found(0, 0.5, WRONG)]
        assert best_of(score_curves(placed(found)), 0) == (0.5, 0.5, 1 / 3, 1.0)

    def test_a_wrong_detection_of_a_class_without_objects_counts_when_pooled(self) -> None:
        curves = score_curves(placed([Found(0, 0.9), Found(1, 0.95, WRONG)]))
        assert best_of(curves, 0) == (0.9, 1.0, 1.0, 1.0)
        assert best_of(curves, 1) is None
        assert pooled_best_of(curves) == (0.9, 2 / 3, 0.5, 1.0)


class TestScoreCurves:
    @FIXED
    @given(st.one_of(TIED, ANY_SCALE))
    def test_equal_to_counting_at_every_threshold(
        self, scene: tuple[list[Found], list[int]]
    ) -> None:
        found, missed = scene
        curves = score_curves(placed(found, tuple(missed)))
        found = [row for row in found if row.kind != IGNORED]
        objects = [row.column for row in found if row.kind == RIGHT] + missed
        by_class = np.stack([curves.precision, curves.recall, curves.f1])
        pooled = np.stack([curves.pooled_precision, curves.pooled_recall, curves.pooled_f1])
        assert by_class.shape == (3, 3, 101)
        assert pooled.shape == (3, 101)
        parts = [(by_class[:, column], (column,)) for column in range(3)] + [(pooled, (0, 1, 2))]
        for values, columns in parts:
            num_objects = sum(objects.count(column) for column in columns)
            for place, threshold in enumerate(curves.thresholds):
                kept = [row for row in found if row.column in columns and row.score >= threshold]
                expected = precision_recall_f1(kept, num_objects) if num_objects else (np.nan,) * 3
                np.testing.assert_array_equal(values[:, place], expected)

    def test_thresholds_are_the_decimals_that_people_write(self) -> None:
        thresholds = score_curves(placed([])).thresholds
        assert thresholds.tolist() == [
            float(f"{number // 100}.{number % 100:02d}") for number in range(101)
        ]

    @pytest.mark.parametrize("scores", [(-3.0, 0.5), (0.2, 80.0), (7.0, 7.0), (-1e308, 1e308)])
    def test_thresholds_span_scores_that_lie_outside(self, scores: tuple[float, float]) -> None:
        curves = score_curves(placed([Found(0, score) for score in scores]))
        assert (curves.thresholds[0], curves.thresholds[-1]) == scores
        assert (np.diff(curves.thresholds) >= 0).all()
        assert curves.recall[0, 0] == 1.0
        assert curves.recall[0, -1] == (1.0 if scores[0] == scores[1] else 0.5)

    def test_iou_is_that_of_the_evaluation(self) -> None:
        evaluation = placed([Found(0, 0.5)], options=ScoringOptions(iou_thresholds=(0.3, 0.75)))
        assert score_curves(evaluation, 0.75).iou == 0.75
        assert precision_recall_curves(evaluation, 0.75).iou == 0.75
        for function in (score_curves, precision_recall_curves):
            with pytest.raises(
                DetrKitError, match=r"IoU 0\.5 is not among .* evaluation: 0\.3, 0\.75"
            ):
                function(evaluation)

    def test_what_is_right_depends_on_the_iou(self) -> None:
        evaluation = placed([Found(0, 0.9, LOOSE), Found(0, 0.8)])
        assert best_of(score_curves(evaluation), 0) == (0.8, 1.0, 1.0, 1.0)
        assert best_of(score_curves(evaluation, 0.75), 0) == (0.8, 0.5, 0.5, 0.5)
        for iou, precision in ((0.5, 1), (0.75, 0.5)):
            by_recall = precision_recall_curves(evaluation, iou)
            assert by_recall.by_class[0, 0] == pytest.approx(precision)

    def test_only_the_best_scored_of_a_picture_and_class_count(self) -> None:
        options = ScoringOptions(max_detections=(1,))
        found = [Found(0, 0.9, WRONG), Found(0, 0.8)]
        assert score_curves(placed(found, options=options)).recall[0].max() == 0


class TestDict:
    def test_json_holds_the_thresholds_by_name(self) -> None:
        found = [Found(0, 0.75), Found(2, 0.5, WRONG), Found(1, 0.25, WRONG)]
        values = score_curves(placed(found, missed=(1,))).to_dict(NAMES)
        assert json.loads(json.dumps(values, allow_nan=False)) == {
            "iou": 0.5,
            "all": {"threshold": 0.75, "f1": 2 / 3, "precision": 1.0, "recall": 0.5},
            "classes": {
                "cat": {"threshold": 0.75, "f1": 1.0, "precision": 1.0, "recall": 1.0},
                "dog": None,
                "emu": None,
            },
        }

    def test_nothing_right_gives_no_threshold(self) -> None:
        values = score_curves(placed([Found(0, 0.5, WRONG)], missed=(0,))).to_dict(NAMES)
        assert values["all"] is None
        assert values["classes"] == dict.fromkeys(NAMES)


class TestPrecisionRecall:
    def test_means_of_the_curves_are_the_figures(self) -> None:
        found = [
            Found(0, 0.9),
            Found(0, 0.8, WRONG),
            Found(0, 0.7),
            Found(1, 0.4),
            Found(2, 0.3, WRONG),
        ]
        evaluation = placed(found, missed=(0, 1))
        curves = precision_recall_curves(evaluation)
        metrics = evaluation.metrics
        assert curves.by_threshold.shape == (10, 101)
        assert curves.by_class.shape == (3, 101)
        assert curves.by_threshold.mean() == pytest.approx(metrics.ap, abs=1e-12)
        assert curves.by_threshold[0].mean() == pytest.approx(metrics.ap50, abs=1e-12)
        assert curves.by_class[0].mean() == pytest.approx(metrics.per_class_ap50["cat"], abs=1e-12)
        assert metrics.per_class_ap50["emu"] is None
        assert np.isnan(curves.by_class[2]).all()

    def test_known_precisions(self) -> None:
        # precision 1 up to recall 1/3, then 2/3 up to recall 2/3
        found = [Found(0, 0.9), Found(0, 0.8, WRONG), Found(0, 0.7)]
        curves = precision_recall_curves(placed(found, missed=(0,)), 0.75)
        expected = [1.0 if r <= 1 / 3 else 2 / 3 if r <= 2 / 3 else 0.0 for r in curves.recalls]
        np.testing.assert_allclose(curves.by_class[0], expected, rtol=1e-12)
        np.testing.assert_allclose(curves.by_threshold, [expected] * 10, rtol=1e-12)


class TestDegenerate:
    def test_nothing_found(self) -> None:
        evaluation = placed([], missed=(0,))
        curves = score_curves(evaluation)
        assert np.isnan(curves.precision).all()
        assert (curves.recall[0] == 0).all()
        assert (curves.f1[0] == 0).all()
        assert np.isnan(curves.recall[1:]).all()
        assert (curves.pooled_recall == 0).all()
        assert np.isnan(curves.best_f1).all()
        assert pooled_best_of(curves) is None
        assert (precision_recall_curves(evaluation).by_threshold == 0).all()

    @pytest.mark.parametrize("num_images", [0, 2])
    def test_no_objects(self, num_images: int) -> None:
        found = [Found(0, 0.5, WRONG), Found(1, 0.5, IGNORED)] if num_images else []
        evaluation = placed(found, num_images=num_images)
        curves = score_curves(evaluation)
        for values in (curves.precision, curves.recall, curves.f1, curves.best_thresholds):
            assert np.isnan(values).all()
        for values in (curves.pooled_precision, curves.pooled_recall, curves.pooled_f1):
            assert np.isnan(values).all()
        assert pooled_best_of(curves) is None
        by_recall = precision_recall_curves(evaluation)
        assert by_recall.by_threshold.shape == (10, 101)
        assert np.isnan(by_recall.by_threshold).all()
        assert np.isnan(by_recall.by_class).all()

    def test_classes_as_one(self) -> None:
        options = ScoringOptions(class_agnostic=True)
        evaluation = placed([Found(0, 0.9), Found(1, 0.8, WRONG)], (2,), options)
        curves = score_curves(evaluation)
        assert curves.f1.shape == (1, 101)
        np.testing.assert_array_equal(curves.f1[0], curves.pooled_f1)
        assert best_of(curves, 0) == pooled_best_of(curves) == (0.9, 2 / 3, 1.0, 0.5)
        assert list(curves.to_dict(evaluation.table.class_names)["classes"]) == ["all classes"]
        assert precision_recall_curves(evaluation).by_class.shape == (1, 101)
