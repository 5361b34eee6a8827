"""The confusion matrix, against scenes known by hand and a matching one by one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.categories import CategoryTable
from detr_kit.data.coco_file import PackedText
from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.evaluation.coco import Evaluation, evaluation_of
from detr_kit.evaluation.confusion import confusion_matrix
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.overlaps import paired_ious

Box = tuple[float, float, float, float]
Object = tuple[int, int, Box, bool]  # picture, class, box, crowd
Found = tuple[int, int, Box, float]  # picture, class, box, score

CAT, DOG, NOTHING = 0, 1, 2
FIXED = settings(derandomize=True, deadline=None, max_examples=100)
SEEDS = st.integers(0, 2**32 - 1)


def evaluated(
    objects: Sequence[Object],
    found: Sequence[Found],
    options: ScoringOptions | None = None,
    images: int = 3,
    classes: int = 2,
) -> Evaluation:
    boxes = np.array([box for _, _, box, _ in objects], dtype=np.float64).reshape(-1, 4)
    truth = GroundTruth(
        Path("val.json"),
        CategoryTable(tuple(range(1, classes + 1)), tuple(f"class {k}" for k in range(classes))),
        np.arange(images),
        PackedText.pack(b"a.jpg" for _ in range(images)),
        np.full((images, 2), 600, dtype=np.int32),
        np.array([image for image, _, _, _ in objects], dtype=np.int32),
        np.array([class_ for _, class_, _, _ in objects], dtype=np.int32),
        boxes,
        boxes[:, 2] * boxes[:, 3],
        np.array([crowd for _, _, _, crowd in objects], dtype=np.bool_),
        np.arange(len(objects)),
    )
    columns = ResultColumns(
        "results",
        np.array([image for image, _, _, _ in found], dtype=np.int64),
        np.array([class_ + 1 for _, class_, _, _ in found], dtype=np.int64),
        np.array([box for _, _, box, _ in found], dtype=np.float64).reshape(-1, 4),
        np.array([score for _, _, _, score in found], dtype=np.float64),
    )
    with warnings.catch_warnings():  # few detections of high score look cut at a score
        warnings.simplefilter("ignore", DetrKitWarning)
        return evaluation_of(columns, truth, options=options)


def at(place: int, iou: float = 1.0) -> Box:
    """A box with this IoU with `at(place)`, and none with those of other places."""
    return (1000.0 * place, 0.0, 100.0 * iou, 100.0)


def counts_of(
    objects: Sequence[Object],
    found: Sequence[Found],
    score_threshold: float | np.ndarray = 0.0,
    iou: float = 0.5,
) -> list[list[int]]:
    return confusion_matrix(evaluated(objects, found), score_threshold, iou).counts.tolist()


CAT_AND_DOG = [(0, CAT, at(0), False), (0, DOG, at(1), False)]


class TestCounts:
    def test_right_confused_missed_and_on_nothing(self) -> None:
        objects = [*CAT_AND_DOG, (1, CAT, at(0), False), (2, DOG, at(0), False)]
        found = [
            (0, CAT, at(0), 0.9),
            (0, CAT, at(1, 0.8), 0.8),
            (2, DOG, at(0, 0.7), 0.5),
            (1, DOG, at(5), 0.3),
        ]
        matrix = confusion_matrix(evaluated(objects, found), 0.1)
        assert matrix.counts.tolist() == [[1, 0, 1], [1, 1, 0], [0, 1, 0]]
        assert matrix.counts.dtype == np.int64
        assert matrix.names == ("class 0", "class 1")
        assert (matrix.iou, matrix.score_threshold) == (0.5, 0.1)

    def test_a_detection_at_the_threshold_counts(self) -> None:
        found = [(0, CAT, at(0), 0.5), (0, DOG, at(1), 0.4)]
        assert counts_of(CAT_AND_DOG, found, 0.5) == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
        assert counts_of(CAT_AND_DOG, found, 0.51) == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]

    def test_the_iou_decides_what_is_found(self) -> None:
        found = [(0, CAT, at(0, 0.6), 0.5), (0, CAT, at(1, 0.5), 0.5)]
        assert counts_of(CAT_AND_DOG, found) == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
        assert counts_of(CAT_AND_DOG, found, iou=0.75) == [[0, 0, 1], [0, 0, 1], [2, 0, 0]]

    def test_a_right_detection_goes_before_a_better_scored_wrong_one(self) -> None:
        found = [(0, DOG, at(0), 0.9), (0, CAT, at(0, 0.7), 0.3)]
        assert counts_of(CAT_AND_DOG, found) == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
        assert counts_of(CAT_AND_DOG, found, 0.5) == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]

    def test_each_object_is_confused_once_with_the_best_scored(self) -> None:
        objects = [(0, CAT, at(0), False)]
        found = [(0, 1, at(0), 0.3), (0, 2, at(0, 0.6), 0.9)]
        matrix = confusion_matrix(evaluated(objects, found, classes=3), 0.0)
        assert matrix.counts[0].tolist() == [0, 0, 1, 0]
        assert matrix.counts[3].tolist() == [0, 1, 0, 0]

    def test_each_takes_what_it_overlaps_most_of_what_is_left(self) -> None:
        objects = [
            (0, 0, (0.0, 0.0, 100.0, 100.0), False),
            (0, 1, (0.0, 0.0, 80.0, 100.0), False),
        ]
        found = [
            (0, 2, (0.0, 0.0, 85.0, 100.0), 0.9),  # takes the second object
            (0, 2, (0.0, 0.0, 80.0, 100.0), 0.8),  # would too, and gets the first
            (0, 2, (0.0, 0.0, 81.0, 100.0), 0.7),  # gets none
        ]
        counts = confusion_matrix(evaluated(objects, found, classes=3), 0.0).counts
        assert counts[:, 2].tolist() == [1, 1, 0, 1]

    def test_crowds_are_no_objects_and_detections_on_them_do_not_count(self) -> None:
        objects = [*CAT_AND_DOG, (1, CAT, at(0), True)]
        found = [(1, CAT, at(0, 0.4), 0.9), (1, CAT, at(0), 0.9), (1, DOG, at(0), 0.9)]
        assert counts_of(objects, found) == [[0, 0, 1], [0, 0, 1], [0, 1, 0]]

    def test_a_duplicate_stands_on_nothing(self) -> None:
        found = [(0, CAT, at(0), 0.9), (0, CAT, at(0, 0.9), 0.8)]
        assert counts_of(CAT_AND_DOG, found) == [[1, 0, 0], [0, 0, 1], [1, 0, 0]]


class TestThresholds:
    FOUND = ((0, CAT, at(0), 0.5), (0, DOG, at(1), 0.5))

    def test_each_class_can_have_its_own(self) -> None:
        expected = [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
        assert counts_of(CAT_AND_DOG, self.FOUND, np.array([0.6, 0.4])) == expected

    def test_no_detection_reaches_nan(self) -> None:
        expected = [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
        assert counts_of(CAT_AND_DOG, self.FOUND, np.array([np.nan, 0.4])) == expected

    def test_other_shapes_are_refused(self) -> None:
        with pytest.raises(DetrKitError, match=r"one for each of 2 classes, got an array \(3,\)"):
            counts_of(CAT_AND_DOG, self.FOUND, np.zeros(3))


class TestDegenerate:
    def test_no_detections(self) -> None:
        assert counts_of(CAT_AND_DOG, []) == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]

    def test_no_objects(self) -> None:
        found = [(0, CAT, at(0), 0.5), (2, DOG, at(0), 0.5)]
        assert counts_of([], found) == [[0, 0, 0], [0, 0, 0], [1, 1, 0]]

    def test_neither_pictures_nor_anything(self) -> None:
        matrix = confusion_matrix(evaluated([], [], images=0, classes=1), 0.5)
        assert matrix.counts.tolist() == [[0, 0], [0, 0]]

    def test_one_class_or_all_as_one(self) -> None:
        found = [(0, DOG, at(0), 0.5), (0, DOG, at(4), 0.5)]
        matrix = confusion_matrix(
            evaluated(CAT_AND_DOG, found, ScoringOptions(class_agnostic=True)), 0.5
        )
        assert matrix.counts.tolist() == [[1, 1], [1, 0]]
        assert matrix.names == ("all classes",)

    def test_scores_may_be_equal_and_need_no_scale(self) -> None:
        found = [(0, DOG, at(0), -7.0), (0, DOG, at(0), -7.0), (0, CAT, at(1), 30.0)]
        assert counts_of(CAT_AND_DOG, found, -7.0) == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]

    def test_a_threshold_of_1(self) -> None:
        evaluation = evaluated(
            CAT_AND_DOG, [(0, DOG, at(0), 0.5)], ScoringOptions(iou_thresholds=(1.0,))
        )
        expected = [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
        assert confusion_matrix(evaluation, 0.5, 1.0).counts.tolist() == expected

    def test_an_iou_that_was_not_evaluated_is_refused(self) -> None:
        with pytest.raises(DetrKitError, match=r"IoU 0\.3 is not among"):
            counts_of(CAT_AND_DOG, [], iou=0.3)


def random_scene(seed: int) -> tuple[list[Object], list[Found]]:
    """Crowds, equal scores, objects that overlap, and detections of any class around them."""
    rng = np.random.default_rng(seed)
    objects: list[Object] = []
    found: list[Found] = []
    for _ in range(int(rng.integers(0, 16))):
        image, class_ = (int(value) for value in rng.integers(0, (2, 4)))
        x, y = rng.uniform(0, 60, 2)
        objects.append((image, class_, (x, y, 60.0, 60.0), bool(rng.random() < 0.15)))
        for _ in range(int(rng.integers(0, 4))):
            dx, dy = rng.normal(0, 8, 2)
            score = round(float(rng.random()), 1)
            own = class_ if rng.random() < 0.5 else int(rng.integers(0, 4))
            found.append((image, own, (x + dx, y + dy, 60.0, 60.0), score))
    return objects, found


@FIXED
@given(seed=SEEDS, threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_rows_are_objects_columns_detections_and_the_diagonal_is_right(
    seed: int, threshold: float
) -> None:
    objects, found = random_scene(seed)
    evaluation = evaluated(objects, found, classes=4)
    counts = confusion_matrix(evaluation, threshold).counts
    classes = [class_ for _, class_, _, crowd in objects if not crowd]
    np.testing.assert_array_equal(counts[:-1].sum(axis=1), np.bincount(classes, minlength=4))
    matches = evaluation.table.at(0)
    shown = matches.scores >= threshold
    for expected, kept in (
        (counts[:, :-1].sum(axis=0), shown & ~matches.ignored),
        (counts.diagonal()[:-1], shown & matches.is_true),
    ):
        np.testing.assert_array_equal(expected, np.bincount(matches.classes[kept], minlength=4))
    assert (counts >= 0).all()
    assert counts[-1, -1] == 0


@FIXED
@given(seed=SEEDS, threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_equal_to_taking_one_detection_after_the_other(seed: int, threshold: float) -> None:
    objects, found = random_scene(seed)
    evaluation = evaluated(objects, found, classes=4)
    matches = evaluation.table.at(0)
    expected = np.zeros((5, 5), dtype=np.int64)
    free = [not crowd for _, _, _, crowd in objects]
    order = np.argsort(-matches.scores, kind="stable")
    wrong = []
    for place in order[matches.scores[order] >= threshold].tolist():
        if matches.is_true[place]:
            free[matches.objects[place]] = False
            expected[matches.classes[place], matches.classes[place]] += 1
        elif matches.is_false[place]:
            wrong.append(place)
    for place in wrong:
        image, class_, box, _ = found[matches.rows[place]]
        best, best_iou = -1, 0.0
        for number, (own_image, _, own_box, _) in enumerate(objects):
            iou = float(paired_ious(np.array([box]), np.array([own_box]), np.array([False]))[0])
            if free[number] and own_image == image and iou >= 0.5 and iou > best_iou:
                best, best_iou = number, iou
        true_class = 4 if best < 0 else objects[best][1]
        expected[true_class, class_] += 1
        if best >= 0:
            free[best] = False
    for (_, class_, _, _), is_free in zip(objects, free, strict=True):
        expected[class_, 4] += is_free
    np.testing.assert_array_equal(confusion_matrix(evaluation, threshold).counts, expected)
