"""What each kind of mistake costs, in scenes known by hand."""

from __future__ import annotations

import pytest

from detr_kit.evaluation.error_kinds import KINDS, error_kinds
from tests.evaluation.error_scenes import (
    CAT,
    CAT_AND_DOG,
    CAT_FOUND,
    DOG,
    DOG_FOUND,
    OWL,
    at,
    evaluated,
    only,
)


class TestOneKind:
    def test_perfect_results_have_no_errors(self) -> None:
        errors = error_kinds(evaluated(CAT_AND_DOG, [CAT_FOUND, DOG_FOUND]))
        assert errors.ap == pytest.approx(1.0)
        assert errors.counts == only()
        assert errors.costs == dict.fromkeys(KINDS, 0.0)
        assert errors.false_positive_cost == errors.missed_cost == 0.0
        assert len(errors.rows) == len(errors.kinds) == len(errors.partners) == 0
        assert len(errors.missed_objects) == 0

    def test_localisation(self) -> None:
        """The first cat is found at rank 2 of 2: 51 of 101 recalls have precision 1/2."""
        objects = [(0, CAT, at(0), False), (0, CAT, at(1), False)]
        found = [CAT_FOUND, (0, CAT, at(1, 0.3), 0.9)]
        errors = error_kinds(evaluated(objects, found))
        assert errors.ap == pytest.approx(51 / 101 / 2)
        assert errors.counts == only(localisation=1)  # the second cat is not missed as well
        assert errors.partners.tolist() == [1]
        assert errors.rows.tolist() == [1]
        assert errors.costs["localisation"] == pytest.approx(1 - 51 / 202)
        assert errors.costs["missed"] == 0
        assert errors.false_positive_cost == pytest.approx(51 / 101 - 51 / 202)
        assert errors.missed_cost == pytest.approx(0.5 - 51 / 202)

    def test_localisation_of_a_found_object_is_removed(self) -> None:
        errors = error_kinds(
            evaluated(CAT_AND_DOG, [CAT_FOUND, DOG_FOUND, (0, CAT, at(0, 0.3), 0.9)])
        )
        assert errors.ap == pytest.approx(0.75)
        assert errors.counts == only(localisation=1)
        assert errors.partners.tolist() == [0]
        assert errors.costs["localisation"] == pytest.approx(0.25)
        assert errors.false_positive_cost == pytest.approx(0.25)

    def test_of_several_about_one_object_the_best_scored_stays(self) -> None:
        """Mended: right at 0.9, then right at 0.5, where the one at 0.7 is gone."""
        objects = [(0, CAT, at(0), False), (0, CAT, at(1), False)]
        found = [CAT_FOUND, (0, CAT, at(1, 0.4), 0.7), (0, CAT, at(1, 0.3), 0.9)]
        errors = error_kinds(evaluated(objects, found))
        assert errors.ap == pytest.approx(51 / 101 / 3)
        assert errors.counts == only(localisation=2)
        assert errors.costs["localisation"] == pytest.approx(1 - 51 / 303)

    def test_classification(self) -> None:
        """Cat: a wrong one before the right one, 1/2. Dog: never found, 0."""
        errors = error_kinds(evaluated(CAT_AND_DOG, [CAT_FOUND, (1, CAT, at(0, 0.8), 0.9)]))
        assert errors.ap == pytest.approx(0.25)
        assert errors.counts == only(classification=1)
        assert errors.partners.tolist() == [1]
        assert errors.costs["classification"] == pytest.approx(0.75)
        assert errors.false_positive_cost == pytest.approx(0.25)
        # no dog is left to be found and no detection of one is left: as good as all found
        assert errors.missed_cost == pytest.approx(0.5)

    def test_classification_of_a_found_object_is_removed(self) -> None:
        errors = error_kinds(
            evaluated(CAT_AND_DOG, [CAT_FOUND, DOG_FOUND, (1, CAT, at(0, 0.8), 0.9)])
        )
        assert errors.ap == pytest.approx(0.75)
        assert errors.counts == only(classification=1)
        assert errors.costs["classification"] == pytest.approx(0.25)

    def test_the_best_scored_may_be_of_any_class(self) -> None:
        """Dogs: right at 0.9 in place of the owl, then wrong at 0.5; the cat at 0.3 is gone."""
        found = [
            CAT_FOUND,
            (1, CAT, at(0), 0.3),
            (1, OWL, at(0, 0.8), 0.9),
            (2, DOG, at(0), 0.5),
        ]
        errors = error_kinds(evaluated(CAT_AND_DOG, found))
        assert errors.ap == pytest.approx(0.5)
        assert errors.counts == only(classification=2, background=1)
        assert errors.costs["classification"] == pytest.approx(0.5)

    def test_a_mended_detection_stands_by_its_score_in_its_new_class(self) -> None:
        """Dogs: wrong 0.9, then right 0.6 in place of the cat, wrong 0.3: half of 1."""
        found = [
            CAT_FOUND,
            (1, CAT, at(0, 0.8), 0.6),
            (0, DOG, at(5), 0.9),
            (0, DOG, at(6), 0.3),
        ]
        errors = error_kinds(evaluated(CAT_AND_DOG, found))
        assert errors.ap == pytest.approx(0.25)
        assert errors.counts == only(classification=1, background=2)
        assert errors.costs["classification"] == pytest.approx((1 + 0.5) / 2 - 0.25)

    def test_both(self) -> None:
        errors = error_kinds(evaluated(CAT_AND_DOG, [CAT_FOUND, (1, CAT, at(0, 0.3), 0.9)]))
        assert errors.ap == pytest.approx(0.25)
        assert errors.counts == only(both=1, missed=1)  # no mended detection finds the dog
        assert errors.partners.tolist() == [1]
        assert errors.missed_objects.tolist() == [1]
        assert errors.costs["both"] == pytest.approx(0.25)
        assert errors.costs["missed"] == errors.missed_cost == pytest.approx(0.5)

    def test_duplicate(self) -> None:
        """Three cats: right, duplicate, right: 34 recalls at 1, 33 at 2/3, 34 at 0."""
        objects = [(0, CAT, at(place), False) for place in range(3)]
        found = [
            (0, CAT, at(0), 0.9),
            (0, CAT, at(0, 0.9), 0.8),
            (0, CAT, at(1), 0.7),
            (0, CAT, at(2), 0.6),
        ]
        errors = error_kinds(evaluated(objects, found))
        # recalls to 1/3: precision 1; the rest: 3/4, which the third right one reaches
        assert errors.ap == pytest.approx((34 + 67 * 0.75) / 101)
        assert errors.counts == only(duplicate=1)
        assert errors.partners.tolist() == [0]
        assert errors.rows.tolist() == [1]
        assert errors.costs["duplicate"] == pytest.approx(1 - errors.ap)

    def test_background(self) -> None:
        found = [CAT_FOUND, DOG_FOUND, (1, DOG, at(3), 0.9), (2, DOG, at(0), 0.1)]
        errors = error_kinds(evaluated(CAT_AND_DOG, found))
        assert errors.ap == pytest.approx(0.75)
        assert errors.counts == only(background=2)
        assert errors.partners.tolist() == [-1, -1]
        assert errors.costs["background"] == pytest.approx(0.25)

    def test_missed(self) -> None:
        objects = [*CAT_AND_DOG, (2, CAT, at(0), False), (3, CAT, at(0), False)]
        errors = error_kinds(evaluated(objects, [CAT_FOUND, DOG_FOUND]))
        assert errors.ap == pytest.approx((34 / 101 + 1) / 2)
        assert errors.counts == only(missed=2)
        assert errors.missed_objects.tolist() == [2, 3]
        assert errors.costs["missed"] == errors.missed_cost == pytest.approx(1 - errors.ap)

    def test_a_class_never_found_costs_what_is_missing(self) -> None:
        errors = error_kinds(evaluated(CAT_AND_DOG, [CAT_FOUND]))
        assert errors.costs["missed"] == pytest.approx(0.5)
        wrong_too = error_kinds(evaluated(CAT_AND_DOG, [CAT_FOUND, (0, DOG, at(3), 0.1)]))
        assert wrong_too.costs["missed"] == pytest.approx(0.0)
        assert wrong_too.costs["background"] == pytest.approx(0.0)
