"""Which kind of mistake a detection or an object is, in scenes known by hand."""

from __future__ import annotations

import pytest

from detr_kit.errors import DetrKitError
from detr_kit.evaluation.error_kinds import KINDS, error_kinds
from detr_kit.evaluation.options import ScoringOptions
from tests.evaluation.error_scenes import (
    CAT,
    CAT_AND_DOG,
    CAT_FOUND,
    DOG,
    DOG_FOUND,
    OWL,
    at,
    evaluated,
    kinds_by_row,
    only,
)


class TestWhichKind:
    def test_all_kinds_in_one_set(self) -> None:
        objects = [
            *CAT_AND_DOG,
            (0, OWL, at(4), False),  # taken for a cat
            (0, CAT, at(5), False),  # found badly
            (0, OWL, at(6), False),  # overlapped by a cat
            (3, OWL, at(0), False),  # overlooked
        ]
        found = [
            CAT_FOUND,
            DOG_FOUND,
            (0, CAT, at(4, 0.6), 0.9),
            (0, CAT, at(5, 0.2), 0.8),
            (0, CAT, at(6, 0.2), 0.8),
            (0, CAT, at(0, 0.7), 0.4),
            (1, DOG, at(0, 0.6), 0.4),
            (1, DOG, at(8), 0.4),
            (2, DOG, at(0), 0.4),
            (3, OWL, at(0, 0.05), 0.4),
        ]
        errors = error_kinds(evaluated(objects, found))
        assert errors.counts == {
            "classification": 1,
            "localisation": 1,
            "both": 1,
            "duplicate": 2,
            "background": 3,
            "missed": 2,
        }
        assert kinds_by_row(errors) == {
            2: "classification",
            3: "localisation",
            4: "both",
            5: "duplicate",
            6: "duplicate",
            7: "background",
            8: "background",
            9: "background",
        }
        assert dict(zip(errors.rows.tolist(), errors.partners.tolist(), strict=True)) == {
            **{2: 2, 3: 3, 4: 4, 5: 0, 6: 1},
            **{7: -1, 8: -1, 9: -1},
        }
        assert errors.missed_objects.tolist() == [4, 5]

    @pytest.mark.parametrize(
        ("iou", "own", "other"),
        [
            (0.5, "duplicate", "classification"),
            (0.49, "localisation", "both"),
            (0.1, "localisation", "both"),
            (0.09, "background", "background"),
        ],
    )
    def test_thresholds_belong_to_the_kind_above(self, iou: float, own: str, other: str) -> None:
        found = [CAT_FOUND, DOG_FOUND, (0, CAT, at(0, iou), 0.4), (0, DOG, at(0, iou), 0.4)]
        assert kinds_by_row(error_kinds(evaluated(CAT_AND_DOG, found))) == {2: own, 3: other}

    def test_localisation_goes_before_classification(self) -> None:
        objects = [(0, CAT, at(0), False), (0, DOG, (0.0, 0.0, 30.0, 100.0), False)]
        errors = error_kinds(evaluated(objects, [(0, CAT, at(0, 0.4), 0.9)]))
        assert errors.counts == only(localisation=1, missed=1)
        assert errors.missed_objects.tolist() == [1]

    def test_classification_goes_before_duplicate(self) -> None:
        objects = [(0, CAT, at(0), False), (0, DOG, (0.0, 0.0, 90.0, 100.0), False)]
        found = [(0, CAT, at(0), 0.9), (0, CAT, at(0, 0.9), 0.8)]
        errors = error_kinds(evaluated(objects, found))
        assert errors.counts == only(classification=1)
        assert errors.partners.tolist() == [1]

    def test_each_kind_is_mended_by_itself(self) -> None:
        """The dog is found badly at 0.9 and taken for a cat at 0.7; either would find it."""
        found = [CAT_FOUND, (1, DOG, at(0, 0.3), 0.9), (1, CAT, at(0, 0.8), 0.7)]
        errors = error_kinds(evaluated(CAT_AND_DOG, found))
        assert errors.ap == pytest.approx(0.25)
        assert errors.costs["localisation"] == pytest.approx((0.5 + 1) / 2 - 0.25)
        assert errors.costs["classification"] == pytest.approx((1 + 0.5) / 2 - 0.25)

    def test_detections_on_crowds_are_no_errors_and_crowds_are_not_missed(self) -> None:
        objects = [*CAT_AND_DOG, (2, CAT, at(0), True)]
        found = [CAT_FOUND, DOG_FOUND, (2, CAT, at(0, 0.2), 0.9), (2, CAT, at(0), 0.8)]
        assert error_kinds(evaluated(objects, found)).counts == only()

    def test_crowds_of_another_class_are_background(self) -> None:
        objects = [*CAT_AND_DOG, (2, CAT, at(0), True)]
        found = [CAT_FOUND, DOG_FOUND, (2, DOG, at(0), 0.1)]
        assert error_kinds(evaluated(objects, found)).counts == only(background=1)

    def test_classes_do_not_matter_where_they_are_all_one(self) -> None:
        found = [CAT_FOUND, (1, CAT, at(0, 0.8), 0.9), (0, DOG, at(0, 0.8), 0.4)]
        errors = error_kinds(evaluated(CAT_AND_DOG, found, ScoringOptions(class_agnostic=True)))
        assert errors.counts == only(duplicate=1)
        assert errors.ap == pytest.approx(1.0)

    def test_other_thresholds(self) -> None:
        found = [(0, CAT, at(0, 0.7), 0.5), DOG_FOUND, (0, DOG, at(0, 0.3), 0.4)]
        evaluation = evaluated(CAT_AND_DOG, found)
        assert error_kinds(evaluation).counts == only(both=1)
        errors = error_kinds(evaluation, iou=0.75, background_iou=0.4)
        assert errors.counts == only(localisation=1, background=1)
        assert (errors.iou, errors.background_iou) == (0.75, 0.4)

    def test_at_low_thresholds_the_background_begins_lower(self) -> None:
        options = ScoringOptions(iou_thresholds=(0.1, 0.5))
        found = [CAT_FOUND, DOG_FOUND, (0, CAT, at(0, 0.06), 0.5), (0, CAT, at(0, 0.04), 0.4)]
        errors = error_kinds(evaluated(CAT_AND_DOG, found, options), iou=0.1)
        assert errors.background_iou == 0.05
        assert errors.counts == only(localisation=1, background=1)

    def test_a_threshold_of_1(self) -> None:
        options = ScoringOptions(iou_thresholds=(1.0,))
        nearly = (0, CAT, at(0, 1 - 1e-12), 0.4)  # close enough, as in pycocotools
        found = [CAT_FOUND, nearly, DOG_FOUND]
        assert error_kinds(evaluated(CAT_AND_DOG, found, options), iou=1.0).counts == only(
            duplicate=1
        )


class TestDegenerate:
    def test_no_detections(self) -> None:
        errors = error_kinds(evaluated(CAT_AND_DOG, []))
        assert errors.ap == 0
        assert errors.counts == only(missed=2)
        assert errors.costs == dict.fromkeys(KINDS, 0.0) | {"missed": 1.0}
        assert errors.missed_cost == 1

    @pytest.mark.parametrize("crowd", [False, True])
    def test_no_objects(self, crowd: bool) -> None:
        objects = [(0, CAT, at(0), True)] if crowd else []
        errors = error_kinds(evaluated(objects, [(1, CAT, at(0), 0.5), (1, DOG, at(0), 0.4)]))
        assert errors.ap is None
        assert errors.counts == only(background=2)
        assert errors.costs == dict.fromkeys(KINDS)
        assert errors.false_positive_cost is errors.missed_cost is None

    def test_neither_pictures_nor_anything(self) -> None:
        errors = error_kinds(evaluated([], [], images=0))
        assert errors.ap is None
        assert errors.counts == only()

    def test_one_class(self) -> None:
        errors = error_kinds(
            evaluated([(0, 0, at(0), False)], [(0, 0, at(0, 0.3), 0.5)], classes=1)
        )
        assert errors.counts == only(localisation=1)
        assert errors.costs["localisation"] == pytest.approx(1.0)

    def test_detections_of_classes_without_objects(self) -> None:
        errors = error_kinds(evaluated(CAT_AND_DOG, [CAT_FOUND, DOG_FOUND, (0, OWL, at(0), 0.9)]))
        assert errors.counts == only(classification=1)
        assert errors.ap == pytest.approx(1.0)
        assert errors.costs == pytest.approx(dict.fromkeys(KINDS, 0.0))

    def test_scores_need_no_scale(self) -> None:
        found = [CAT_FOUND, DOG_FOUND, (0, CAT, at(1), 0.9), (1, CAT, at(0, 0.8), 0.1)]
        moved = [(image, class_, box, 100 * score - 70) for image, class_, box, score in found]
        errors, others = (error_kinds(evaluated(CAT_AND_DOG, each)) for each in (found, moved))
        assert errors.costs == others.costs
        assert errors.counts == others.counts

    def test_an_iou_that_was_not_evaluated_is_refused(self) -> None:
        options = ScoringOptions(iou_thresholds=(0.3, 0.75))
        evaluation = evaluated(CAT_AND_DOG, [CAT_FOUND], options)
        with pytest.raises(DetrKitError, match=r"IoU 0\.5 is not among .*: 0\.3, 0\.75"):
            error_kinds(evaluation)
        assert error_kinds(evaluation, iou=0.3).counts == only(missed=1)

    @pytest.mark.parametrize("background_iou", [0.0, 0.5, -1.0, float("nan")])
    def test_a_background_that_means_nothing_is_refused(self, background_iou: float) -> None:
        with pytest.raises(DetrKitError, match=r"between 0 and 0\.5"):
            error_kinds(evaluated(CAT_AND_DOG, [CAT_FOUND]), background_iou=background_iou)


def test_detections_beyond_the_most_that_count_are_no_errors() -> None:
    found = [CAT_FOUND, DOG_FOUND, *[(0, CAT, at(3), 0.1)] * 5]
    options = ScoringOptions(max_detections=(3,))
    assert error_kinds(evaluated(CAT_AND_DOG, found, options)).counts == only(background=2)
