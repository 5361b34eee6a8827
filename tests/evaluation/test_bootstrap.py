"""The interval of AP: resamples are data sets in which pictures repeat, and it holds the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from detr_kit.errors import DetrKitError
from detr_kit.evaluation import bootstrap, weighted_precision
from detr_kit.evaluation.bootstrap import (
    WeightedPrecision,
    ap_interval,
    resampled_precisions,
    standard_error,
    student_p_value,
    student_quantile,
)
from detr_kit.evaluation.metrics import Interval
from tests.evaluation.coco_problems import (
    ROW,
)
from tests.evaluation.drawn_sets import SMALL, drawn, evaluation_of_rows, quiet
from tools.interval_coverage import Law, drawn_results, drawn_truth, true_ap


def test_resampled_precisions_are_those_of_pictures_drawn_with_replacement() -> None:
    truth, found = drawn(3)
    curves = WeightedPrecision(quiet(found, truth).table)
    (precisions,) = resampled_precisions([curves], 30, seed=7)
    rows = np.random.default_rng(7).integers(0, truth.num_images, (30, truth.num_images))
    weights = [np.bincount(drawn_rows, minlength=truth.num_images) for drawn_rows in rows]
    np.testing.assert_array_equal(
        precisions, curves.class_precisions(np.array(weights, dtype=np.int32))
    )


def test_how_many_are_computed_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = quiet(*reversed(drawn(4)))
    together = ap_interval(evaluation, resamples=50)
    monkeypatch.setattr(weighted_precision, "_CHUNK", 1)
    assert WeightedPrecision(evaluation.table).rows_at_once == 1
    assert ap_interval(evaluation, resamples=50) == together


def test_the_seed_decides() -> None:
    evaluation = quiet(*reversed(drawn(5)))
    first = ap_interval(evaluation, seed=1)
    assert ap_interval(evaluation, seed=1) == first
    assert ap_interval(evaluation, seed=2) != first


def test_a_higher_level_is_wider() -> None:
    evaluation = quiet(*reversed(drawn(6)))
    half, most = (ap_interval(evaluation, level=level) for level in (0.5, 0.99))
    assert most.low < half.low <= evaluation.metrics.ap <= half.high < most.high
    assert (half.level, most.level) == (0.5, 0.99)


def test_the_ends_are_as_defined() -> None:
    """From AP upwards, from the precision of held out pictures downwards, by logits."""
    evaluation = quiet(*reversed(drawn(7, replace(SMALL, num_images=40))))
    curves = WeightedPrecision(evaluation.table)
    (precisions,) = resampled_precisions([curves], 60, seed=2)
    ap, held_out = evaluation.metrics.ap, np.nanmean(curves.held_out_precisions(seed=2))
    assert held_out < ap - 0.01
    error = standard_error(precisions, curves.images_of_class)
    reach = stats.t.ppf(0.95, curves.num_images_with_objects - 1) * error / (ap * (1 - ap))
    expected = (expit(logit(held_out) - reach), expit(logit(ap) + reach))
    interval = ap_interval(evaluation, resamples=60, level=0.9, seed=2)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-4)


def test_the_upper_end_does_not_run_away_from_an_ap_near_0() -> None:
    law = Law(20, (0.6, 0.4, 0.25), -1.0, 0.2, 8.0, 0.5)
    evaluation = quiet(*reversed(drawn(0, law)))
    curves = WeightedPrecision(evaluation.table)
    (precisions,) = resampled_precisions([curves], 60, seed=2)
    ap = evaluation.metrics.ap
    freedom = curves.num_images_with_objects - 1
    straight = stats.t.ppf(0.975, freedom) * standard_error(precisions, curves.images_of_class)
    assert 0 < ap < 0.01
    assert expit(logit(ap) + straight / (ap * (1 - ap))) > ap + 2.5 * straight
    interval = ap_interval(evaluation, resamples=60, seed=2)
    assert interval.high == pytest.approx(ap + 2 * straight)


@pytest.mark.parametrize("share", [0.0, 1e-300, 0.3, 1 - 1e-16, 1.0])
def test_shares_stay_shares_however_far_they_move(share: float) -> None:
    assert bootstrap._moved(share, 0.0) == share
    for by in (1e-9, 1.0, 30.0, 1e6):
        assert 0 <= bootstrap._moved(share, -by) <= share <= bootstrap._moved(share, by) <= 1


OBJECTS = [
    {"id": id_, "image_id": id_, "category_id": 1, "bbox": [10, 10, 50, 50]} for id_ in (1, 2, 3)
]
PERFECT = [{**ROW, "image_id": id_} for id_ in (1, 2, 3)]


@pytest.mark.parametrize(
    ("annotations", "rows", "expected"),
    [
        ([], PERFECT, None),  # no objects, no AP
        ([], [], None),
        (OBJECTS, [], (0, 0)),
        (OBJECTS, PERFECT, (1, 1)),
        (OBJECTS[:1], PERFECT[:1], (0, 1)),  # one picture with objects: nothing is known
        (OBJECTS[:1], [], (0, 1)),
    ],
)
def test_where_there_is_little_to_resample(
    annotations: list[dict], rows: list[dict], expected: tuple[int, int] | None
) -> None:
    for image_ids in ((1, 2, 3), (1, 2, 3, 4)):
        interval = ap_interval(evaluation_of_rows(annotations, rows, image_ids))
        if expected is None:
            assert interval is None
        else:
            assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-12)


def test_one_picture_tells_nothing() -> None:
    rows = [ROW, {**ROW, "score": 0.9, "bbox": [100, 100, 20, 20]}]
    evaluation = evaluation_of_rows(OBJECTS[:1], rows, image_ids=(1,))
    assert ap_interval(evaluation) == Interval(0.0, 1.0)


def test_a_picture_file_without_pictures_has_no_interval() -> None:
    assert ap_interval(evaluation_of_rows([], [], image_ids=())) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"level": 1.0}, r"must lie in \(0, 1\), got 1.0"),
        ({"level": float("nan")}, r"must lie in \(0, 1\), got nan"),
        ({"resamples": 1}, "2 resamples or more, got 1"),
    ],
)
def test_options_that_mean_nothing(wrong: dict[str, float], message: str) -> None:
    evaluation = quiet(*reversed(drawn(0)))
    with pytest.raises(DetrKitError, match=message):
        ap_interval(evaluation, **wrong)  # type: ignore[arg-type]


def test_classes_that_a_resample_leaves_out_are_left_out_of_its_mean() -> None:
    """So the error is that of the means of 0.2 and of (0.2 + 0.8) / 2, and of the second again."""
    precisions = np.array([[0.2, np.nan], [0.2, 0.8], [0.2, 0.8], [np.nan, np.nan]])
    expected = np.std([0.2, 0.5, 0.5], ddof=1)
    assert standard_error(precisions, np.array([9, 9])) == pytest.approx(expected)
    assert standard_error(precisions[[0, 3]], np.array([9, 9])) == 0


def test_deviations_of_a_class_in_few_pictures_are_widened() -> None:
    precisions = np.random.default_rng(0).random((50, 1))
    error = precisions.std(ddof=1)
    for num_images, factor in ((1, 2**0.5), (2, 2**0.5), (5, 1.25**0.5), (10**9, 1)):
        assert standard_error(precisions, np.array([num_images])) == pytest.approx(factor * error)


@pytest.mark.parametrize("freedom", [5, 9, 29, 149, 4999])
def test_students_t(freedom: int) -> None:
    for level in (0.5, 0.9, 0.95, 0.99):
        t = student_quantile(level, freedom)
        assert t == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=0.01)
        assert student_p_value(t, freedom) == pytest.approx(1 - level, abs=1e-9)
    assert student_p_value(0.0, freedom) == 1


def test_the_interval_holds_the_true_ap() -> None:
    """Of 80 data sets; `tools/interval_coverage.py` draws more, of more laws."""
    law = Law(60, (0.6, 0.4, 0.2))
    rng = np.random.default_rng(0)
    true = true_ap(rng, law)
    held, percentile_held = 0, 0
    for _ in range(80):
        truth, hardness = drawn_truth(rng, law, law.num_images)
        evaluation = quiet(drawn_results(rng, law, truth, hardness), truth)
        interval = ap_interval(evaluation, resamples=100)
        held += interval.low <= true <= interval.high
        (precisions,) = resampled_precisions([WeightedPrecision(evaluation.table)], 100, 0)
        low, high = np.quantile(np.nanmean(precisions, axis=1), [0.025, 0.975])
        percentile_held += low <= true <= high
    assert held >= 73  # at 95 %, it would be fewer in 5 of 100 draws
    assert percentile_held < held
