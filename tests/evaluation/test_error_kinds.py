"""Kinds of mistakes and their costs, against scenes known by hand and edited results."""

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
from detr_kit.evaluation import error_kinds as module
from detr_kit.evaluation.coco import Evaluation, evaluation_of
from detr_kit.evaluation.error_kinds import KINDS, ErrorKinds, error_kinds
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import ScoringOptions

Box = tuple[float, float, float, float]
Object = tuple[int, int, Box, bool]  # picture, class, box, crowd
Found = tuple[int, int, Box, float]  # picture, class, box, score

CAT, DOG, OWL = 0, 1, 2
FIXED = settings(derandomize=True, deadline=None, max_examples=60)


def truth_of(objects: Sequence[Object], images: int = 4, classes: int = 3) -> GroundTruth:
    boxes = np.array([box for _, _, box, _ in objects], dtype=np.float64).reshape(-1, 4)
    return GroundTruth(
        path=Path("val.json"),
        categories=CategoryTable(
            tuple(range(1, classes + 1)), tuple(f"class {k}" for k in range(classes))
        ),
        image_ids=np.arange(10, 10 + images),
        file_names=PackedText.pack(b"a.jpg" for _ in range(images)),
        sizes_hw=np.full((images, 2), 600, dtype=np.int32),
        image_rows=np.array([image for image, _, _, _ in objects], dtype=np.int32),
        class_columns=np.array([class_ for _, class_, _, _ in objects], dtype=np.int32),
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        is_crowd=np.array([crowd for _, _, _, crowd in objects], dtype=np.bool_),
        annotation_ids=np.arange(len(objects)),
    )


def evaluated(
    objects: Sequence[Object],
    detections: Sequence[Found],
    options: ScoringOptions | None = None,
    images: int = 4,
    classes: int = 3,
) -> Evaluation:
    columns = ResultColumns(
        "results",
        np.array([10 + image for image, _, _, _ in detections], dtype=np.int64),
        np.array([class_ + 1 for _, class_, _, _ in detections], dtype=np.int64),
        np.array([box for _, _, box, _ in detections], dtype=np.float64).reshape(-1, 4),
        np.array([score for _, _, _, score in detections], dtype=np.float64),
    )
    with warnings.catch_warnings():  # few detections of high score look cut at a score
        warnings.simplefilter("ignore", DetrKitWarning)
        return evaluation_of(columns, truth_of(objects, images, classes), options=options)


def at(place: int, iou: float = 1.0) -> Box:
    """A box with this IoU with `at(place)`, and none with those of other places."""
    return (1000.0 * place, 0.0, 100.0 * iou, 100.0)


def only(**counts: int) -> dict[str, int]:
    return {kind: counts.get(kind, 0) for kind in KINDS}


def kinds_by_row(errors: ErrorKinds) -> dict[int, str]:
    return {row: KINDS[kind] for row, kind in zip(errors.rows.tolist(), errors.kinds, strict=True)}


CAT_AND_DOG = [(0, CAT, at(0), False), (1, DOG, at(0), False)]
CAT_FOUND = (0, CAT, at(0), 0.5)
DOG_FOUND = (1, DOG, at(0), 0.5)


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


def random_scene(seed: int) -> tuple[list[Object], list[Found]]:
    """Crowds, equal scores, and detections near objects, of their class or not, and elsewhere."""
    rng = np.random.default_rng(seed)

    def shaken(box: Box, by: float) -> Box:
        x, y, w, h = (np.array(box) + rng.normal(0, by, 4)).tolist()
        return (x, y, abs(w) + 0.1, abs(h) + 0.1)

    objects: list[Object] = []
    found: list[Found] = []
    for _ in range(int(rng.integers(0, 14))):
        image, class_ = (int(value) for value in rng.integers(0, (3, 3)))
        box = shaken((*rng.uniform(0, 150, 2), 60.0, 60.0), 10)
        objects.append((image, class_, box, bool(rng.random() < 0.15)))
        for _ in range(int(rng.integers(0, 4))):
            other = int(rng.integers(0, 4)) if rng.random() < 0.4 else class_
            score = round(float(rng.random()), 1)
            found.append((image, other, shaken(box, float(rng.choice([3, 15, 30]))), score))
    return objects, found


def iou_of(one: Box, other: Box) -> float:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def one_by_one(
    objects: list[Object], found: list[Found], wrong: list[int], agnostic: bool
) -> dict[int, tuple[str, int]]:
    """The kind and the partner of each wrong detection, in plain Python."""
    answer = {}
    for row in wrong:
        image, class_, box, _ = found[row]
        best: dict[bool, tuple[float, int]] = {True: (0.0, -1), False: (0.0, -1)}
        for place, (own_image, own_class, own_box, crowd) in enumerate(objects):
            same = agnostic or own_class == class_
            if own_image == image and not crowd and iou_of(box, own_box) > best[same][0]:
                best[same] = (iou_of(box, own_box), place)
        (iou, partner), (other_iou, other) = best[True], best[False]
        if 0.1 <= iou < 0.5:
            answer[row] = ("localisation", partner)
        elif other_iou >= 0.5:
            answer[row] = ("classification", other)
        elif iou >= 0.5:
            answer[row] = ("duplicate", partner)
        else:
            answer[row] = ("both", other) if other_iou >= 0.1 else ("background", -1)
    return answer


def mended(
    objects: list[Object],
    found: list[Found],
    about: dict[int, int],
    missed: set[int],
    *,
    reclassify: bool,
) -> list[Found]:
    """Results where the detections of `about` lie on their object, or are gone."""
    best: dict[int, int] = {}
    for row in sorted(about, key=lambda row: -found[row][3]):
        if about[row] in missed:
            best.setdefault(about[row], row)
    edited = []
    for row, (image, class_, box, score) in enumerate(found):
        if row not in about:
            edited.append((image, class_, box, score))
        elif best.get(about[row]) == row:
            _, own_class, own_box, _ = objects[about[row]]
            edited.append((image, own_class if reclassify else class_, own_box, score))
    return edited


def ap_of(objects: list[Object], found: list[Found], options: ScoringOptions) -> float:
    value = evaluated(objects, found, options, classes=4).metrics.ap50
    assert value is not None
    return value


@FIXED
@given(seed=st.integers(0, 2**32 - 1), agnostic=st.booleans())
def test_kinds_and_costs_equal_those_of_edited_results(seed: int, agnostic: bool) -> None:
    objects, found = random_scene(seed)
    options = ScoringOptions(class_agnostic=agnostic)
    evaluation = evaluated(objects, found, options, classes=4)
    errors = error_kinds(evaluation)
    matches = evaluation.table.at(0)
    wrong, missed = matches.rows[matches.is_false].tolist(), set(matches.missed.tolist())
    expected = one_by_one(objects, found, wrong, agnostic)
    assert kinds_by_row(errors) == {row: kind for row, (kind, _) in expected.items()}
    assert dict(zip(errors.rows.tolist(), errors.partners.tolist(), strict=True)) == {
        row: partner for row, (_, partner) in expected.items()
    }
    assert sum(errors.counts.values()) == len(wrong) + len(errors.missed_objects)
    about = {
        kind: {row: partner for row, (own, partner) in expected.items() if own == kind}
        for kind in KINDS
    }
    covered = {*about["localisation"].values(), *about["classification"].values()}
    assert errors.missed_objects.tolist() == sorted(missed - covered)
    if errors.ap is None:
        assert evaluation.metrics.ap50 is None
        return
    base = ap_of(objects, found, options)
    assert errors.ap == pytest.approx(base, abs=1e-12)
    for kind in ("localisation", "classification"):
        moves = kind == "classification"  # equal scores may stand by class, so keep it otherwise
        edited = mended(objects, found, about[kind], missed, reclassify=moves)
        gained = ap_of(objects, edited, options) - base
        assert errors.costs[kind] == pytest.approx(gained, abs=1e-12)
    for kind in ("both", "duplicate", "background"):
        edited = [each for row, each in enumerate(found) if row not in about[kind]]
        gained = ap_of(objects, edited, options) - base
        assert errors.costs[kind] == pytest.approx(gained, abs=1e-12)
    edited = [each for row, each in enumerate(found) if row not in wrong]
    gained = ap_of(objects, edited, options) - base
    assert errors.false_positive_cost == pytest.approx(gained, abs=1e-12)


@FIXED
@given(seed=st.integers(0, 2**32 - 1))
def test_costs_of_missed_objects_equal_those_of_edited_labels(seed: int) -> None:
    objects, found = random_scene(seed)
    evaluation = evaluated(objects, found, classes=4)
    errors = error_kinds(evaluation)
    matches = evaluation.table.at(0)
    counted = matches.classes[~matches.ignored].tolist()
    base = evaluation.metrics.per_class_ap50
    known = [name for name, value in base.items() if value is not None]
    for gone, cost in (
        (errors.missed_objects, errors.costs["missed"]),
        (matches.missed, errors.missed_cost),
    ):
        left = [each for row, each in enumerate(objects) if row not in gone.tolist()]
        edited = evaluated(left, found, classes=4).metrics.per_class_ap50
        # a class of which nothing is left to find has no AP there
        empty = {f"class {k}": 0.0 if k in counted else 1.0 for k in range(4)}
        values = [empty[name] if edited[name] is None else edited[name] for name in known]
        if not known:
            assert cost is None
            continue
        gained = np.mean(values) - np.mean([base[name] for name in known])
        assert cost == pytest.approx(gained, abs=1e-12)


@FIXED
@given(seed=st.integers(0, 2**32 - 1))
def test_no_cost_is_below_0_and_parts_change_nothing(seed: int) -> None:
    evaluation = evaluated(*random_scene(seed), classes=4)
    errors = error_kinds(evaluation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", 3)
        in_parts = error_kinds(evaluation)
    assert in_parts.counts == errors.counts
    np.testing.assert_array_equal(in_parts.kinds, errors.kinds)
    np.testing.assert_array_equal(in_parts.partners, errors.partners)
    for cost in (*errors.costs.values(), errors.false_positive_cost, errors.missed_cost):
        assert cost is None if errors.ap is None else cost >= -1e-12


def test_detections_beyond_the_most_that_count_are_no_errors() -> None:
    found = [CAT_FOUND, DOG_FOUND, *[(0, CAT, at(3), 0.1)] * 5]
    options = ScoringOptions(max_detections=(3,))
    assert error_kinds(evaluated(CAT_AND_DOG, found, options)).counts == only(background=2)
