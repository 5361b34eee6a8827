from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.evaluation import evaluate_results, write_results
from detr_kit.evaluation.results import joined, result_columns
from tests.evaluation.coco_problems import ROW, told, write_json

GOOD: dict[str, Any] = {
    "images": [{"id": 1}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 4, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50]}],
}


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_json(tmp_path / "val.json", GOOD)


def test_results_file_scores_as_what_it_was_written_from(tmp_path: Path, annotations: Path) -> None:
    found = {1: Detections(np.array([[10, 10, 60, 61]]), [0.3], [1], ["cat"])}  # type: ignore[arg-type]
    write_results(tmp_path / "new" / "results.json", found)
    from_file = evaluate_results(tmp_path / "new" / "results.json", annotations)
    assert from_file.ap == evaluate_results(found, annotations).ap == pytest.approx(1.0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]


def test_results_that_json_cannot_hold_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(DetrKitError, match=r"^results: entry 0 has score nan, expected a finite"):
        write_results(tmp_path / "results.json", [{**ROW, "score": float("nan")}])
    assert list(tmp_path.iterdir()) == []


def test_written_results_read_back_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = np.concatenate([rng.integers(-9, 9, (50, 1)) * 2.0**45, rng.normal(0, 1e3, (50, 6))], 1)
    array[:, 6] = rng.integers(0, 90, 50)
    write_results(tmp_path / "results.json", array)
    columns, read = result_columns(array), result_columns(tmp_path / "results.json")
    for name in ("image_ids", "category_ids", "boxes_xywh", "scores"):
        assert (getattr(read, name) == getattr(columns, name)).all()
    assert [set(row) for row in json.loads((tmp_path / "results.json").read_text())] == [
        {"image_id", "category_id", "bbox", "score"}
    ] * 50


@pytest.mark.parametrize("empty", [[], {}, np.empty((0, 7))])
def test_no_results_are_written_as_an_empty_list(tmp_path: Path, empty: Any) -> None:
    write_results(tmp_path / "results.json", empty)
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_parts_are_joined_in_their_order() -> None:
    parts = [result_columns([{**ROW, "image_id": id_} for id_ in ids]) for ids in ([3, 1], [], [2])]
    both = joined(parts)
    assert both.name == "results"
    assert both.image_ids.tolist() == [3, 1, 2]
    assert both.boxes_xywh.shape == (3, 4)
    assert len(both) == 3


def test_numpy_numbers_are_numbers(annotations: Path) -> None:
    row = {**ROW, "bbox": np.array(ROW["bbox"], np.float32), "score": np.float32(0.01)}
    assert evaluate_results([row], annotations).ap == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"results": [ROW]}, "an object with 'results'; write the list under 'results' alone"),
        ({"info": {}, "predictions": [ROW], "n": 1}, "; write the list under 'predictions' alone"),
        ({"1": {}, "2": {}}, "expected a list of detections, got an object with '1', '2'"),
        ({}, "got an object with nothing"),
        (None, "got None"),
        (3, "got 3"),
        ("text", "got 'text'"),
    ],
)
def test_no_list_at_the_top(tmp_path: Path, annotations: Path, content: Any, message: str) -> None:
    path = write_json(tmp_path / "results.json", content)
    line = told(path, annotations)
    assert line.startswith(f"{path}: not a COCO results file: expected a list of detections, got ")
    assert line.endswith(message)


def test_results_and_annotations_swapped(tmp_path: Path, annotations: Path) -> None:
    path = write_json(tmp_path / "results.json", [ROW])
    assert told(annotations, annotations) == (
        f"{annotations}: not a COCO results file: expected a list of detections, got a COCO "
        "annotation file; are results and annotations swapped?"
    )
    assert told(annotations, path).startswith(f"{path}: not a COCO annotation file: ")


TEXT = json.dumps([ROW, ROW])
DEEP = 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a json file: the file is empty"),
        (" \n\n", "not a json file: the file is empty"),
        ("[{", "not a json file: it ends too early, in line 1; the file is cut off"),
        (TEXT[:90], "not a json file: it ends too early, in line 1; the file is cut off"),
        (
            json.dumps([ROW, ROW], indent=1)[:90] + "\n",
            "not a json file: it ends too early, in line 11; the file is cut off",
        ),
        (TEXT.replace(":", "=", 1), "not a json file: Expecting ':' delimiter at line 1 column 13"),
        (
            str([ROW]),
            "not a json file: Expecting property name enclosed in double quotes at line 1",
        ),
        (
            f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n",
            "not a json file: more follows at line 2 column 1, where it should end; put all",
        ),
        (gzip.compress(TEXT.encode()), "not a json file: a gzip archive; unpack it first"),
        (b"\x89PNG\r\n", "not a json file: 'utf-8' codec can't decode byte 0x89 in position 0"),
        ("<html></html>", "not a json file: Expecting value at line 1 column 1"),
        ("[" * DEEP, "not a json file: nested too deeply"),
        ("[" * DEEP + "]" * DEEP, "not a json file: nested too deeply"),
        (TEXT[:-2] + f', "x": {"[" * DEEP}{"]" * DEEP}}}]', "not a json file: nested too deeply"),
        (TEXT.replace('"score": 0.01', f'"score": {"1" * 100_000}'), "entry 0 has score inf"),
        (TEXT.replace('"image_id": 1', f'"image_id": {"1" * 100_000}'), "entry 0 has image_id inf"),
        (TEXT.replace('"score": 0.01', '"score": -1e999'), "entry 0 has score -inf"),
    ],
    ids=range(17),
)
def test_a_file_that_is_no_json(
    tmp_path: Path, annotations: Path, content: str | bytes, message: str
) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert told(path, annotations).startswith(f"{path}: {message}")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_unicode_of_any_kind_is_read(tmp_path: Path, annotations: Path, encoding: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(json.dumps([{**ROW, "note": "é"}]).encode(encoding))
    assert evaluate_results(path, annotations).ap == pytest.approx(1.0)


def test_what_is_not_scored_may_be_odd(tmp_path: Path, annotations: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**ROW, "id": "x", "area": float("nan"), "segmentation": None}]))
    assert evaluate_results(path, annotations).ap == pytest.approx(1.0)
    digits = "1" * 100_000
    path.write_text(json.dumps([ROW]).replace("0.01", f"0.0{digits}"))
    assert evaluate_results(path, annotations).ap == pytest.approx(1.0)


def test_no_file_and_a_folder(tmp_path: Path, annotations: Path) -> None:
    missing = tmp_path / "none.json"
    assert told(missing, annotations) == f"{missing}: no such results file"
    assert told(tmp_path, annotations) == f"{tmp_path}: cannot read the file: Is a directory"
    with pytest.raises(DetrKitError, match=r"none\.json: no such annotation file"):
        evaluate_results([ROW], missing)


def changed(part: str, **values: Any) -> dict[str, Any]:
    """The good file with changes in the only entry of a list."""
    return {**GOOD, part: [{**GOOD[part][0], **values}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such annotation file"),
        ("{", "not a json file"),
        ([], "not a COCO annotation file: it holds a list, as a file of results, not images"),
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
