from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detr_kit.detections import Detections, category_color
from detr_kit.errors import DetrKitError


def some_detections() -> Detections:
    return Detections(
        np.array([[1, 2, 11, 22], [0, 0, 5, 5], [3, 4, 8, 6]]),
        np.array([0.9, 0.5, 0.1]),
        np.array([7, 3, 7]),
        ["cat", "dog", "cat"],
    )


def no_detections() -> Detections:
    return Detections([], [], [], [])  # type: ignore[arg-type]


def test_arrays_get_the_promised_types() -> None:
    found = Detections([[0, 0, 1, 1]], [1], [2**40], ["a"])  # type: ignore[arg-type]
    assert found.boxes_xyxy.dtype == np.float32
    assert found.scores.dtype == np.float32
    assert found.category_ids.dtype == np.int64
    assert found.category_ids.tolist() == [2**40]


def test_empty() -> None:
    found = no_detections()
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.to_coco(1) == []
    assert len(found.above(0.5)) == 0
    assert found.draw(np.zeros((4, 5, 3), np.uint8)).size == (5, 4)


@pytest.mark.parametrize(
    ("boxes", "scores", "ids", "names", "message"),
    [
        ([[0, 0, 1, 1]], [1, 1], [1], ["a"], "expected boxes"),
        ([[0, 0, 1, 1]], [1], [1], [], "expected boxes"),
        ([[0, 0, 1]], [1], [1], ["a"], "expected boxes"),
        ([[0, 0, 1, 1]], [[1]], [1], ["a"], "expected boxes"),
        ([[0, 0, np.nan, 1]], [1], [1], ["a"], "not finite"),
        ([[0, 0, 1, 1]], [np.inf], [1], ["a"], "not finite"),
        ([[0, 0, 1, 1], [5, 0, 4, 1]], [1, 1], [1, 1], ["a", "a"], "box 1 is"),
    ],
)
def test_wrong_input_is_refused(boxes, scores, ids, names, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DetrKitError, match=message):
        Detections(boxes, scores, ids, names)


def test_above_keeps_the_threshold_itself() -> None:
    kept = some_detections().above(0.5)
    assert kept.names == ["cat", "dog"]
    assert kept.boxes_xyxy.tolist() == [[1, 2, 11, 22], [0, 0, 5, 5]]
    assert kept.category_ids.tolist() == [7, 3]


def test_select_by_index_and_by_mask() -> None:
    found = some_detections()
    assert found.select([2, 0]).scores.tolist() == pytest.approx([0.1, 0.9])
    assert found.select(np.array([False, True, False])).names == ["dog"]
    assert len(found.select([])) == 0


def test_coco_rows_survive_json() -> None:
    rows = json.loads(json.dumps(some_detections().to_coco(139)))
    assert rows[0] == {
        "image_id": 139,
        "category_id": 7,
        "bbox": [1, 2, 10, 20],
        "score": pytest.approx(0.9),
    }
    assert [row["category_id"] for row in rows] == [7, 3, 7]


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=2),
    st.lists(st.floats(0, 1e4, width=32), min_size=2, max_size=2),
)
def test_coco_rows_give_back_the_corners(low: list[float], side: list[float]) -> None:
    corners = np.array([[*low, *np.add(low, side)]], np.float32)
    x, y, width, height = Detections(corners, [1], [1], ["a"]).to_coco(1)[0]["bbox"]  # type: ignore[arg-type]
    assert [x, y, x + width, y + height] == corners[0].tolist()


def test_drawing_is_of_the_picture_and_leaves_the_input_alone(tmp_path: Path) -> None:
    array = np.full((120, 160, 3), 90, np.uint8)
    Image.fromarray(array).save(tmp_path / "gray.png")
    found = Detections([[20, 50, 100, 110]], [0.8], [3], ["dog"])  # type: ignore[arg-type]
    drawn = [
        np.asarray(found.draw(source))
        for source in (array, Image.fromarray(array), tmp_path / "gray.png")
    ]
    assert (array == 90).all()
    assert drawn[0].shape == array.shape
    assert all((other == drawn[0]).all() for other in drawn[1:])
    assert tuple(drawn[0][80, 100]) == category_color(3)  # the right edge
    assert (drawn[0][60:105, 30:95] == 90).all()  # nothing inside
    assert (drawn[0][38:50, 20:60] != 90).any()  # the label above


def test_the_best_score_is_drawn_on_top() -> None:
    found = Detections(
        [[5, 30, 60, 60], [5, 30, 60, 60]],
        [0.9, 0.2],
        [1, 2],
        ["", ""],  # type: ignore[arg-type]
    )
    drawn = found.draw(np.zeros((64, 64, 3), np.uint8))
    assert drawn.getpixel((60, 50)) == category_color(1)


@pytest.mark.parametrize("size_wh", [(1, 1), (7, 300), (640, 480)])
def test_any_size_and_boxes_outside_can_be_drawn(size_wh: tuple[int, int]) -> None:
    found = Detections(
        [[-50, -50, 9999, 9999], [5000, 5000, 6000, 6000]],  # type: ignore[arg-type]
        [0.9, 0.2],  # type: ignore[arg-type]
        [1, 90],  # type: ignore[arg-type]
        ["naïve name", "a very long name that is wider than the picture"],
    )
    assert found.draw(Image.new("L", size_wh)).size == size_wh


def test_neighbouring_ids_have_different_colors() -> None:
    assert len({category_color(id_) for id_ in range(91)}) == 91


def test_detections_need_no_torch() -> None:
    code = "import sys, detr_kit.detections, detr_kit.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
