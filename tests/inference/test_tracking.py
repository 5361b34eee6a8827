from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.inference.tracking import Tracker


@pytest.fixture(scope="module", autouse=True)
def _norfair() -> None:
    pytest.importorskip("norfair", reason="needs the extra [track]")


def found(*objects: tuple[float, float, int], side: float = 20.0) -> Detections:
    """Squares at (x, y) with a category id."""
    boxes = [(x, y, x + side, y + side) for x, y, _ in objects]
    ids = [category_id for _, _, category_id in objects]
    return Detections(np.array(boxes), np.full(len(boxes), 0.9), np.array(ids), ["a"] * len(ids))


def test_objects_keep_their_ids_whatever_their_order() -> None:
    tracker = Tracker()
    rng = np.random.default_rng(0)
    seen: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for frame in range(40):
        objects = [(10 + 3 * frame, 10, 1), (150 - 3 * frame, 60, 1), (50, 120, 2)]
        order = rng.permutation(3)
        jittered = [
            (x + rng.normal(0, 0.5), y + rng.normal(0, 0.5), category_id)
            for x, y, category_id in (objects[row] for row in order)
        ]
        track_ids = tracker.update(found(*jittered))
        assert track_ids.dtype == np.int64
        if frame == 0:
            assert track_ids.tolist() == [-1, -1, -1]
            continue
        for row, track_id in zip(order.tolist(), track_ids.tolist(), strict=True):
            seen[row].add(track_id)
    assert sorted(seen[row].pop() for row in seen if len(seen[row]) == 1) == [1, 2, 3]
    assert tracker.count == 3


def test_objects_that_cross_keep_their_ids_in_their_categories() -> None:
    tracker = Tracker()
    for frame in range(40):
        track_ids = tracker.update(found((4 * frame, 10, 1), (156 - 4 * frame, 10, 2)))
        if frame == 1:
            first = track_ids.tolist()
    assert sorted(first) == [1, 2]
    assert track_ids.tolist() == first


def test_an_object_that_was_hidden_comes_back_with_its_id() -> None:
    tracker = Tracker(frames_lost=10)
    for frame in range(10):
        before = tracker.update(found((2 * frame, 10, 1)))
    for _ in range(8):
        assert tracker.update(found()).shape == (0,)
    assert tracker.update(found((36, 10, 1))).tolist() == before.tolist() == [1]
    for _ in range(12):
        tracker.update(found())
    assert tracker.update(found((36, 10, 1))).tolist() == [-1]
    assert tracker.update(found((36, 10, 1))).tolist() == [2]


def test_what_is_seen_once_gets_no_id() -> None:
    tracker = Tracker()
    for frame in range(6):
        objects = [(10, 10, 1), (60 + 100 * frame, 200, 1)]
        track_ids = tracker.update(found(*objects))
    assert track_ids.tolist() == [1, -1]
    assert tracker.count == 1


def test_trackers_count_by_themselves() -> None:
    for _ in range(2):
        tracker = Tracker()
        tracker.update(found((0, 0, 1)))
        assert tracker.update(found((0, 0, 1))).tolist() == [1]


def test_boxes_without_area_are_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            track_ids = tracker.update(found((5, 5, 1), side=0.0))
    assert track_ids.tolist() == [-1]
    assert caplog.messages == []


def test_without_norfair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "norfair", None)
    with pytest.raises(DetrKitError, match=r"norfair-enough: pip install 'detr_kit\[track\]'"):
        Tracker()
