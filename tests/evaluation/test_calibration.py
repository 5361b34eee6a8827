"""Scores against the precision of what is scored so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.errors import DetrKitError
from detr_kit.evaluation.calibration import calibration
from detr_kit.evaluation.coco import Evaluation
from detr_kit.evaluation.options import ScoringOptions
from tests.evaluation.placed_objects import IGNORED, LOOSE, RIGHT, WRONG, Found, placed

FIXED = settings(derandomize=True, deadline=None, max_examples=100)
Rows = list[tuple[float, str]]


def evaluated(
    rows: Rows, *, num_images: int = 1, options: ScoringOptions | None = None
) -> Evaluation:
    """Detections by score and kind, in turn of two classes."""
    found = [Found(number % 2, score, kind) for number, (score, kind) in enumerate(rows)]
    return placed(found, options=options, num_images=num_images)


@FIXED
@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from([RIGHT, WRONG, IGNORED])), max_size=40),
    st.integers(1, 20),
)
def test_equal_to_sums_over_each_bin(rows: Rows, bins: int) -> None:
    ours = calibration(evaluated(rows), bins=bins)
    assert ours is not None
    counted = [(score, kind == RIGHT) for score, kind in rows if kind != IGNORED]
    assert ours.counts.sum() == len(counted)
    error = 0.0
    for place in range(bins):
        low, high = place / bins, (place + 1) / bins
        own = [row for row in counted if low < row[0] <= high or (place == 0 and row[0] == 0)]
        assert ours.counts[place] == len(own)
        if own:
            score, precision = np.mean(own, axis=0)
            assert ours.mean_scores[place] == pytest.approx(score)
            assert ours.precisions[place] == pytest.approx(precision)
            error += len(own) / len(counted) * abs(precision - score)
        else:
            assert np.isnan(ours.mean_scores[place])
            assert np.isnan(ours.precisions[place])
    assert ours.error == (pytest.approx(error, abs=1e-12) if counted else None)


def test_scores_that_say_how_many_are_right_have_no_error() -> None:
    rows = [(0.75, RIGHT)] * 3 + [(0.75, WRONG), (0.5, RIGHT), (0.5, WRONG), (1.0, RIGHT)]
    ours = calibration(evaluated([*rows, (0.0, WRONG), (0.5, IGNORED)]), bins=4)
    assert ours is not None
    assert ours.error == 0
    assert ours.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert ours.counts.tolist() == [1, 2, 4, 1]
    assert ours.precisions.tolist() == ours.mean_scores.tolist() == [0, 0.5, 0.75, 1]


def test_too_high_scores_have_the_error_of_their_excess() -> None:
    ours = calibration(evaluated([(0.9, RIGHT), (0.9, WRONG)]))
    assert ours is not None
    assert ours.error == pytest.approx(0.4)
    assert len(ours.counts) == 15


def test_what_is_right_depends_on_the_iou() -> None:
    evaluation = evaluated([(0.5, RIGHT), (0.5, LOOSE)])
    for iou, precision in ((0.5, 1), (0.75, 0.5)):
        ours = calibration(evaluation, iou, bins=1)
        assert ours is not None
        assert ours.iou == iou
        assert ours.precisions.tolist() == [precision]


@pytest.mark.parametrize("score", [-0.01, 1.01, 20.0])
def test_scores_outside_of_0_to_1_have_no_calibration(score: float) -> None:
    assert calibration(evaluated([(0.5, RIGHT), (score, RIGHT)])) is None


@pytest.mark.parametrize(("rows", "num_images"), [([], 0), ([], 2), ([(0.5, IGNORED)], 1)])
def test_no_detection_that_counts_has_no_error(rows: Rows, num_images: int) -> None:
    ours = calibration(evaluated(rows, num_images=num_images), bins=3)
    assert ours is not None
    assert ours.error is None
    assert ours.counts.tolist() == [0, 0, 0]
    assert np.isnan(ours.mean_scores).all()
    assert np.isnan(ours.precisions).all()


def test_no_objects_make_every_detection_wrong() -> None:
    ours = calibration(evaluated([(0.25, WRONG), (0.75, WRONG)]), bins=2)
    assert ours is not None
    assert ours.precisions.tolist() == [0, 0]
    assert ours.error == 0.5


def test_classes_as_one() -> None:
    rows = [(0.5, RIGHT), (0.5, WRONG), (0.75, RIGHT)]
    options = ScoringOptions(class_agnostic=True, iou_thresholds=(0.3,))
    ours = calibration(evaluated(rows, options=options), iou=0.3, bins=2)
    assert ours is not None
    assert ours.iou == 0.3
    assert ours.counts.tolist() == [2, 1]


def test_faulty_settings_are_refused() -> None:
    evaluation = evaluated([(0.5, RIGHT)])
    with pytest.raises(DetrKitError, match=r"IoU 0\.42 is not among the IoU thresholds"):
        calibration(evaluation, iou=0.42)
    with pytest.raises(DetrKitError, match="1 bin or more, got 0"):
        calibration(evaluation, bins=0)
