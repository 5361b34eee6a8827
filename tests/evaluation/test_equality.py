"""Not one bit differs from pycocotools: figures, precision, recall and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from pycocotools import mask

from detr_kit.detections import Detections
from detr_kit.evaluation import ordering, overlaps
from detr_kit.evaluation.coco import Evaluation
from detr_kit.evaluation.metrics import CocoMetrics
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.overlaps import paired_ious
from tests.evaluation.coco_problems import (
    Problem,
    Reference,
    Rows,
    by_pycocotools,
    coco_content,
    other_options,
    problems,
    quiet_evaluation,
    write_json,
)

# In the order of COCOeval.summarize.
FIGURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)
REAL_FILES = (
    "coco_mini/annotations/instances_val2017.json",
    "coco_mini/annotations/instances_train2017.json",
    "bccd/annotations/val.json",
)
DRAWN = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def twelve(metrics: CocoMetrics) -> list[float]:
    values = [getattr(metrics, name) for name in FIGURES]
    return [-1.0 if value is None else value for value in values]


def assert_same_arrays(evaluation: Evaluation, reference: Reference) -> None:
    for name in ("precision", "recall", "scores"):
        ours, theirs = getattr(evaluation.arrays, name), getattr(reference, name)
        assert ours.dtype == theirs.dtype, name
        assert ours.shape == theirs.shape, name
        assert (ours == theirs).all(), name


def assert_same(evaluation: Evaluation, reference: Reference) -> None:
    assert_same_arrays(evaluation, reference)
    assert twelve(evaluation.metrics) == reference.figures


def jittered(content: dict[str, Any], seed: int) -> Rows:
    """Up to three detections near each object, some of another class, and as many false ones."""
    rng = np.random.default_rng(seed)
    category_ids = [category["id"] for category in content["categories"]]
    rows: Rows = []
    for annotation in content["annotations"]:
        box_xywh = np.array(annotation["bbox"])
        sides = np.tile(box_xywh[2:], 2)
        for _ in range(rng.integers(0, 4)):
            near = box_xywh + sides * rng.normal(0, rng.choice([0.0, 0.03, 0.15, 0.5]), 4)
            near[2:] = np.abs(near[2:])
            is_other = rng.random() < 0.15
            rows.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(rng.choice(category_ids))
                    if is_other
                    else annotation["category_id"],
                    "bbox": near.tolist(),
                    "score": round(float(rng.random()), 2),  # ties happen
                }
            )
    rng.shuffle(rows)  # type: ignore[arg-type]
    return rows


@pytest.mark.parametrize("name", REAL_FILES)
def test_on_real_labels(shared_data: Path, name: str) -> None:
    content = json.loads((shared_data / name).read_text())
    rows = jittered(content, seed=len(name))
    evaluation = quiet_evaluation(rows, shared_data / name)
    assert_same(evaluation, by_pycocotools(content, rows))
    assert 0.1 < evaluation.metrics.ap < 0.9  # type: ignore[operator]
    assert evaluation.metrics.num_images == len(content["images"])
    assert evaluation.metrics.num_detections == len(rows)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_on_real_labels_with_other_options(shared_data: Path, class_agnostic: bool) -> None:
    options = ScoringOptions(
        iou_thresholds=(0.3, 0.55, 1.0),
        areas={"tiny": (0, 16**2), "vast": (256**2, 1e10)},
        max_detections=(1, 5, 300),
        class_agnostic=class_agnostic,
    )
    for name in REAL_FILES[:2]:
        content = json.loads((shared_data / name).read_text())
        rows = jittered(content, seed=3)
        evaluation = quiet_evaluation(rows, shared_data / name, options)
        assert_same_arrays(evaluation, by_pycocotools(content, rows, options))


def test_the_form_of_the_results_does_not_matter(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / REAL_FILES[0]
    rows = jittered(json.loads(path.read_text()), seed=1)
    values = [[r["image_id"], *r["bbox"], r["score"], r["category_id"]] for r in rows]
    reference = quiet_evaluation(rows, path)
    for results in (write_json(tmp_path / "results.json", rows), np.array(values), tuple(rows)):
        evaluation = quiet_evaluation(results, path)
        assert (evaluation.arrays.precision == reference.arrays.precision).all()
        assert twelve(evaluation.metrics) == twelve(reference.metrics)


def test_detections_score_as_their_coco_rows(shared_data: Path) -> None:
    path = shared_data / REAL_FILES[0]
    content = json.loads(path.read_text())
    found = {}
    for image in content["images"]:
        rows = [row for row in jittered(content, seed=2) if row["image_id"] == image["id"]][:9]
        boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found[image["id"]] = Detections(
            boxes,
            np.array([row["score"] for row in rows]),
            np.array([row["category_id"] for row in rows]),
            ["?"] * len(rows),
        )
    rows = [row for image_id, one in found.items() for row in one.to_coco(image_id)]
    assert_same(quiet_evaluation(found, path), by_pycocotools(content, rows))


def test_overlaps_are_those_of_pycocotools() -> None:
    """To the last bit: one that equals a threshold decides about a match."""
    rng = np.random.default_rng(0)
    grids = [rng.integers(-3, 12, (2, 4000, 4)).astype(float), rng.normal(20, 15, (2, 4000, 4))]
    for found, objects in [*grids, grids[1] * 1e-3, grids[1] * 1e6]:
        is_crowd = rng.random(4000) < 0.3
        theirs = [
            float(mask.iou(found[None, row], objects[None, row], [int(is_crowd[row])]).item())
            for row in range(len(found))
        ]
        assert paired_ious(found, objects, is_crowd).tolist() == theirs


@DRAWN
@given(problem=problems())
def test_on_drawn_problems(tmp_path: Path, problem: Problem) -> None:
    path = write_json(tmp_path / "val.json", problem.content)
    evaluation = quiet_evaluation(problem.rows, path)
    assert_same(evaluation, by_pycocotools(problem.content, problem.rows))


@DRAWN
@given(problem=problems(other_options()))
def test_on_drawn_problems_with_other_options(tmp_path: Path, problem: Problem) -> None:
    path = write_json(tmp_path / "val.json", problem.content)
    evaluation = quiet_evaluation(problem.rows, path, problem.options)
    reference = by_pycocotools(problem.content, problem.rows, problem.options)
    assert_same_arrays(evaluation, reference)


@settings(DRAWN, max_examples=50)
@given(problem=problems(other_options()))
def test_nothing_depends_on_how_much_is_done_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Problem
) -> None:
    """Pairs in chunks of three, and rows ordered without packing them into one integer."""
    path = write_json(tmp_path / "val.json", problem.content)
    expected = quiet_evaluation(problem.rows, path, problem.options).arrays
    with monkeypatch.context() as patch:
        patch.setattr(overlaps, "_CHUNK", 3)
        patch.setattr(ordering, "_BITS", 0)
        found = quiet_evaluation(problem.rows, path, problem.options).arrays
    for name in ("precision", "recall", "scores"):
        assert (getattr(found, name) == getattr(expected, name)).all(), name


@pytest.mark.parametrize("categories", [(1, 2), (2, 1)])
@pytest.mark.parametrize("places", [(8, 12), (12, 8)])
def test_equal_overlaps_with_objects_of_two_classes(
    tmp_path: Path, categories: tuple[int, int], places: tuple[int, int]
) -> None:
    """Where classes do not matter, the objects stand by class, and the last of equals is taken."""
    content = coco_content(
        [
            {"id": number, "image_id": 1, "category_id": category_id, "bbox": [x, 0, 10, 10]}
            for number, category_id, x in zip((1, 2), categories, places, strict=True)
        ]
    )
    rows = [
        {"image_id": 1, "category_id": 1, "bbox": [10, 0, 10, 10], "score": 0.9},
        {"image_id": 1, "category_id": 2, "bbox": [13, 0, 10, 10], "score": 0.8},
    ]
    options = ScoringOptions(class_agnostic=True)
    evaluation = quiet_evaluation(rows, write_json(tmp_path / "val.json", content), options)
    assert_same_arrays(evaluation, by_pycocotools(content, rows, options))


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("nudge", [-1e-9, 0, 1e-9])
def test_areas_on_the_bounds_belong_to_both_sizes(tmp_path: Path, side: int, nudge: float) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 5, side, side]}
    content = coco_content([{**annotation, "area": side**2 + nudge}])
    # The second matches nothing; by its own area it is wrong in the ranges that it belongs to.
    false = {"bbox": [200, 200, side, side + nudge], "score": 0.95}
    rows = [
        {"image_id": 1, "category_id": 1, "bbox": [3, 5, side, side], "score": 0.9},
        {"image_id": 1, "category_id": 1, **false},
    ]
    evaluation = quiet_evaluation(rows, write_json(tmp_path / "val.json", content))
    assert_same(evaluation, by_pycocotools(content, rows))
    metrics = evaluation.metrics
    known = [metrics.ap_small, metrics.ap_medium, metrics.ap_large]
    assert [value is not None for value in known] == {
        (32, -1e-9): [True, False, False],
        (32, 0): [True, True, False],
        (32, 1e-9): [False, True, False],
        (96, -1e-9): [False, True, False],
        (96, 0): [False, True, True],
        (96, 1e-9): [False, False, True],
    }[side, nudge]


def test_the_backend_of_pycocotools_is_pycocotools(shared_data: Path) -> None:
    path = shared_data / REAL_FILES[2]
    content = json.loads(path.read_text())
    rows = jittered(content, seed=4)
    assert_same(quiet_evaluation(rows, path, backend="pycocotools"), by_pycocotools(content, rows))
    options = ScoringOptions((0.4, 1.0), {"tiny": (0, 900)}, (3, 200), class_agnostic=True)
    evaluation = quiet_evaluation(rows, path, options, backend="pycocotools")
    assert_same_arrays(evaluation, by_pycocotools(content, rows, options))
