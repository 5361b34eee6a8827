"""Figures by size, by shape and by the number of objects in the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.categories import CategoryTable
from detr_kit.data.coco_file import PackedText
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.breakdowns import (
    Breakdown,
    breakdowns,
    by_aspect_ratio,
    by_crowding,
    by_size,
)
from detr_kit.evaluation.found import FoundObjects
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import ScoringOptions
from tests.evaluation.placed_objects import evaluation_of_found

FIXED = settings(derandomize=True, deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)
SQUARE, WIDE, VERY_WIDE = [0, 0, 20, 20], [0, 0, 50, 20], [0, 0, 100, 20]


def truth_of(
    image_rows: list[int], columns: list[int], boxes_xywh: list[list[float]], num_images: int
) -> GroundTruth:
    """Two classes, no crowds, the area that of the box."""
    boxes = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    return GroundTruth(
        path=Path("val.json"),
        categories=CategoryTable((1, 2), ("cat", "dog")),
        image_ids=np.arange(num_images),
        file_names=PackedText.pack([b""] * num_images),
        sizes_hw=np.zeros((num_images, 2), np.int32),
        image_rows=np.array(image_rows, dtype=np.int32),
        class_columns=np.array(columns, dtype=np.int32),
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        is_crowd=np.zeros(len(boxes), dtype=np.bool_),
        annotation_ids=np.arange(len(boxes)),
    )


def found_of(
    image_rows: list[int],
    columns: list[int],
    boxes_xywh: list[list[float]],
    scores: list[float] | None = None,
) -> FoundObjects:
    """Without scores, each detection is scored below the one before it."""
    falling = np.linspace(0.9, 0.1, len(image_rows))
    return FoundObjects(
        "results",
        np.array(image_rows, dtype=np.int32),
        np.array(columns, dtype=np.int32),
        np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4),
        falling if scores is None else np.array(scores, dtype=np.float64),
    )


def random_scene(seed: int, num_images: int = 8) -> tuple[GroundTruth, FoundObjects]:
    """Crowds, all sizes and shapes, pictures with 0 to 20 objects, ties of scores."""
    rng = np.random.default_rng(seed)
    counts = rng.choice([0, 1, 3, 6, 12, 20], num_images)
    image_rows = np.arange(num_images).repeat(counts)
    sides = rng.choice([10, 30, 32, 60, 96, 150, 250], counts.sum())[:, None]
    stretch = rng.choice([0.4, 0.6, 1, 1.5, 2], counts.sum())[:, None]
    boxes = np.hstack([rng.uniform(0, 300, (len(sides), 2)), sides * stretch, sides / stretch])
    truth = truth_of(
        image_rows.tolist(), rng.integers(0, 2, len(boxes)).tolist(), boxes.tolist(), num_images
    )
    truth = replace(
        truth,
        is_crowd=rng.random(len(boxes)) < 0.15,
        areas=truth.areas * rng.choice([0.6, 1.0], len(boxes)),
    )
    hits = rng.integers(0, max(len(boxes), 1), 2 * len(boxes))
    shaken = boxes[hits] + rng.normal(0, 0.06, (len(hits), 4)) * sides[hits]
    shaken[:, 2:] = np.abs(shaken[:, 2:])
    strays = rng.random(len(hits)) < 0.2
    rows = np.where(strays, rng.integers(0, num_images, len(hits)), truth.image_rows[hits])
    columns = np.where(rng.random(len(hits)) < 0.1, 0, truth.class_columns[hits])
    found = found_of(
        rows.tolist(), columns.tolist(), shaken.tolist(), rng.random(len(hits)).round(1).tolist()
    )
    return truth, found


def pictures_alone(
    truth: GroundTruth, found: FoundObjects, kept: np.ndarray
) -> tuple[GroundTruth, FoundObjects]:
    """The data set of some of the pictures, `kept` (I,) bool."""
    new_rows = np.cumsum(kept).astype(np.int32) - 1
    objects, detections = kept[truth.image_rows], kept[found.image_rows]
    subset = replace(
        truth,
        image_ids=truth.image_ids[kept],
        file_names=PackedText.pack([b""] * int(kept.sum())),
        sizes_hw=truth.sizes_hw[kept],
        image_rows=new_rows[truth.image_rows[objects]],
        class_columns=truth.class_columns[objects],
        boxes_xywh=truth.boxes_xywh[objects],
        areas=truth.areas[objects],
        is_crowd=truth.is_crowd[objects],
        annotation_ids=truth.annotation_ids[objects],
    )
    return subset, FoundObjects(
        found.name,
        new_rows[found.image_rows[detections]],
        found.class_columns[detections],
        found.boxes_xywh[detections],
        found.scores[detections],
    )


class TestSize:
    @FIXED
    @given(SEEDS)
    def test_bounds_of_coco_give_its_figures(self, seed: int) -> None:
        evaluation = evaluation_of_found(*random_scene(seed))
        sizes = by_size(evaluation, sides=(32, 96))
        metrics = evaluation.metrics
        assert sizes.ap == (metrics.ap_small, metrics.ap_medium, metrics.ap_large)
        assert sizes.names == ("below 32 px", "32 to 96 px", "above 96 px")

    @FIXED
    @given(SEEDS)
    def test_other_bounds_and_options_give_what_ranges_of_area_give(self, seed: int) -> None:
        scene = random_scene(seed)
        options = ScoringOptions((0.3, 0.6), {"tiny": (0, 400), "rest": (400, 1e10)}, (5,))
        evaluation = evaluation_of_found(*scene, options)
        sizes = by_size(evaluation, 0.6, sides=(20,))
        others = evaluation.metrics.others
        assert sizes.ap == (others["ap_tiny"], others["ap_rest"])
        at_iou = evaluation_of_found(*scene, replace(options, iou_thresholds=(0.6,))).metrics.others
        assert sizes.ap_at_iou == (at_iou["ap_tiny"], at_iou["ap_rest"])

    def test_an_area_that_is_a_bound_is_on_both_sides(self) -> None:
        truth = truth_of([0, 0], [0, 0], [[0, 0, 32, 32], [100, 0, 15, 15]], 1)
        sizes = by_size(evaluation_of_found(truth, found_of([0], [0], [[0, 0, 32, 32]])))
        assert sizes.num_objects.tolist() == [1, 1, 1, 0, 0, 0]
        assert sizes.recall == (0, 1, 1, None, None, None)
        assert sizes.ap == (0, pytest.approx(1), pytest.approx(1), None, None, None)

    def test_a_detection_of_that_area_is_wrong_on_both_sides(self) -> None:
        boxes = [[0.0, 0, 20, 20], [100, 0, 40, 40]]
        wrong_first = found_of([0, 0, 0], [0, 0, 0], [[300, 0, 32, 32], *boxes])
        sizes = by_size(evaluation_of_found(truth_of([0, 0], [0, 0], boxes, 1), wrong_first))
        assert sizes.ap[1:3] == (pytest.approx(0.5), pytest.approx(0.5))

    def test_sides_must_rise(self) -> None:
        evaluation = evaluation_of_found(*random_scene(0))
        for sides in ((), (0, 10), (32, 32), (96, 32)):
            with pytest.raises(DetrKitError, match="sides must rise from above 0"):
                by_size(evaluation, sides=sides)


class TestCrowding:
    @FIXED
    @given(SEEDS, st.booleans())
    def test_each_part_equals_its_pictures_alone(self, seed: int, class_agnostic: bool) -> None:
        options = ScoringOptions(class_agnostic=class_agnostic)
        truth, found = random_scene(seed)
        crowding = by_crowding(evaluation_of_found(truth, found, options))
        counts = np.bincount(truth.image_rows[~truth.is_crowd], minlength=truth.num_images)
        bounds = [1, 2, 5, 10, 20, 10**9]
        for part in range(5):
            kept = (counts >= bounds[part]) & (counts < bounds[part + 1])
            alone = evaluation_of_found(*pictures_alone(truth, found, kept), options)
            assert crowding.ap[part] == alone.metrics.ap
            assert crowding.ap_at_iou[part] == alone.metrics.ap50
            matches = alone.table.at(0)
            num_objects = int(matches.num_objects.sum())
            assert crowding.num_objects[part] == num_objects
            recall = int(matches.is_true.sum()) / num_objects if num_objects else None
            assert crowding.recall[part] == recall
        assert crowding.num_objects.sum() == (~truth.is_crowd).sum()

    def test_pictures_without_objects_are_in_no_part(self) -> None:
        truth = truth_of([0], [0], [SQUARE], 2)
        wrong_first = found_of([1, 0], [0, 0], [SQUARE, SQUARE])
        evaluation = evaluation_of_found(truth, wrong_first)
        assert evaluation.metrics.ap50 == pytest.approx(0.5)
        assert by_crowding(evaluation).ap_at_iou == (pytest.approx(1), *[None] * 4)


class TestAspectRatio:
    @FIXED
    @given(SEEDS)
    def test_turning_all_boxes_mirrors_the_parts(self, seed: int) -> None:
        truth, found = random_scene(seed)
        turn = [1, 0, 3, 2]
        turned = by_aspect_ratio(
            evaluation_of_found(
                replace(truth, boxes_xywh=truth.boxes_xywh[:, turn]),
                replace(found, boxes_xywh=found.boxes_xywh[:, turn]),
            )
        )
        upright = by_aspect_ratio(evaluation_of_found(truth, found))
        assert turned.num_objects.tolist() == upright.num_objects[::-1].tolist()
        for ours, theirs in (
            (turned.ap, upright.ap),
            (turned.ap_at_iou, upright.ap_at_iou),
            (turned.recall, upright.recall),
        ):
            assert ours == theirs[::-1]

    @pytest.mark.parametrize(
        ("width", "height", "part"),
        [
            (10, 31, 0),
            (10, 30, 1),
            (10, 21, 1),
            (10, 20, 2),
            (10, 10, 2),
            (20, 10, 2),
            (21, 10, 3),
            (30, 10, 3),
            (31, 10, 4),
            (10, 0, 4),
            (0, 10, 0),
            (0, 0, 2),
        ],
    )
    def test_bounds_belong_to_the_part_nearer_to_the_square(
        self, width: int, height: int, part: int
    ) -> None:
        truth = truth_of([0], [0], [[0, 0, width, height]], 1)
        ratios = by_aspect_ratio(evaluation_of_found(truth, found_of([0], [0], [SQUARE])))
        assert ratios.num_objects.tolist() == [int(place == part) for place in range(5)]

    def test_what_finds_nothing_counts_by_its_own_shape(self) -> None:
        truth = truth_of([0, 1], [0, 0], [SQUARE, WIDE], 3)
        # a wide one where there is nothing, then both objects
        found = found_of([2, 0, 1], [0, 0, 0], [WIDE, SQUARE, WIDE])
        ratios = by_aspect_ratio(evaluation_of_found(truth, found))
        assert ratios.ap_at_iou[2] == pytest.approx(1)
        assert ratios.ap_at_iou[3] == pytest.approx(0.5)

    def test_what_finds_an_object_of_another_shape_counts_nowhere_else(self) -> None:
        # the very wide one covers half of the wide object, which is not of its part
        truth = truth_of([0, 1], [0, 0], [WIDE, VERY_WIDE], 2)
        found = found_of([0, 1], [0, 0], [VERY_WIDE, VERY_WIDE])
        ratios = by_aspect_ratio(evaluation_of_found(truth, found))
        assert ratios.ap_at_iou[3:] == (pytest.approx(1), pytest.approx(1))
        assert ratios.recall[3:] == (1, 1)
        stricter = by_aspect_ratio(evaluation_of_found(truth, found), 0.75)
        assert stricter.recall[3:] == (0, 1)
        assert stricter.ap_at_iou[3:] == (0, pytest.approx(0.5))


def empty(breakdown: Breakdown) -> bool:
    nothing = (None,) * len(breakdown.names)
    figures = (breakdown.ap, breakdown.ap_at_iou, breakdown.recall)
    return not breakdown.num_objects.any() and all(values == nothing for values in figures)


class TestAllThree:
    def test_order_and_shapes(self) -> None:
        parts = breakdowns(evaluation_of_found(*random_scene(1)))
        assert [part.title for part in parts] == [
            "Size",
            "Objects in the picture",
            "Width to height",
        ]
        assert [len(part.names) for part in parts] == [6, 5, 5]
        for part in parts:
            assert len(set(part.names)) == len(part.names)
            assert len(part.num_objects) == len(part.names)
            assert len(part.ap) == len(part.ap_at_iou) == len(part.recall) == len(part.names)
            assert part.note

    @FIXED
    @given(SEEDS)
    def test_equal_scores_and_one_class(self, seed: int) -> None:
        truth, found = random_scene(seed)
        truth = replace(
            truth,
            categories=CategoryTable((1,), ("cat",)),
            class_columns=np.zeros_like(truth.class_columns),
        )
        found = replace(
            found,
            class_columns=np.zeros_like(found.class_columns),
            scores=np.full(len(found), 7.5),
        )
        for part in breakdowns(evaluation_of_found(truth, found)):
            for total, ap, recall in zip(part.num_objects, part.ap, part.recall, strict=True):
                assert (total == 0) == (ap is None) == (recall is None)
                assert total == 0 or 0 <= recall <= 1

    @pytest.mark.parametrize("num_images", [0, 1])
    def test_no_objects(self, num_images: int) -> None:
        rows = [0] * num_images
        found = found_of(rows, rows, [SQUARE] * num_images)
        for part in breakdowns(evaluation_of_found(truth_of([], [], [], num_images), found)):
            assert empty(part)

    def test_crowd_regions_only(self) -> None:
        truth = replace(truth_of([0], [0], [SQUARE], 1), is_crowd=np.array([True]))
        for part in breakdowns(evaluation_of_found(truth, found_of([0], [0], [SQUARE]))):
            assert empty(part)

    def test_no_detections(self) -> None:
        truth = truth_of([0], [0], [SQUARE], 1)
        for part in breakdowns(evaluation_of_found(truth, found_of([], [], []))):
            assert part.num_objects.sum() == 1
            for values in (part.ap, part.ap_at_iou, part.recall):
                assert [value for value in values if value is not None] == [0]

    def test_iou_must_be_one_of_the_evaluation(self) -> None:
        evaluation = evaluation_of_found(*random_scene(0), ScoringOptions(iou_thresholds=(0.3,)))
        assert [part.ap for part in breakdowns(evaluation, 0.3)] == [
            part.ap_at_iou for part in breakdowns(evaluation, 0.3)
        ]
        with pytest.raises(DetrKitError, match=r"IoU 0\.5 is not among"):
            breakdowns(evaluation)
