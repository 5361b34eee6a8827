from __future__ import annotations

import numpy as np
import pytest

from detr_kit.demo.view import Choices, Shown, class_counts, drawn_of, found_in
from detr_kit.detections import Detections
from tests.demo.known_objects import found

SHOWN = Shown("street.png", (20, 40), found((20, 40)), 0.1)


def test_only_what_reaches_the_threshold_is_found() -> None:
    for threshold, count in ((0.0, 4), (0.3, 4), (0.31, 3), (0.9, 1), (1.0, 0)):
        assert len(found_in(SHOWN, Choices(float(np.float32(threshold))))) == count


def test_merging_leaves_the_best_of_overlapping_boxes_of_a_class() -> None:
    kept = found_in(SHOWN, Choices(0.0, merge=True))
    assert kept.category_ids.tolist() == [1, 2, 7]
    assert kept.scores.tolist() == pytest.approx([0.9, 0.6, 0.3])


def test_merging_before_or_after_the_threshold_is_the_same() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (60, 2))
    detections = Detections(
        np.concatenate([corners, corners + rng.uniform(5, 30, (60, 2))], axis=1),
        np.sort(rng.uniform(0, 1, 60))[::-1],
        rng.integers(1, 4, 60),
        ["any"] * 60,
    )
    shown = Shown("any", (100, 100), detections, 0.1)
    for threshold in (0.2, 0.5, 0.8):
        late = found_in(shown, Choices(0.0, merge=True))
        late = late.select(late.scores >= threshold)
        early = found_in(shown, Choices(threshold, merge=True))
        assert np.array_equal(late.boxes_xyxy, early.boxes_xyxy)


def test_hidden_classes_are_found_but_not_drawn() -> None:
    choices = Choices(0.0, hidden=frozenset({1}))
    everything = found_in(SHOWN, choices)
    assert len(everything) == 4
    assert drawn_of(everything, choices).category_ids.tolist() == [2, 7]


def test_classes_are_counted_with_the_most_frequent_first() -> None:
    counts = class_counts(found_in(SHOWN, Choices(0.5)))
    assert [(each.name, each.count, round(each.best, 2)) for each in counts] == [
        ("cat", 2, 0.9),
        ("dog", 1, 0.6),
    ]


def test_classes_of_one_name_are_counted_apart() -> None:
    detections = Detections(
        np.array([[0, 0, 1, 1], [0, 0, 1, 1]]), np.array([0.9, 0.8]), [4, 3], ["bat", "bat"]
    )
    assert [each.category_id for each in class_counts(detections)] == [3, 4]
