"""Which pictures, wrong detections and missed objects are shown."""

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
from detr_kit.evaluation.confusion import reaches
from detr_kit.evaluation.error_kinds import KINDS, error_kinds
from detr_kit.evaluation.examples import (
    IGNORED,
    RIGHT,
    FalseExamples,
    ImageExample,
    MissedExamples,
    confident_false,
    missed_objects,
    worst_images,
)
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import ScoringOptions

Box = tuple[float, float, float, float]
Object = tuple[int, int, Box, bool]  # picture, class, box, crowd
Found = tuple[int, int, Box, float]  # picture, class, box, score

CAT, DOG, OWL = 0, 1, 2
FIXED = settings(derandomize=True, deadline=None, max_examples=60)
NAMES = dict(enumerate(KINDS)) | {RIGHT: "right", IGNORED: "ignored"}


def evaluated(
    objects: Sequence[Object],
    found: Sequence[Found],
    options: ScoringOptions | None = None,
    images: int = 6,
    classes: int = 3,
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


def worst(
    objects: Sequence[Object],
    found: Sequence[Found],
    score_thresholds: float | np.ndarray = 0.5,
    count: int = 24,
) -> tuple[ImageExample, ...]:
    evaluation = evaluated(objects, found)
    return worst_images(evaluation, error_kinds(evaluation), score_thresholds, count)


def false(objects: Sequence[Object], found: Sequence[Found], count: int) -> FalseExamples:
    evaluation = evaluated(objects, found)
    return confident_false(evaluation, error_kinds(evaluation), count)


class TestWorstImages:
    def test_those_with_most_mistakes_come_first(self) -> None:
        objects = [
            (0, CAT, at(0), False),
            (1, CAT, at(0), False),
            (1, DOG, at(1), False),
            (2, CAT, at(0), False),
        ]
        found = [
            (0, CAT, at(0), 0.9),
            (1, DOG, at(7), 0.6),
            (2, CAT, at(0), 0.9),
            (2, CAT, at(9), 0.8),
            (3, OWL, at(0), 0.9),
        ]
        examples = worst(objects, found)
        # of the two with one mistake, the more confident one goes before
        assert [example.image_row for example in examples] == [1, 3, 2]
        assert [example.num_mistakes for example in examples] == [3, 1, 1]
        assert [example.missed.tolist() for example in examples] == [[1, 2], [], []]
        assert [example.image_row for example in worst(objects, found, count=1)] == [1]
        assert worst(objects, found, count=0) == ()

    def test_a_picture_shows_what_is_right_wrong_and_ignored(self) -> None:
        objects = [
            (0, CAT, at(0), False),
            (0, DOG, at(1), False),
            (0, CAT, at(2), True),
            (0, OWL, at(3), False),
        ]
        found = [
            (0, CAT, at(0), 0.9),
            (0, CAT, at(0, 0.8), 0.55),
            (0, CAT, at(1), 0.8),
            (0, CAT, at(2), 0.7),
            (0, DOG, at(4), 0.6),
            (0, OWL, at(3), 0.4),
        ]
        (example,) = worst(objects, found)
        assert example.rows.tolist() == [0, 2, 3, 4, 1]
        assert [NAMES[kind] for kind in example.kinds.tolist()] == [
            "right",
            "classification",
            "ignored",
            "background",
            "duplicate",
        ]
        assert example.partners.tolist() == [0, 1, 2, -1, 0]
        assert example.missed.tolist() == [1, 3]
        assert example.num_mistakes == 5

    def test_only_detections_of_the_score_count(self) -> None:
        objects = [(0, CAT, at(0), False), (1, DOG, at(0), False)]
        found = [(0, CAT, at(0), 0.5), (0, DOG, at(1), 0.4), (1, DOG, at(0), 0.4)]
        assert [example.image_row for example in worst(objects, found, 0.5)] == [1]
        assert [example.image_row for example in worst(objects, found, 0.4)] == [0]
        by_class = np.array([0.5, 0.4, np.nan])
        assert [example.image_row for example in worst(objects, found, by_class)] == [0]
        assert worst(objects, found, np.array([0.5, 0.41, np.nan]))[0].missed.tolist() == [1]

    def test_perfect_results_have_none(self) -> None:
        assert worst([(0, CAT, at(0), False)], [(0, CAT, at(0), 0.9)]) == ()

    def test_other_shapes_of_thresholds_are_refused(self) -> None:
        with pytest.raises(DetrKitError, match="one for each of 3 classes"):
            worst([], [], np.zeros(2))


class TestConfidentFalse:
    def test_by_falling_score_with_their_kinds(self) -> None:
        objects = [(0, CAT, at(0), False), (1, DOG, at(0), False), (2, OWL, at(0), False)]
        found = [
            (0, CAT, at(0), 0.9),
            (1, CAT, at(0), 0.8),
            (2, OWL, at(0, 0.3), 0.95),
            (3, DOG, at(0), 0.1),
        ]
        examples = false(objects, found, 8)
        assert examples.rows.tolist() == [2, 1, 3]
        assert [NAMES[kind] for kind in examples.kinds.tolist()] == [
            "localisation",
            "classification",
            "background",
        ]
        assert examples.partners.tolist() == [2, 1, -1]
        assert false(objects, found, 2).rows.tolist() == [2, 1]
        assert false(objects, found, 0).rows.tolist() == []

    def test_a_picture_gives_one_before_it_gives_another(self) -> None:
        found = [(0, CAT, at(place), 0.9 - place / 100) for place in range(5)]
        found += [(1, CAT, at(0), 0.2), (2, DOG, at(0), 0.1)]
        assert false([], found, 3).rows.tolist() == [0, 5, 6]
        assert false([], found, 5).rows.tolist() == [0, 1, 2, 5, 6]
        found = [(0, CAT, at(0), 0.9), (0, DOG, at(1), 0.8), (1, OWL, at(0), 0.1)]
        assert false([], found, 2).rows.tolist() == [0, 2]

    def test_a_class_gives_its_share_before_it_gives_more(self) -> None:
        found = [(image, CAT, at(0), 0.9 - image / 100) for image in range(4)]
        found += [(4, DOG, at(0), 0.2), (5, OWL, at(0), 0.1)]
        assert false([], found, 4).rows.tolist() == [0, 1, 4, 5]

    def test_one_class_in_one_picture_fills_all(self) -> None:
        found = [(0, CAT, at(place), place / 10) for place in range(6)]
        assert false([], found, 4).rows.tolist() == [5, 4, 3, 2]


class TestMissedObjects:
    def test_the_largest_first(self) -> None:
        objects = [
            (0, CAT, at(0, 0.5), False),
            (1, DOG, at(0), False),
            (2, OWL, at(0, 0.2), False),
            (3, OWL, at(0), False),
            (4, OWL, at(0), True),
        ]
        evaluation = evaluated(objects, [(3, OWL, at(0), 0.9)])
        assert missed_objects(evaluation, 0.5).rows.tolist() == [1, 0, 2]
        assert missed_objects(evaluation, 0.5, count=2).rows.tolist() == [1, 0]
        assert missed_objects(evaluation, 0.95).rows.tolist() == [1, 3, 0, 2]

    def test_what_finds_it_below_the_score_is_named(self) -> None:
        objects = [(0, CAT, at(0), False), (1, DOG, at(0), False)]
        found = [(1, DOG, at(0), 0.2), (0, CAT, at(5), 0.9), (1, DOG, at(0), 0.1)]
        missed = missed_objects(evaluated(objects, found), 0.5)
        assert missed.rows.tolist() == [0, 1]
        assert missed.rows_below.tolist() == [-1, 0]

    def test_a_detection_of_another_class_does_not_find_it(self) -> None:
        evaluation = evaluated([(0, CAT, at(0), False)], [(0, DOG, at(0), 0.9)])
        assert missed_objects(evaluation, 0.5).rows.tolist() == [0]

    def test_pictures_and_classes_take_turns(self) -> None:
        objects = [(0, CAT, at(place), False) for place in range(5)]
        objects += [(1, CAT, at(0, 0.3), False), (2, DOG, at(0, 0.2), False)]
        evaluation = evaluated(objects, [])
        assert missed_objects(evaluation, 0.5, count=2).rows.tolist() == [0, 6]
        assert missed_objects(evaluation, 0.5, count=8).rows.tolist() == [0, 1, 2, 3, 4, 5, 6]

    def test_at_another_iou(self) -> None:
        evaluation = evaluated([(0, CAT, at(0), False)], [(0, CAT, at(0, 0.7), 0.9)])
        assert missed_objects(evaluation, 0.5).rows.tolist() == []
        assert missed_objects(evaluation, 0.5, iou=0.75).rows.tolist() == [0]
        with pytest.raises(DetrKitError, match=r"IoU 0\.3 is not among"):
            missed_objects(evaluation, 0.5, iou=0.3)


def all_examples(
    evaluation: Evaluation, score_threshold: float = 0.5
) -> tuple[tuple[ImageExample, ...], FalseExamples, MissedExamples]:
    errors = error_kinds(evaluation)
    return (
        worst_images(evaluation, errors, score_threshold),
        confident_false(evaluation, errors),
        missed_objects(evaluation, score_threshold),
    )


class TestDegenerate:
    @pytest.mark.parametrize("images", [0, 2])
    def test_neither_detections_nor_objects(self, images: int) -> None:
        pictures, wrong, missed = all_examples(evaluated([], [], images=images, classes=1))
        assert pictures == ()
        assert len(wrong.rows) == len(wrong.kinds) == len(wrong.partners) == 0
        assert len(missed.rows) == len(missed.rows_below) == 0

    def test_no_detections(self) -> None:
        pictures, wrong, missed = all_examples(evaluated([(1, CAT, at(0), False)], []))
        assert [(example.image_row, example.missed.tolist()) for example in pictures] == [(1, [0])]
        assert len(wrong.rows) == 0
        assert missed.rows.tolist() == [0]

    def test_no_objects(self) -> None:
        pictures, wrong, missed = all_examples(evaluated([], [(1, OWL, at(0), 0.7)]))
        assert [(example.image_row, example.rows.tolist()) for example in pictures] == [(1, [0])]
        assert wrong.rows.tolist() == [0]
        assert len(missed.rows) == 0

    def test_all_classes_as_one(self) -> None:
        objects = [(0, CAT, at(0), False), (0, DOG, at(1), False)]
        found = [(0, DOG, at(0), 0.9), (0, OWL, at(0, 0.9), 0.8)]
        (picture,), wrong, missed = all_examples(
            evaluated(objects, found, ScoringOptions(class_agnostic=True))
        )
        assert [NAMES[kind] for kind in picture.kinds.tolist()] == ["right", "duplicate"]
        assert wrong.rows.tolist() == [1]
        assert missed.rows.tolist() == [1]

    def test_scores_may_be_equal_and_need_no_scale(self) -> None:
        found = [(image, CAT, at(0), -4.0) for image in (3, 1, 2)]
        pictures, wrong, _ = all_examples(evaluated([(1, CAT, at(0), False)], found), -4.0)
        assert [example.image_row for example in pictures] == [2, 3]
        assert wrong.rows.tolist() == [2, 0]  # by picture, as they are matched

    def test_detections_beyond_the_most_that_count_are_not_shown(self) -> None:
        found = [(0, CAT, at(place), 0.9 - place / 100) for place in range(4)]
        options = ScoringOptions(max_detections=(2,))
        (picture,), wrong, _ = all_examples(evaluated([], found, options))
        assert picture.rows.tolist() == wrong.rows.tolist() == [0, 1]


@FIXED
@given(seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([0.0, 0.4, 0.8]))
def test_the_mistakes_of_all_pictures_are_all_mistakes(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    objects: list[Object] = []
    found: list[Found] = []
    for place in range(int(rng.integers(0, 15))):
        image, class_ = (int(value) for value in rng.integers(0, (6, 3)))
        objects.append((image, class_, at(place), bool(rng.random() < 0.2)))
        for _ in range(int(rng.integers(0, 3))):
            own = class_ if rng.random() < 0.6 else int(rng.integers(0, 3))
            box = at(place, float(rng.choice([0.05, 0.3, 0.8])))
            found.append((image, own, box, round(float(rng.random()), 1)))
    evaluation = evaluated(objects, found)
    errors = error_kinds(evaluation)
    pictures = worst_images(evaluation, errors, threshold, count=6)
    matches = evaluation.table.at(0)
    shown = reaches(matches, threshold)
    right = set(matches.objects[shown & matches.is_true].tolist())
    missed = {row for row, each in enumerate(objects) if not each[3]} - right
    wrong = set(matches.rows[shown & matches.is_false].tolist())
    seen = [(r, k) for each in pictures for r, k in zip(each.rows, each.kinds, strict=True)]
    assert {row for row, kind in seen if kind >= 0} == wrong
    assert sorted(row for each in pictures for row in each.missed.tolist()) == sorted(missed)
    mistakes = [each.num_mistakes for each in pictures]
    assert mistakes == sorted(mistakes, reverse=True)
    assert sum(mistakes) == len(wrong) + len(missed)
    for each in pictures:
        scores = [found[row][3] for row in each.rows.tolist()]
        assert scores == sorted(scores, reverse=True)
        assert all(found[row][0] == each.image_row for row in each.rows.tolist())
    everything = missed_objects(evaluation, threshold, count=100)
    assert sorted(everything.rows.tolist()) == sorted(missed)
    areas = evaluation.truth.areas[everything.rows]
    assert (areas[1:] <= areas[:-1]).all()
    assert sorted(confident_false(evaluation, errors, 100).rows.tolist()) == sorted(
        errors.rows.tolist()
    )
