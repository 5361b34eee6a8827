"""Non-maximum suppression: against its definition in a loop, and against torchvision's."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.inference import overlaps
from detr_kit.inference.overlaps import overlapping, paired_ious, suppress

FIXED = settings(derandomize=True, deadline=None, max_examples=200)


def detections(boxes_xyxy: object, scores: object, category_ids: object) -> Detections:
    ids = np.asarray(category_ids, dtype=np.int64)
    return Detections(
        np.asarray(boxes_xyxy), np.asarray(scores), ids, [f"name {id_}" for id_ in ids]
    )


@st.composite
def drawn(draw: st.DrawFn) -> Detections:
    """Boxes on a coarse grid, so that many touch, coincide or have no area; few scores, so ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, side = draw(st.integers(0, 250)), draw(st.sampled_from([6, 20, 60]))
    corners = rng.integers(0, side, (count, 2, 2))
    boxes_xyxy = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    levels = draw(st.sampled_from([3, 1000]))
    return detections(
        boxes_xyxy, rng.integers(0, levels, count) / levels, rng.integers(0, 3, count)
    )


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union)


def kept_by_a_loop(found: Detections, iou_threshold: float) -> list[int]:
    boxes = found.boxes_xyxy.astype(np.float64)
    kept: list[int] = []
    for row in sorted(range(len(found)), key=lambda row: -found.scores[row]):
        rivals = [one for one in kept if found.category_ids[one] == found.category_ids[row]]
        if all(iou(boxes[one], boxes[row]) <= iou_threshold for one in rivals):
            kept.append(row)
    return kept


@FIXED
@given(drawn(), st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 0.75, 1.0]))
def test_it_is_the_loop(found: Detections, iou_threshold: float) -> None:
    expected = found.select(kept_by_a_loop(found, iou_threshold))
    kept = suppress(found, iou_threshold)
    np.testing.assert_array_equal(kept.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(kept.scores, expected.scores)
    np.testing.assert_array_equal(kept.category_ids, expected.category_ids)
    assert kept.names == expected.names


@FIXED
@given(drawn(), st.sampled_from([0.2, 1 / 3, 0.5, 0.75]))
def test_torchvision_keeps_the_same(found: Detections, iou_threshold: float) -> None:
    rows = batched_nms(
        torch.from_numpy(found.boxes_xyxy).double(),
        torch.from_numpy(found.scores).double(),
        torch.from_numpy(found.category_ids),
        iou_threshold,
    )
    kept, expected = suppress(found, iou_threshold), found.select(rows.numpy())
    np.testing.assert_array_equal(kept.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(kept.scores, expected.scores)


def test_a_suppressed_box_suppresses_nothing() -> None:
    chain = detections([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], [0.9, 0.8, 0.7], [1, 1, 1])
    assert suppress(chain, 0.4).scores.tolist() == pytest.approx([0.9, 0.7])


def test_classes_do_not_touch_each_other() -> None:
    same_place = detections([[0, 0, 10, 10]] * 3, [0.7, 0.8, 0.9], [1, 2, 1])
    assert suppress(same_place, 0.5).category_ids.tolist() == [1, 2]


def test_ten_thousand_boxes_of_one_class_take_little_memory() -> None:
    rng = np.random.default_rng(0)
    half = np.exp(rng.uniform(0, 7, (10_000, 2)))  # all around one point: all pairs overlap
    found = detections(np.concatenate([-half, half], axis=1), rng.random(10_000), np.ones(10_000))
    tracemalloc.start()
    suppress(found, 0.7)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6  # all pairs would be 800 MB


@pytest.mark.parametrize("iou_threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_iou(iou_threshold: float) -> None:
    with pytest.raises(DetrKitError, match="iou_threshold: expected a number from 0 to 1"):
        suppress(detections(np.zeros((0, 4)), [], []), iou_threshold)


@settings(FIXED, max_examples=50)
@given(drawn(), drawn())
def test_pairs_that_share_area(one: Detections, other: Detections) -> None:
    a, b = one.boxes_xyxy[:60], other.boxes_xyxy[:60]
    ious = np.array([[iou(left, right) for right in b] for left in a]).reshape(len(a), len(b))
    rows, columns = overlapping(a, b)
    np.testing.assert_array_equal(np.stack([rows, columns]), np.stack(np.nonzero(ious)))
    np.testing.assert_allclose(paired_ious(a[rows], b[columns]), ious[rows, columns], rtol=1e-6)


def test_pairs_are_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 10, (40, 2))
    boxes = np.concatenate([corners, corners + 3], axis=1)
    at_once = overlapping(boxes, boxes)
    monkeypatch.setattr(overlaps, "_PAIRS", 100)
    np.testing.assert_array_equal(overlapping(boxes, boxes), at_once)
