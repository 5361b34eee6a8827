from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detr_kit.categories import CategoryTable
from detr_kit.detections import Detections
from detr_kit.drawing import category_color
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


TABLE = CategoryTable((3, 4, 7), ("dog", "unused", "cat"), (True, False, True))


@given(
    st.lists(st.tuples(*[st.integers(-(10**7), 10**7)] * 4), max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_coco_rows_make_the_same_detections_again(
    corners: list[tuple[int, ...]], seed: int
) -> None:
    numbers = np.random.default_rng(seed)
    boxes = np.sort(np.array(corners).reshape(-1, 2, 2) / 1024, axis=1).reshape(-1, 4)
    ids = numbers.choice([3, 7], len(boxes))
    names = [{3: "dog", 7: "cat"}[id_] for id_ in ids.tolist()]
    found = Detections(boxes, numbers.random(len(boxes)), ids, names)
    again = Detections.from_coco(json.loads(json.dumps(found.to_coco(139))), TABLE)
    assert again.boxes_xyxy.tolist() == found.boxes_xyxy.tolist()
    assert again.scores.tolist() == found.scores.tolist()
    assert again.category_ids.tolist() == found.category_ids.tolist()
    assert again.names == found.names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 4}, "row 1: there is no category 4"),
        ({"category_id": 3.5}, "row 1: expected a COCO result"),
        ({"bbox": [1, 2, 3]}, "row 1: expected a COCO result"),
        ({"bbox": None}, "row 1: expected a COCO result"),
        ({"score": "high"}, "row 1: expected a COCO result"),
        ({"image_id": 2}, "row 1: of image 2, but row 0 of image 1"),
        ({"bbox": [1, 2, -3, 4]}, "box 1 is"),
        ({"score": float("nan")}, "not finite"),
    ],
)
def test_wrong_coco_rows_are_named(change: dict[str, Any], message: str) -> None:
    row = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    with pytest.raises(DetrKitError, match=message):
        Detections.from_coco([row, row | change], TABLE)
    without = {key: value for key, value in row.items() if key != next(iter(change))}
    if "image_id" in without:
        with pytest.raises(DetrKitError, match="row 1: expected a COCO result"):
            Detections.from_coco([row, without], TABLE)
    with pytest.raises(DetrKitError, match="row 0: expected a COCO result"):
        Detections.from_coco(["no dict"], TABLE)  # type: ignore[list-item]


def test_a_table_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    frame = some_detections().to_pandas()
    assert list(frame.columns) == ["category_id", "name", "score", "x0", "y0", "x1", "y1"]
    assert frame["name"].tolist() == ["cat", "dog", "cat"]
    assert frame.loc[1, ["x0", "y0", "x1", "y1"]].tolist() == [0, 0, 5, 5]
    assert frame["score"].dtype == frame["x0"].dtype == np.float32
    assert frame["category_id"].dtype == np.int64
    empty = no_detections().to_pandas()
    assert empty.dtypes.tolist() == frame.dtypes.tolist()
    assert len(pandas.concat([empty, frame])) == 3


def test_a_table_of_pandas_is_a_copy() -> None:
    pytest.importorskip("pandas")
    found = some_detections()
    frame = found.to_pandas()
    frame.loc[:, ["score", "x0"]] = 0.0
    assert found.scores[0] == np.float32(0.9)
    assert found.boxes_xyxy[0, 0] == 1


def test_detections_of_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    found = some_detections()
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert theirs.xyxy.tolist() == found.boxes_xyxy.tolist()
    assert theirs.confidence.tolist() == found.scores.tolist()
    assert theirs.class_id.tolist() == [7, 3, 7]
    assert theirs.data["class_name"].tolist() == ["cat", "dog", "cat"]
    assert theirs[theirs.class_id == 3]["class_name"].tolist() == ["dog"]
    assert len(no_detections().to_supervision()) == 0
    theirs.xyxy[:] = 0
    assert found.boxes_xyxy[0, 0] == 1


@pytest.mark.parametrize("library", ["pandas", "supervision"])
def test_a_library_that_is_missing_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DetrKitError, match=f"to_{library} needs {library}: pip install {library}"):
        getattr(some_detections(), f"to_{library}")()


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


def test_notes_follow_the_scores_of_their_detections() -> None:
    found = Detections(
        [[10, 40, 90, 90], [110, 40, 190, 90]],
        [0.2, 0.9],
        [1, 1],
        ["cat", "cat"],  # type: ignore[arg-type]
    )
    picture = np.full((120, 200, 3), 90, np.uint8)
    plain, noted = (np.asarray(found.draw(picture, notes)) for notes in (None, ["#5", ""]))
    assert (plain[:, 105:] == noted[:, 105:]).all()
    assert (plain[:40, :105] != noted[:40, :105]).any()
    with pytest.raises(DetrKitError, match="notes: expected 2, one a detection, got 1"):
        found.draw(picture, ["#5"])


def test_detections_need_no_torch() -> None:
    code = "import sys, detr_kit.detections, detr_kit.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
