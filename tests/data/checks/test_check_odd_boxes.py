"""Files of another box format in which a few boxes are odd: told and repaired all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_kit.data.checks.fix import fix
from detr_kit.data.checks.run import check
from tests.data.checks.corpus import annotation, coco

WIDTH, HEIGHT = 640, 480
NUM_BOXES = 200


def boxes_xywh() -> np.ndarray:
    """Return boxes (200, 4) inside their pictures, all over them, in whole pixels."""
    rng = np.random.default_rng(0)
    sides = rng.integers(20, 200, (NUM_BOXES, 2))
    return np.concatenate([rng.integers(0, [WIDTH, HEIGHT] - sides), sides], axis=1)


def corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def fractions(boxes: np.ndarray) -> np.ndarray:
    return boxes / [WIDTH, HEIGHT, WIDTH, HEIGHT]


def centres(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_boxes(boxes: np.ndarray) -> Path:
        image = {"id": 5, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}
        annotations = [annotation(number, box) for number, box in enumerate(boxes.tolist(), 1)]
        content = coco([], images=[image], annotations=annotations)
        path = tmp_path / "labels.json"
        path.write_text(json.dumps({**content, "categories": [{"id": 3, "name": "cat"}]}))
        return path

    return write_boxes


@pytest.mark.parametrize(
    ("written", "odd", "kind", "num_left"),
    [
        (corners, [100, 100, 90, 120], "looks_like_corners", 199),
        (corners, [100, 100, 700, 120], "looks_like_corners", 200),
        (fractions, [0, 0, 1.0001, 0.5], "looks_normalised", 200),
        (fractions, [100, 50, 200, 100], "looks_normalised", 199),
        (lambda boxes: fractions(corners(boxes)), [3, 2, 9, 8], "looks_normalised", 199),
        (lambda boxes: fractions(centres(boxes)), [0.5, 0.5, 2, 0.1], "looks_normalised", 200),
    ],
)
def test_one_odd_box_hides_no_format(
    write: Any, tmp_path: Path, written: Any, odd: list[float], kind: str, num_left: int
) -> None:
    expected = boxes_xywh()
    boxes = written(expected).astype(float)
    boxes[7] = odd
    path, out = write(boxes), tmp_path / "fixed.json"
    report = check(path)
    assert report.count(kind) == NUM_BOXES
    assert report.count("overshoot") == report.count("outside_image") == 0
    fix(path, out)
    repaired = {one["id"]: one["bbox"] for one in json.loads(out.read_bytes())["annotations"]}
    assert len(repaired) == num_left
    repaired.pop(8, None)
    for id_, box in repaired.items():
        np.testing.assert_allclose(box, expected[id_ - 1], atol=1e-3)
    assert fix(out, tmp_path / "again.json").num_changes == 0


def test_tiny_centres_are_not_taken_for_corners_of_sizes(write: Any, tmp_path: Path) -> None:
    # Nearly all of them would fit as x, y, w, h too.
    expected = boxes_xywh()
    expected[:, 2:] = np.minimum(expected[:, 2:], 22)
    path, out = write(fractions(centres(expected))), tmp_path / "fixed.json"
    fix(path, out)
    repaired = [one["bbox"] for one in json.loads(out.read_bytes())["annotations"]]
    np.testing.assert_allclose(repaired, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("written", "num_odd"), [(corners, 12), (fractions, 12), (lambda boxes: boxes, 0)]
)
def test_many_odd_boxes_leave_the_format_open(write: Any, written: Any, num_odd: int) -> None:
    boxes = written(boxes_xywh()).astype(float)
    boxes[:num_odd] = [300, 200, 150, 100]
    report = check(write(boxes))
    assert report.count("looks_like_corners") == report.count("looks_normalised") == 0


def test_boxes_that_pass_the_border_by_far_are_no_corners(write: Any) -> None:
    boxes = boxes_xywh()
    boxes[::2, 2:] += 200
    report = check(write(boxes))
    assert report.count("looks_like_corners") == 0
    assert report.count("overshoot") > 50
