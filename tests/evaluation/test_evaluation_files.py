from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.evaluation import evaluate_results, write_results

GOOD: dict[str, Any] = {
    "images": [{"id": 1}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 4, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50]}],
}
ROW = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "score": 0.01}


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    path = tmp_path / "val.json"
    path.write_text(json.dumps(GOOD))
    return path


def test_results_file_scores_as_what_it_was_written_from(tmp_path: Path, annotations: Path) -> None:
    found = {1: Detections(np.array([[10, 10, 60, 61]]), [0.3], [1], ["cat"])}  # type: ignore[arg-type]
    write_results(tmp_path / "new" / "results.json", found)
    from_file = evaluate_results(tmp_path / "new" / "results.json", annotations)
    assert from_file.ap == evaluate_results(found, annotations).ap == pytest.approx(1.0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]


def test_results_that_json_cannot_hold_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path / "results.json", [{**ROW, "score": float("nan")}])
    assert list(tmp_path.iterdir()) == []


def test_numpy_numbers_are_numbers(annotations: Path) -> None:
    row = {**ROW, "bbox": np.array(ROW["bbox"], np.float32), "score": np.float32(0.01)}
    assert evaluate_results([row], annotations).ap == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("[{", "not a json file"),
        ("{}", "expected a list"),
        ("[1]", "entry 0 is not a COCO result"),
        ('[{"image_id": 1}]', "entry 0 is not a COCO result"),
        (json.dumps([ROW, {**ROW, "bbox": [1, 2, 3]}]), "entry 1 has bbox"),
        (json.dumps([ROW, {**ROW, "score": None}]), "entry 1 has bbox"),
        (json.dumps([{**ROW, "bbox": [1, 2, 3, float("nan")]}]), "entry 0 has bbox"),
        (json.dumps([{**ROW, "image_id": [1]}]), "image ids"),
    ],
)
def test_bad_results_file(
    tmp_path: Path, annotations: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DetrKitError, match=message) as caught:
        evaluate_results(path, annotations)
    assert str(path) in str(caught.value)


def changed(part: str, **values: Any) -> dict[str, Any]:
    """The good file with changes in the only entry of a list."""
    return {**GOOD, part: [{**GOOD[part][0], **values}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such annotation file"),
        ("{", "not a json file"),
        ([], "not a COCO annotation file"),
        ({"images": []}, "not a COCO annotation file"),
        (changed("annotations", image_id=9), "annotation 4: no image has the id 9"),
        (changed("annotations", category_id=9), "annotation 4: no category has the id 9"),
        (changed("annotations", bbox=[1, 2, 3]), r"annotation 4: bbox must be \[x, y, w, h\]"),
        (
            changed("annotations", bbox=[1, 2, 3, float("inf")]),
            "annotation 4: bbox .* not four",
        ),
        (changed("annotations", area="big"), "annotation 4: area: Expected"),
        ({**GOOD, "images": [{"id": 1}, {"id": 1}]}, "image id 1 appears twice"),
        ({**GOOD, "categories": GOOD["categories"] * 2}, "appears twice"),
    ],
)
def test_bad_annotation_file(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "val.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DetrKitError, match=message) as caught:
        evaluate_results([ROW], path)
    assert str(path) in str(caught.value)
