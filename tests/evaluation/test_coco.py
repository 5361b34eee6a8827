from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitWarning
from detr_kit.evaluation import evaluate_results
from detr_kit.evaluation.coco import evaluation_of
from detr_kit.evaluation.ground_truth import load_ground_truth
from tests.evaluation.coco_problems import (
    ROW,
    Problem,
    Rows,
    coco_content,
    problems,
    quiet_evaluation,
    write_json,
)


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(problem=problems())
def test_classes_average_to_the_headline(tmp_path: Path, problem: Problem) -> None:
    path = write_json(tmp_path / "val.json", problem.content)
    metrics = quiet_evaluation(problem.rows, path).metrics
    names = {c["id"]: c["name"] for c in problem.content["categories"]}
    assert list(metrics.per_class) == [names[id_] for id_ in sorted(names)]
    for headline, classes in (
        (metrics.ap, metrics.per_class),
        (metrics.ap50, metrics.per_class_ap50),
    ):
        known = [value for value in classes.values() if value is not None]
        assert (headline is None) == (not known)
        if known:
            assert np.mean(known) == pytest.approx(headline, abs=1e-12)


def test_ground_truth_can_be_read_before(tmp_path: Path) -> None:
    path = write_json(tmp_path / "val.json", coco_content())
    truth = load_ground_truth(path)
    evaluation = evaluation_of([ROW], truth)
    assert evaluation.truth is truth
    assert evaluation.metrics.ap == evaluate_results([ROW], path).ap == pytest.approx(1.0)
    assert evaluate_results([ROW], truth, backend="pycocotools").ap == pytest.approx(1.0)


def test_every_picture_of_the_file_counts(tmp_path: Path) -> None:
    objects = [
        {"id": id_, "image_id": id_, "category_id": 1, "bbox": ROW["bbox"]} for id_ in (1, 2)
    ]
    path = write_json(tmp_path / "val.json", coco_content(objects, image_ids=(1, 2, 3)))
    metrics = evaluate_results([ROW], path)
    assert metrics.num_images == 3
    assert metrics.num_detections == 1
    assert metrics.ar_100 == pytest.approx(0.5)
    assert metrics.seconds > 0


def test_annotation_id_0_and_missing_fields(tmp_path: Path) -> None:
    annotations = [{"id": 0, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50]}]
    path = write_json(tmp_path / "val.json", coco_content(annotations))
    metrics = evaluate_results([ROW], path)
    assert metrics.ap == pytest.approx(1.0)
    assert metrics.ap_medium == pytest.approx(1.0)
    assert metrics.ap_small is None
    assert metrics.per_class == {"class 1": pytest.approx(1.0), "class 2": None}


def test_repeated_annotation_ids_count_as_two_objects(tmp_path: Path) -> None:
    annotations = [
        {"id": 5, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50]},
        {"id": 5, "image_id": 1, "category_id": 1, "bbox": [200, 10, 50, 50]},
    ]
    path = write_json(tmp_path / "val.json", coco_content(annotations))
    assert evaluate_results([ROW], path).ar_100 == pytest.approx(0.5)


@pytest.mark.parametrize("empty", [[], {}, {1: Detections([], [], [], [])}, np.empty((0, 7))])  # type: ignore[arg-type]
def test_no_detections_score_0_with_a_warning(tmp_path: Path, empty: Any) -> None:
    path = write_json(tmp_path / "val.json", coco_content(image_ids=(1, 2)))
    with pytest.warns(DetrKitWarning, match="^results: there are no detections, so every figure"):
        metrics = evaluate_results(empty, path)
    assert metrics.ap == 0
    assert metrics.ar_100 == 0
    assert metrics.ap_small is None
    assert metrics.per_class == {"class 1": 0, "class 2": None}


def test_no_ground_truth_at_all(tmp_path: Path) -> None:
    path = write_json(tmp_path / "val.json", coco_content([]))
    metrics = evaluate_results([ROW], path)
    assert [value for _, value in metrics.figures()] == [None] * 12
    assert metrics.per_class == metrics.per_class_ap50 == {"class 1": None, "class 2": None}


def rows_with(scores: list[list[float]]) -> Rows:
    """One list of scores an image; the boxes differ."""
    return [
        {"image_id": image_id, "category_id": 1, "bbox": [place, 0, 9, 9], "score": score}
        for image_id, image_scores in enumerate(scores, start=1)
        for place, score in enumerate(image_scores)
    ]


@pytest.mark.parametrize(
    ("scores", "warned"),
    [
        ([[0.5, 0.9], [0.6]], True),
        ([[0.5, 0.9], []], True),
        ([[0.5, 0.9], [0.6, 0.01]], False),  # a low score was kept
        ([[0.5, 0.9], [0.6, 0.4]], False),  # as many as there are queries
        ([[0.5] * 100, [0.6] * 150], False),  # the rest would not be scored
    ],
)
def test_results_that_look_cut_are_warned_of(
    tmp_path: Path, scores: list[list[float]], warned: bool
) -> None:
    path = write_json(tmp_path / "val.json", coco_content([], image_ids=(1, 2)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate_results(rows_with(scores), path)
    messages = [str(warning.message) for warning in caught]
    assert [("cut at a threshold" in message) for message in messages] == [True] * warned
    assert all(warning.filename == __file__ for warning in caught)


def test_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_json(tmp_path / "val.json", coco_content())
    evaluate_results([ROW], path)
    evaluate_results([ROW], path, backend="pycocotools")
    assert capsys.readouterr() == ("", "")
