"""Examples of odd evaluations, and that together they are all mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detr_kit.evaluation.coco import Evaluation
from detr_kit.evaluation.confusion import reaches
from detr_kit.evaluation.error_kinds import KINDS, error_kinds
from detr_kit.evaluation.examples import (
    RIGHT,
    FalseExamples,
    ImageExample,
    MissedExamples,
    confident_false,
    missed_objects,
    worst_images,
)
from detr_kit.evaluation.options import ScoringOptions
from tests.evaluation.error_scenes import CAT, DOG, FIXED, OWL, Found, Object, at, evaluated

NAMES = dict(enumerate(KINDS)) | {RIGHT: "right"}


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
    cases = [
        count + int((e.kinds == RIGHT).sum()) for e, count in zip(pictures, mistakes, strict=True)
    ]
    usual = sum(mistakes) / max(1, sum(mistakes) + len(right))
    excess = [(m - usual * n) / n**0.5 for m, n in zip(mistakes, cases, strict=True)]
    assert excess == pytest.approx(sorted(excess, reverse=True), abs=1e-9)
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
