"""Which pictures, wrong detections and missed objects are shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from detr_kit.errors import DetrKitError
from detr_kit.evaluation.error_kinds import KINDS, error_kinds
from detr_kit.evaluation.examples import (
    IGNORED,
    RIGHT,
    FalseExamples,
    ImageExample,
    confident_false,
    missed_objects,
    worst_images,
)
from tests.evaluation.error_scenes import CAT, DOG, OWL, Found, Object, at, evaluated

NAMES = dict(enumerate(KINDS)) | {RIGHT: "right", IGNORED: "ignored"}


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

    def test_crowded_pictures_do_not_come_first_for_that(self) -> None:
        # 12 of 30 found here, none of 4 there, which is fewer mistakes but more than usual
        objects = [(0, CAT, at(place), False) for place in range(30)]
        objects += [(1, CAT, at(place), False) for place in range(4)]
        objects += [(2, CAT, at(0), False)]
        found = [(0, CAT, at(place), 0.9) for place in range(12)]
        examples = worst(objects, found)
        assert [example.image_row for example in examples] == [1, 2, 0]
        assert [example.num_mistakes for example in examples] == [4, 1, 18]

    def test_where_all_is_wrong_the_most_mistakes_come_first(self) -> None:
        objects = [(image, CAT, at(place), False) for image in range(4) for place in range(image)]
        examples = worst(objects, [])
        assert [example.image_row for example in examples] == [3, 2, 1]

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
