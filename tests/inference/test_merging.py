"""How detections of overlapping views become one list: each rule by a case of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_kit.detections import Detections
from detr_kit.inference.merging import merge_views

FIXED = settings(derandomize=True, deadline=None, max_examples=150)
SIZE_HW = (100, 180)
LEFT, RIGHT, WHOLE = (0, 0, 100, 100), (80, 0, 180, 100), (0, 0, 180, 100)

Row = tuple[tuple[float, float, float, float], float, int]  # box, score, category


def detections(*rows: Row) -> Detections:
    boxes, scores, ids = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        np.array(boxes), np.array(scores), np.array(ids, dtype=np.int64), [f"n{id_}" for id_ in ids]
    )


def merged(**views: list[Row]) -> list[Row]:
    """Merge what the views `left`, `right`, `whole` and `again` (the left one once more) found."""
    windows = {"left": LEFT, "right": RIGHT, "whole": WHOLE, "again": LEFT}
    found = [detections(*rows) for rows in views.values()]
    one = merge_views(found, np.array([windows[name] for name in views]), SIZE_HW)
    assert one.names == [f"n{id_}" for id_ in one.category_ids]
    return [
        (tuple(box), round(score, 4), id_)
        for box, score, id_ in zip(
            one.boxes_xyxy.tolist(), one.scores.tolist(), one.category_ids.tolist(), strict=True
        )
    ]


class TestOneObject:
    def test_a_cut_box_loses_though_it_is_surer(self) -> None:
        whole, cut = (60, 20, 98, 60), (80, 20, 98, 60)
        assert merged(left=[(whole, 0.6, 1)], right=[(cut, 0.9, 1)]) == [(whole, 0.9, 1)]

    def test_parts_that_no_view_holds_become_one_box(self) -> None:
        halves = {"left": [((20, 20, 100, 60), 0.7, 1)], "right": [((80, 20, 160, 60), 0.9, 1)]}
        assert merged(**halves) == [((20, 20, 160, 60), 0.9, 1)]
        not_quite = {"left": [((20, 20, 96, 60), 0.7, 1)], "right": [((84, 20, 160, 60), 0.9, 1)]}
        assert merged(**not_quite) == [((20, 20, 160, 60), 0.9, 1)]

    def test_a_tile_that_sees_nearly_all_needs_no_parts(self) -> None:
        nearly = (60, 20, 100, 60)
        found = merged(left=[(nearly, 0.7, 1)], right=[((80, 20, 101, 60), 0.9, 1)])
        assert found == [(nearly, 0.9, 1)]

    def test_the_full_view_gives_what_no_tile_holds(self) -> None:
        box = (21, 22, 162, 63)
        found = merged(
            left=[((20, 20, 100, 60), 0.9, 1)],
            right=[((80, 20, 160, 60), 0.9, 1)],
            whole=[(box, 0.6, 1)],
        )
        assert found == [(box, 0.9, 1)]

    def test_else_a_tile_shows_more(self) -> None:
        exact, coarse = (20, 20, 60, 60), (18, 23, 58, 63)
        assert merged(left=[(exact, 0.6, 1)], whole=[(coarse, 0.9, 1)]) == [(exact, 0.9, 1)]

    def test_a_full_view_that_is_far_off_is_no_second_object(self) -> None:
        exact, coarse = (20, 20, 40, 40), (28, 24, 46, 44)  # IoU 0.32
        assert merged(left=[(exact, 0.8, 1)], whole=[(coarse, 0.7, 1)]) == [(exact, 0.8, 1)]

    def test_the_tip_of_a_star_is_no_second_object(self) -> None:
        star, tip = (50, 20, 96, 60), (80, 36, 96, 45)  # where both look, the IoU is 0.22
        assert merged(left=[(star, 0.8, 1)], right=[(tip, 0.9, 1)]) == [(star, 0.9, 1)]

    def test_a_part_that_looks_like_another_class_goes(self) -> None:
        bus, car = (40, 20, 98, 60), (80, 22, 98, 60)
        assert merged(left=[(bus, 0.6, 1)], right=[(car, 0.9, 2)]) == [(bus, 0.6, 1)]


class TestTwoObjects:
    def test_of_one_view_are_never_merged(self) -> None:
        box = (82, 20, 98, 60)
        found = merged(left=[(box, 0.9, 1), (box, 0.8, 1)], right=[(box, 0.7, 1)])
        assert found == [(box, 0.9, 1), (box, 0.8, 1)]

    def test_that_overlap_both_survive(self) -> None:
        """Neighbours with an IoU of 0.54, of which the right view sees one whole."""
        one, other = (70, 20, 90, 60), (76, 20, 96, 60)
        found = merged(
            left=[(one, 0.9, 1), (other, 0.8, 1)],
            right=[((80, 20, 90, 60), 0.95, 1), ((80, 20, 96, 60), 0.7, 1)],
        )
        assert found == [(one, 0.95, 1), (other, 0.8, 1)]

    def test_of_which_one_ends_before_the_border_are_no_halves(self) -> None:
        one, other = (70, 20, 90, 60), (80, 20, 120, 60)
        assert len(merged(left=[(one, 0.9, 1)], right=[(other, 0.8, 1)])) == 2

    def test_small_within_large(self) -> None:
        """The small one is at a border that cuts the large one, but fills little of its view."""
        large, small = (2, 2, 178, 98), (80, 40, 100, 60)
        found = merged(left=[], right=[(small, 0.8, 1)], whole=[(large, 0.9, 1)])
        assert found == [(large, 0.9, 1), (small, 0.8, 1)]

    def test_what_another_view_holds_is_no_remains(self) -> None:
        large, small = (10, 2, 112, 98), (70, 10, 90, 90)
        found = merged(
            left=[(small, 0.7, 1)],
            right=[((80, 10, 90, 90), 0.8, 1)],
            whole=[(large, 0.9, 1)],
        )
        assert found == [(large, 0.9, 1), (small, 0.8, 1)]

    def test_of_two_classes_do_not_compete(self) -> None:
        rider, horse = (84, 10, 96, 60), (82, 30, 98, 90)
        found = merged(left=[(rider, 0.9, 1)], right=[(horse, 0.8, 2)])
        assert found == [(rider, 0.9, 1), (horse, 0.8, 2)]

    @pytest.mark.parametrize(
        ("views", "why"),
        [
            ({"left": [((40, 20, 98, 60), 0.4, 1)]}, "the other view is less than half as sure"),
            ({"left": [((40, 20, 98, 60), 0.6, 1), ((80, 22, 98, 60), 0.5, 2)]}, "it sees both"),
            (
                {"left": [((40, 20, 98, 60), 0.6, 1)], "again": [((81, 22, 98, 60), 0.5, 2)]},
                "a third view confirms it",
            ),
        ],
    )
    def test_remains_of_another_class_may_be_real(
        self, views: dict[str, list[Row]], why: str
    ) -> None:
        found = merged(**views, right=[((80, 22, 98, 60), 0.9, 2)])
        assert [id_ for _, _, id_ in found] == [2, 1], why

    def test_halves_of_two_classes_stay(self) -> None:
        """The left view cannot see all of the car, so it may be one."""
        bus, car = (40, 20, 100, 60), (80, 22, 105, 60)
        assert len(merged(left=[(bus, 0.9, 1)], right=[(car, 0.8, 2)])) == 2


class TestForm:
    def test_boxes_end_at_inner_borders_but_not_at_the_picture(self) -> None:
        found = merged(left=[((-3, -2, 50, 104), 0.9, 1), ((70, 20, 105, 60), 0.8, 1)])
        assert found == [((-3, -2, 50, 104), 0.9, 1), ((70, 20, 100, 60), 0.8, 1)]

    def test_nothing_found(self) -> None:
        assert merged(left=[], right=[], whole=[]) == []

    def test_boxes_without_area_stay(self) -> None:
        line = (90, 20, 90, 60)
        found = merged(left=[(line, 0.9, 1)], right=[((85, 20, 95, 60), 0.8, 1), (line, 0.7, 1)])
        assert len(found) == 3


@st.composite
def findings(draw: st.DrawFn) -> list[list[Row]]:
    """Detections of the three views without any sense, most of them around the seam."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found: list[list[Row]] = []
    for view in (LEFT, RIGHT, WHOLE):
        count = draw(st.integers(0, 25))
        corners = rng.normal([90, 50], 20, (count, 2))
        sides = rng.uniform(2, 60, (count, 2))
        boxes = np.concatenate([corners - sides / 2, corners + sides / 2], axis=1)
        boxes = boxes.reshape(-1, 2, 2).clip(view[:2], view[2:]).reshape(-1, 4)
        scores, ids = rng.uniform(0.1, 1, count), rng.integers(1, 3, count)
        found.append(
            [
                (tuple(box), score, id_)
                for box, score, id_ in zip(
                    boxes.tolist(), scores.tolist(), ids.tolist(), strict=True
                )
            ]
        )
    return found


@FIXED
@given(findings(), st.permutations([0, 1, 2]))
def test_whatever_is_found(found: list[list[Row]], order: list[int]) -> None:
    views = np.array([LEFT, RIGHT, WHOLE])
    one = merge_views([detections(*rows) for rows in found], views, SIZE_HW)
    assert len(one) >= max(len(rows) for rows in found)
    assert np.all(np.diff(one.scores) <= 0)
    scores = {np.float32(score) for rows in found for _, score, _ in rows}
    assert set(one.scores.tolist()) <= {float(score) for score in scores}
    # The order of views does not matter.
    again = merge_views([detections(*found[i]) for i in order], views[order], SIZE_HW)
    np.testing.assert_array_equal(one.boxes_xyxy, again.boxes_xyxy)
    np.testing.assert_array_equal(one.scores, again.scores)
