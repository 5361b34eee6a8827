"""Results that can be scored and are yet not what was meant: each doubt is told, no other is."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from detr_kit.evaluation.doubts import doubts_of, uncovered
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.match_table import match
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.results import found_objects
from tests.evaluation.drawn_results import CLASS, IMAGE, SCORE, X, detected, doubts, truth_file


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> GroundTruth:
    return truth_file(tmp_path_factory.mktemp("doubts") / "val.json")


def test_a_fair_detector_is_not_doubted(tmp_path: Path) -> None:
    for seed in range(5):
        for num_images, per_image in ((1, 40), (5, 6), (40, 2), (40, 6)):
            truth = truth_file(
                tmp_path / "val.json", num_images=num_images, per_image=per_image, seed=seed
            )
            assert doubts(detected(truth, seed=seed, wrong=40), truth) == []


def test_results_of_a_part_of_the_pictures(truth: GroundTruth) -> None:
    results = detected(truth)
    part = results[results[:, IMAGE] < 10 + 3 * 12]
    assert doubts(part, truth)[-1] == (
        "28 of 40 pictures with objects have no detections (the first: id 46); their objects count "
        "as missed"
    )
    assert uncovered(found_objects(part, truth), truth).tolist() == list(range(12, 40))
    # up to a tenth may be empty by themselves
    assert doubts(results[results[:, IMAGE] >= 10 + 3 * 4], truth) == []
    # so may many, where detections are rare
    _, firsts = np.unique(part[:, IMAGE], return_index=True)
    assert not any("no detections" in line for line in doubts(part[firsts], truth))


def test_of_fewer_than_ten_pictures_some_may_have_no_detections(tmp_path: Path) -> None:
    for num_images, is_told in ((9, False), (10, True)):
        truth = truth_file(tmp_path / "val.json", num_images=num_images)
        results = detected(truth)
        lines = doubts(results[results[:, IMAGE] > 10 + 3 * 2], truth)
        assert any("no detections (the first: id 10)" in line for line in lines) == is_told


def test_pictures_without_objects_need_no_detections(tmp_path: Path) -> None:
    truth = truth_file(tmp_path / "val.json")
    truth.is_crowd[truth.image_rows >= 12] = True
    results = detected(truth)
    results = results[results[:, IMAGE] < 10 + 3 * 12]
    assert len(uncovered(found_objects(results, truth), truth)) == 0
    assert doubts(results, truth) == []


def test_a_threshold_is_told_of_scores_between_0_and_1_that_differ(truth: GroundTruth) -> None:
    results = detected(truth)
    cut = results[results[:, SCORE] > 0.2]
    assert any("the lowest score is 0.2" in line for line in doubts(cut, truth))
    percent = with_scores(cut, cut[:, SCORE] * 100)
    assert [line.split()[0] for line in doubts(percent, truth)] == ["scores"]
    equal = doubts(with_scores(cut, np.full(len(cut), 0.9)), truth)
    assert equal == [
        f"{len(cut)} of {len(cut)} detections have the same score, 0.9; AP depends on which of "
        "them come first in the results"
    ]
    # the same number in each picture that was predicted
    image_rows = np.repeat(np.arange(8), 30)
    some = np.resize(cut, (len(image_rows), 7))
    some[:, IMAGE] = truth.image_ids[image_rows]
    some[:, SCORE] = np.linspace(0.1, 0.9, len(some))
    assert not any("threshold" in line for line in doubts(some, truth))


def with_scores(results: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return np.column_stack([results[:, :SCORE], scores, results[:, CLASS]])


def test_many_equal_scores(truth: GroundTruth) -> None:
    results = detected(truth)
    results[::3, SCORE] = 0.75
    assert doubts(results, truth) == []
    results[1::3, SCORE] = 0.75
    (line,) = doubts(results, truth)
    assert "detections have the same score, 0.75; AP depends" in line
    # those without any chance may all have 0
    by_score = detected(truth, wrong=30)
    by_score[by_score[:, SCORE] < np.quantile(by_score[:, SCORE], 0.6), SCORE] = 0
    assert not any("same score" in line for line in doubts(by_score, truth))


def test_no_detections_tell_how_to_keep_them(truth: GroundTruth) -> None:
    assert doubts(np.empty((0, 7)), truth) == [
        "there are no detections, so every figure is 0; a prediction for scoring keeps all scores "
        "(`detr-kit predict --threshold 0`)"
    ]


def test_half_a_million_detections_take_little_time(tmp_path: Path) -> None:
    truth = truth_file(tmp_path / "val.json", num_images=2000, num_classes=20)
    results = detected(truth, wrong=245)
    for divisor, most_seconds in ((1, 0.5), (2, 2.0)):  # ten times what was measured
        columns = ResultColumns(
            "results",
            results[:, IMAGE].astype(np.int64),
            results[:, CLASS].astype(np.int64),
            results[:, X:SCORE] / divisor,
            results[:, SCORE],
        )
        table = match(truth, found_objects(columns, truth), ScoringOptions())
        started = time.perf_counter()
        lines = doubts_of(table)
        assert time.perf_counter() - started < most_seconds
        assert len(lines) == divisor - 1
