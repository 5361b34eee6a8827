"""Each match against COCO's rules written out as loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detr_kit.evaluation.found import FoundObjects
from detr_kit.evaluation.ground_truth import GroundTruth, load_ground_truth
from detr_kit.evaluation.match_table import (
    ALL_CLASSES,
    UNMATCHED,
    Matches,
    MatchTable,
    Slices,
    area_slices,
    match,
)
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.results import found_objects
from tests.evaluation.coco_problems import (
    ROW,
    Problem,
    coco_content,
    other_options,
    problems,
    write_json,
)

DRAWN = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def iou(found_xywh: list[float], object_xywh: list[float], is_crowd: bool) -> float:
    x, y, w, h = found_xywh
    object_x, object_y, object_w, object_h = object_xywh
    width = min(x + w, object_x + object_w) - max(x, object_x)
    height = min(y + h, object_y + object_h) - max(y, object_y)
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (w * h if is_crowd else w * h + object_w * object_h - both)


def rivals(table: MatchTable, ids: dict[str, np.ndarray]) -> list[list[int]]:
    """Rows of detections that compete, those of a picture and class, best score first."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, (image, class_) in enumerate(zip(ids["image"], ids["class"], strict=True)):
        key = (0 if table.options.class_agnostic else class_, image)
        groups.setdefault(key, []).append(row)
    scores = table.found.scores
    most = table.options.max_detections[-1]
    ordered = []
    for group in groups.values():
        # pycocotools gathers class after class; sorting by score keeps that order of equals
        group.sort(key=lambda row: (-scores[row], ids["class"][row], row))
        ordered.append(group[:most])
    return ordered


def by_definition(table: MatchTable, threshold: float, part: int) -> dict[int, tuple[int, bool]]:
    """What each scored detection finds, UNMATCHED for nothing, and whether it is ignored."""
    truth, found, slices = table.truth, table.found, table.slices
    threshold = min(threshold, 1 - 1e-10)
    chosen: dict[int, tuple[int, bool]] = {}
    taken: set[int] = set()
    for group in rivals(table, {"image": found.image_rows, "class": found.class_columns}):
        for row in group:
            best = None
            for object_ in np.flatnonzero(truth.image_rows == found.image_rows[row]).tolist():
                is_crowd = bool(truth.is_crowd[object_])
                classes = truth.class_columns[object_], found.class_columns[row]
                if classes[0] != classes[1] and not table.options.class_agnostic:
                    continue
                overlap = iou(
                    found.boxes_xywh[row].tolist(), truth.boxes_xywh[object_].tolist(), is_crowd
                )
                if overlap < threshold or (object_ in taken and not is_crowd):
                    continue
                counts = not slices.object_ignored[object_, part]
                # one that counts, then the largest overlap, then the last: by class, then file
                place = (counts, overlap, truth.class_columns[object_], object_)
                best = place if best is None else max(best, place)
            if best is None:
                chosen[row] = (UNMATCHED, bool(slices.outside[row, part]))
            else:
                taken.add(best[-1])
                chosen[row] = (best[-1], not best[0])
    return chosen


def assert_by_definition(table: MatchTable) -> None:
    for part, name in enumerate(table.slices.names):
        for place, threshold in enumerate(table.options.iou_thresholds):
            matches = table.at(place, name)
            objects, ignored = matches.objects.tolist(), matches.ignored.tolist()
            ours = dict(zip(matches.rows.tolist(), zip(objects, ignored, strict=True), strict=True))
            assert ours == by_definition(table, threshold, part), (name, threshold)


def read(folder: Path, problem: Problem) -> tuple[GroundTruth, FoundObjects]:
    truth = load_ground_truth(write_json(folder / "val.json", problem.content))
    return truth, found_objects(problem.rows, truth)


@DRAWN
@given(problem=problems(other_options()))
def test_matches_by_definition(tmp_path: Path, problem: Problem) -> None:
    assert_by_definition(match(*read(tmp_path, problem), problem.options))


@DRAWN
@given(problem=problems(other_options()), data=st.data())
def test_matches_in_slices_of_ones_own(
    tmp_path: Path, problem: Problem, data: st.DataObject
) -> None:
    truth, found = read(tmp_path, problem)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    slices = Slices(
        ("all", "odd"),
        truth.is_crowd[:, None] | (rng.random((truth.num_objects, 2)) < 0.3),
        rng.random((len(found), 2)) < 0.3,
    )
    table = match(truth, found, problem.options, slices)
    assert table.slices is slices
    assert_by_definition(table)


@DRAWN
@given(problem=problems(other_options()))
def test_the_order_of_a_table(tmp_path: Path, problem: Problem) -> None:
    """By class, then falling score, then picture, then the order of the results."""
    truth, found = read(tmp_path, problem)
    table = match(truth, found, problem.options)
    columns = np.zeros(len(found), int) if problem.options.class_agnostic else found.class_columns
    scored = {
        row: rank
        for group in rivals(table, {"image": found.image_rows, "class": found.class_columns})
        for rank, row in enumerate(group)
    }
    expected = sorted(
        scored,
        key=lambda row: (columns[row], -found.scores[row], found.image_rows[row], scored[row]),
    )
    assert table.rows.tolist() == expected
    assert table.classes.tolist() == [columns[row] for row in expected]
    assert table.ranks.tolist() == [scored[row] for row in expected]
    assert (np.diff(table.hits) > 0).all()
    assert set(np.flatnonzero(table.at(0).objects != UNMATCHED)) <= set(table.hits)
    assert table.objects.shape == (
        len(table.hits),
        len(problem.options.iou_thresholds),
        len(problem.options.areas),
    )


def test_matches_on_real_labels(shared_data: Path) -> None:
    path = shared_data / "coco_mini" / "annotations" / "instances_val2017.json"
    truth = load_ground_truth(path)
    rng = np.random.default_rng(0)
    rows = [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": (np.array(annotation["bbox"]) + rng.normal(0, 5, 4)).clip(0).tolist(),
            "score": round(float(rng.random()), 2),
        }
        for annotation in json.loads(path.read_text())["annotations"] * 2
    ]
    options = ScoringOptions(iou_thresholds=(0.5, 0.9))
    table = match(truth, found_objects(rows, truth), options)
    assert_by_definition(table)
    assert 300 < table.at(0).is_true.sum() < 600


# Two cats, of which one is small, a crowd, a dog; and what finds them or not.
OBJECTS = [
    {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100]},
    {"id": 2, "image_id": 1, "category_id": 1, "bbox": [200, 0, 20, 20]},
    {"id": 3, "image_id": 1, "category_id": 1, "bbox": [0, 200, 90, 90], "iscrowd": 1},
    {"id": 4, "image_id": 2, "category_id": 2, "bbox": [50, 50, 40, 40]},
]
FOUND: list[tuple[int, int, list[float], float]] = [
    (1, 1, [0, 0, 100, 80], 0.9),  # the large cat, IoU 0.8
    (1, 1, [0, 0, 100, 100], 0.8),  # the large cat again
    (1, 1, [10, 210, 10, 10], 0.7),  # in the crowd
    (1, 1, [40, 240, 20, 20], 0.6),  # in the crowd, half as surely
    (1, 2, [200, 0, 20, 20], 0.5),  # a cat taken for a dog
]


@pytest.fixture
def table(tmp_path: Path) -> MatchTable:
    content = coco_content(OBJECTS, image_ids=(1, 2, 3))
    rows = [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for image_id, category_id, box, score in FOUND
    ]
    truth = load_ground_truth(write_json(tmp_path / "val.json", content))
    return match(truth, found_objects(rows, truth), ScoringOptions())


def test_properties_of_matches(table: MatchTable) -> None:
    matches = table.at(0)
    assert isinstance(matches, Matches)
    assert matches.rows.tolist() == [0, 1, 2, 3, 4]
    assert matches.classes.tolist() == [0, 0, 0, 0, 1]
    assert matches.objects.tolist() == [0, UNMATCHED, 2, 2, UNMATCHED]
    assert matches.ignored.tolist() == [False, False, True, True, False]
    assert matches.is_true.tolist() == [True, False, False, False, False]
    assert matches.is_false.tolist() == [False, True, False, False, True]
    assert matches.scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert matches.image_rows.tolist() == [0, 0, 0, 0, 0]
    assert matches.num_objects.tolist() == [2, 1]
    assert matches.missed.tolist() == [1, 3]
    assert matches.ious().tolist() == [0.8, 0, 1, 1, 0]
    assert (table.num_classes, table.class_names) == (2, ("class 1", "class 2"))


def test_a_higher_threshold_takes_another(table: MatchTable) -> None:
    at_90 = table.at(8)
    assert at_90.objects.tolist() == [UNMATCHED, 0, 2, 2, UNMATCHED]
    assert at_90.missed.tolist() == [1, 3]


def test_ranges_of_area_ignore_what_lies_outside(table: MatchTable) -> None:
    small = table.at(0, "small")
    # of the unmatched ones, only those of small boxes count
    assert small.is_false.tolist() == [False, False, False, False, True]
    assert small.num_objects.tolist() == [1, 0]
    assert small.missed.tolist() == [1]
    large = table.at(0, "large")
    assert large.is_true.tolist() == [True, False, False, False, False]
    assert large.is_false.tolist() == [False, True, False, False, False]
    assert large.num_objects.tolist() == [1, 0]


def test_all_classes_as_one(table: MatchTable) -> None:
    options = ScoringOptions(class_agnostic=True)
    agnostic = match(table.truth, table.found, options)
    assert (agnostic.num_classes, agnostic.class_names) == (1, ALL_CLASSES)
    matches = agnostic.at(0)
    assert matches.objects.tolist() == [0, UNMATCHED, 2, 2, 1]  # the dog is the small cat
    assert matches.num_objects.tolist() == [3]
    assert matches.missed.tolist() == [3]


def test_area_slices_of_options(table: MatchTable) -> None:
    options = ScoringOptions(areas={"tiny": (0, 20**2)})
    slices = area_slices(table.truth, table.found, options)
    assert slices.names == ("all", "tiny")
    assert slices.object_ignored.T.tolist() == [
        [False, False, True, False],
        [True, False, True, True],
    ]
    assert slices.outside.T.tolist() == [[False] * 5, [True, True, False, False, False]]


@pytest.mark.parametrize("rows", [[], [ROW]])
@pytest.mark.parametrize("objects", [[], None])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_nothing_to_match(
    tmp_path: Path, rows: list[dict[str, Any]], objects: Any, class_agnostic: bool
) -> None:
    problem = Problem(coco_content(objects), rows, ScoringOptions(class_agnostic=class_agnostic))
    matches = match(*read(tmp_path, problem), problem.options).at(0)
    is_found = bool(rows) and objects is None
    assert len(matches.rows) == len(rows)
    assert matches.is_true.tolist() == [is_found] * len(rows)
    assert len(matches.missed) == (objects is None and not rows)
    assert matches.ious().tolist() == [float(is_found)] * len(rows)


def test_no_pictures(tmp_path: Path) -> None:
    problem = Problem(coco_content([], image_ids=()), [])
    table = match(*read(tmp_path, problem), problem.options)
    assert len(table.rows) == len(table.hits) == len(table.at(3, "large").missed) == 0
