"""Results that are wrong, odd or of another detector's make: one clear line, never a silent 0."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitWarning
from detr_kit.evaluation import CocoMetrics, evaluate_results
from tests.evaluation.coco_problems import ROW, Rows, coco_content, told, write_json

BOX = "expected x, y, width, height as finite numbers up to 1e+100"


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_json(tmp_path / "val.json", coco_content())


def warned(results: Any, annotations: Path) -> tuple[CocoMetrics, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = evaluate_results(results, annotations)
    assert {warning.category for warning in caught} <= {DetrKitWarning}
    return metrics, [str(warning.message) for warning in caught]


ODD_ENTRIES: list[tuple[dict[str, Any], str]] = [
    ({"score": float("nan")}, "score nan, expected a finite number"),
    ({"score": float("inf")}, "score inf, expected a finite number"),
    ({"score": None}, "score None, expected a finite number"),
    ({"score": True}, "score True, expected a finite number"),
    ({"score": "0.5"}, "score '0.5', expected a finite number"),
    ({"score": [0.5]}, "score [0.5], expected a finite number"),
    ({"bbox": [1, 2, 3, float("-inf")]}, f"bbox [1, 2, 3, -inf], {BOX}"),
    ({"bbox": [1, 2, None, 4]}, f"bbox [1, 2, None, 4], {BOX}"),
    ({"bbox": [1, 2, 3]}, f"bbox [1, 2, 3], {BOX}"),
    ({"bbox": [1, 2, 3, 4, 5]}, f"bbox [1, 2, 3, 4, 5], {BOX}"),
    ({"bbox": []}, f"bbox [], {BOX}"),
    ({"bbox": None}, f"bbox None, {BOX}"),
    ({"bbox": [[1, 2, 3, 4]]}, f"bbox [[1, 2, 3, 4]], {BOX}"),
    ({"bbox": [1, 2, 3, [4]]}, f"bbox [1, 2, 3, [4]], {BOX}"),
    ({"bbox": [1, 2, 3, True]}, f"bbox [1, 2, 3, True], {BOX}"),
    ({"bbox": "1,2,3,4"}, f"bbox '1,2,3,4', {BOX}"),
    ({"bbox": {"x": 1}}, f"bbox {{'x': 1}}, {BOX}"),
    ({"bbox": [0, 0, 1e200, 1e200]}, f"bbox [0.0, 0.0, 1e+200, 1e+200], {BOX}"),
    ({"image_id": "1"}, "image_id '1', which is not an integer"),
    ({"image_id": "a.jpg"}, "image_id 'a.jpg', which is not an integer"),
    ({"image_id": 1.5}, "image_id 1.5, which is not an integer"),
    ({"image_id": True}, "image_id True, which is not an integer"),
    ({"image_id": None}, "image_id None, which is not an integer"),
    ({"image_id": [1]}, "image_id [1], which is not an integer"),
    ({"image_id": 2**63}, "image_id 9223372036854775808, which is beyond 64 bits"),
    ({"image_id": -(10**30)}, f"image_id {-(10**30)}, which is beyond 64 bits"),
    ({"category_id": "cat"}, "category_id 'cat', which is not an integer"),
    ({"category_id": float("nan")}, "category_id nan, which is not an integer"),
]


@pytest.mark.parametrize(("changes", "message"), ODD_ENTRIES)
def test_an_odd_value_is_shown_with_its_entry(
    tmp_path: Path, annotations: Path, changes: dict[str, Any], message: str
) -> None:
    rows = [ROW, {**ROW, "score": 0.02}, {**ROW, **changes}]
    path = write_json(tmp_path / "results.json", rows)
    assert told(path, annotations) == f"{path}: entry 2 has {message}"
    assert told(rows, annotations) == f"results: entry 2 has {message}"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "it has no image_id, category_id, bbox, score"),
        ({key: ROW[key] for key in ("image_id", "category_id", "bbox")}, "it has no score"),
        ({"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": {}}, "it has no bbox"),
        ({"image_id": 1, "boxes": [], "scores": []}, "it has no category_id, bbox, score"),
        ("a", "'a', expected an object with image_id, category_id, bbox, score"),
        (None, "None, expected an object with"),
        (3, "3, expected an object with"),
        ([1, 10, 10, 50, 50, 0.1, 1], "[1, 10, 10, 50, 50, 0.1, 1], expected an object with"),
    ],
)
def test_an_entry_that_is_no_result(
    tmp_path: Path, annotations: Path, entry: Any, message: str
) -> None:
    path = write_json(tmp_path / "results.json", [ROW, entry])
    expected = f"entry 1 is not a COCO result: {message}"
    assert told(path, annotations).startswith(f"{path}: {expected}")
    assert told([ROW, entry], annotations).startswith(f"results: {expected}")


def test_whole_floats_are_ids(tmp_path: Path, annotations: Path) -> None:
    row = {**ROW, "image_id": 1.0, "category_id": 1.0}
    path = write_json(tmp_path / "results.json", [row])
    assert evaluate_results(path, annotations).ap == pytest.approx(1.0)
    assert evaluate_results([row], annotations).ap == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (None, "an array, got NoneType"),
        (3, "an array, got int"),
        (Detections([], [], [], []), "an array, got Detections"),  # type: ignore[arg-type]
        ({"results": [ROW]}, "expected Detections by image id, got list under 'results'"),
        ({1: [ROW]}, "expected Detections by image id, got list under 1"),
        ({"1": Detections([], [], [], [])}, "got Detections under '1'"),  # type: ignore[arg-type]
        ([{**ROW, "score": 10**5000}], "score of type int and boundless length, expected a finite"),
    ],
)
def test_python_values_that_are_no_results(annotations: Path, results: Any, message: str) -> None:
    line = told(results, annotations)
    assert line.startswith("results: ")
    assert message in line


ARRAY = np.array([[1, 10, 10, 50, 50, 0.01, 1], [1, 200, 10, 50, 50, 0.001, 1]])


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (ARRAY[:, :6], "(2, 6) float64"),
        (ARRAY[0], "(7,) float64"),
        (ARRAY[None], "(1, 2, 7) float64"),
        (np.array([]), "(0,) float64"),
        (ARRAY > 0, "(2, 7) bool"),
        (ARRAY.astype(object), "(2, 7) object"),
        (ARRAY.astype(str), "(2, 7) <U32"),
        (ARRAY.astype(complex), "(2, 7) complex128"),
    ],
)
def test_an_array_of_wrong_shape_or_type(annotations: Path, array: np.ndarray, shown: str) -> None:
    assert told(array, annotations) == (
        "results: expected an array (D, 7) of image id, x, y, w, h, score and category id, got "
        f"{shown}"
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, np.nan, "image_id nan, which is not an integer"),
        (0, 1.5, "image_id 1.5, which is not an integer"),
        (0, -np.inf, "image_id -inf, which is not an integer"),
        (0, 1e30, "image_id 1e+30, which is not an integer"),
        (6, 0.5, "category_id 0.5, which is not an integer"),
        (0, 2.0**53 + 2, "image_id 9007199254740994.0, which float64 may have rounded; use"),
        (5, np.nan, "score nan, expected a finite number"),
        (3, np.inf, f"bbox [200.0, 10.0, inf, 50.0], {BOX}"),
    ],
)
def test_a_number_of_an_array(annotations: Path, column: int, value: float, message: str) -> None:
    array = ARRAY.copy()
    array[1, column] = value
    assert told(array, annotations).startswith(f"results: entry 1 has {message}")


def test_ids_that_float32_rounds(tmp_path: Path) -> None:
    """Picture 2008000008 would become 2008000000, which is another or none."""
    path = write_json(tmp_path / "val.json", coco_content([], image_ids=(2_008_000_000,)))
    array = ARRAY[:1].astype(np.float32)
    array[0, 0] = 2_008_000_008
    assert told(array, path) == (
        "results: entry 0 has image_id 2008000000.0, which float32 may have rounded; use float64 "
        "or rows of dicts"
    )
    array[0, 0] = 2**24
    path = write_json(tmp_path / "val.json", coco_content([], image_ids=(2**24,)))
    assert evaluate_results(array, path).num_detections == 1


@pytest.mark.parametrize(("kind", "key"), [("image", "image_id"), ("category", "category_id")])
def test_unknown_ids_are_listed_with_their_number(
    tmp_path: Path, annotations: Path, kind: str, key: str
) -> None:
    rows = [{**ROW, key: id_} for id_ in (1, 50, 6, 7, 7, 80, 9, 10, -2)]
    path = write_json(tmp_path / "results.json", rows)
    assert told(path, annotations) == (
        f"{path}: {kind} ids 50, 6, 7, 80, 9 and 2 more are not in {annotations}"
    )
    assert told(rows[:2], annotations) == f"results: {kind} ids 50 are not in {annotations}"


def test_crowds_as_run_lengths_and_polygons(tmp_path: Path) -> None:
    region = np.zeros((300, 400), np.uint8)
    region[100:160, 100:180] = 1
    compressed = mask.encode(np.asfortranarray(region))
    crowd = {"image_id": 1, "category_id": 1, "bbox": [100, 100, 80, 60], "iscrowd": 1}
    inside = [{**ROW, "bbox": [100 + 9 * n, 105, 8, 8], "score": 0.9} for n in range(5)]
    for segmentation in (
        {"size": [300, 400], "counts": [30_100, 60, 89_840]},
        {"size": [300, 400], "counts": compressed["counts"].decode()},
        [[100, 100, 180, 100, 180, 160]],
    ):
        objects = [*coco_content()["annotations"], {**crowd, "id": 5, "segmentation": segmentation}]
        path = write_json(tmp_path / "val.json", coco_content(objects))
        metrics = evaluate_results([*inside, ROW], path)
        # five higher-scored ones in the crowd are neither right nor wrong
        assert metrics.ap == pytest.approx(1.0)
        assert metrics.ar_100 == pytest.approx(1.0)


@pytest.mark.parametrize(("low", "high"), [(0.5, 87.5), (-3.25, 0.5)])
def test_scores_outside_0_to_1(annotations: Path, low: float, high: float) -> None:
    rows = [{**ROW, "score": low}, {**ROW, "bbox": [0, 0, 9, 9], "score": high}]
    metrics, lines = warned(rows, annotations)
    assert lines == [
        f"results: scores from {low:g} to {high:g}, where [0, 1] is expected; AP needs their order "
        "only, but thresholds and calibration do not mean what they say"
    ]
    assert metrics.ap == pytest.approx(0.5)


def test_repeated_detections(tmp_path: Path, annotations: Path) -> None:
    others = [{**ROW, "bbox": [200, 9, 9, 9]}, {**ROW, "category_id": 2}]
    _, lines = warned([ROW, *others], annotations)
    assert lines == []
    # one in between, of the same score
    path = write_json(tmp_path / "results.json", [ROW, *others, ROW, ROW])
    metrics, lines = warned(path, annotations)
    assert lines == [
        f"{path}: 2 of 5 detections repeat the picture, class, box and score of another, the first "
        "in image 1; each counts as wrong. Were pictures predicted twice, to fill up a batch?"
    ]
    assert metrics.ap == pytest.approx(1.0)


def test_boxes_of_negative_sides(annotations: Path) -> None:
    rows = [ROW, {**ROW, "bbox": [60, 60, -50, 50]}, {**ROW, "bbox": [1, 2, 0, 0]}]
    _, lines = warned(rows, annotations)
    assert lines == [
        "results: 1 of 3 boxes have a negative width or height, the first is "
        "[60.0, 60.0, -50.0, 50.0] in image 1; they match nothing"
    ]


def spread(count: int) -> tuple[Rows, Rows]:
    """Boxes all over the picture, as objects and as detections."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(30, 150, (count, 2))
    boxes = np.concatenate([rng.uniform(0, (400, 300) - sides), sides], axis=1).round(1).tolist()
    objects = [{"id": n, "image_id": 1, "category_id": 1, "bbox": b} for n, b in enumerate(boxes)]
    return objects, [{**ROW, "bbox": box, "score": 0.01 + n / 999} for n, box in enumerate(boxes)]


@pytest.mark.parametrize(
    ("changed", "suspected"),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], "corners (x0, y0, x1, y1)"),
        (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "centres (cx, cy, w, h)"),
        (lambda x, y, w, h: [x / 400, y / 300, w / 400, h / 300], "fractions of the picture"),
        (lambda x, y, w, h: [x, y, w, h], None),
    ],
)
def test_boxes_in_another_format(tmp_path: Path, changed: Any, suspected: str | None) -> None:
    """Where there are too few objects to tell what would raise the AP."""
    objects, rows = spread(120)
    path = write_json(tmp_path / "val.json", coco_content(objects[-19:]))
    rows = [{**row, "bbox": changed(*row["bbox"])} for row in rows]
    metrics, lines = warned(rows, path)
    if suspected is None:
        assert lines == []
        assert metrics.ar_100 == 1
    else:
        assert lines == [
            f"results: the boxes look like {suspected}; COCO's are (x, y, w, h) in pixels"
        ]
    # a handful says nothing
    assert warned(rows[:99], path)[1] == []


def test_many_detections_and_none_near_an_object(tmp_path: Path) -> None:
    objects, rows = spread(120)
    path = write_json(tmp_path / "val.json", coco_content(objects))
    missed = [{**row, "bbox": [1, 1, 3, 3], "score": n / 999} for n, row in enumerate(rows)]
    metrics, lines = warned(missed, path)
    assert metrics.ap == 0
    assert lines == [
        "results: none of 100 detections overlaps an object of its class by an IoU of 0.5; do "
        f"ids and boxes mean those of {path}?"
    ]
    assert warned(missed[:99], path)[1] == []
    assert warned([*missed, {**rows[0], "score": 1.0}], path)[1] == []
    none = write_json(tmp_path / "none.json", coco_content([{**objects[0], "iscrowd": 1}]))
    assert warned(missed, none)[1] == []


def test_a_class_without_objects(annotations: Path) -> None:
    metrics, lines = warned([ROW, {**ROW, "category_id": 2}], annotations)
    assert lines == []
    assert metrics.per_class == {"class 1": pytest.approx(1.0), "class 2": None}
    assert metrics.ap == pytest.approx(1.0)


def test_no_annotations_give_no_figures(tmp_path: Path) -> None:
    path = write_json(tmp_path / "val.json", coco_content([]))
    metrics, lines = warned([ROW], path)
    assert lines == []
    assert {value for _, value in metrics.figures()} == {None}
    metrics, lines = warned([], path)
    assert [line.split(";")[0] for line in lines] == ["results: there are no detections"]
