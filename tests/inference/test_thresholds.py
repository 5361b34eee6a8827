from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detr_kit.categories import CategoryTable
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.evaluation import analyse, evaluation_of
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.inference.thresholds import above, load_thresholds, resolve_thresholds

TABLE = CategoryTable((1, 2, 5, 90), ("cat", "dog", "unused_5", "7"), (True, True, False, True))
TRUTH = {
    "images": [{"id": 1, "width": 100, "height": 100, "file_name": "1.png"}],
    "categories": [
        {"id": 1, "name": "cat"},
        {"id": 2, "name": "dog"},
        {"id": 90, "name": "7"},
        {"id": 91, "name": "without objects"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [20, 0, 10, 10]},
        {"id": 3, "image_id": 1, "category_id": 90, "bbox": [40, 0, 10, 10]},
    ],
}


def found_objects() -> Detections:
    return Detections(
        np.zeros((5, 4)),
        np.array([0.9, 0.8, 0.6, 0.4, 0.3]),
        np.array([1, 2, 1, 90, 2]),
        ["cat", "dog", "cat", "7", "dog"],
    )


def row(category_id: int, x: float, score: float) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category_id, "bbox": [x, 0, 10, 10], "score": score}


def evaluation_file(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    (folder / "truth.json").write_text(json.dumps(TRUTH))
    evaluation = evaluation_of(rows, folder / "truth.json", options=ScoringOptions(**options))
    values = evaluation.metrics.to_dict() | {"analysis": analyse(evaluation).to_dict()}
    (folder / "eval.json").write_text(json.dumps(values))
    return folder / "eval.json"


def written(folder: Path, text: str) -> Path:
    (folder / "own.json").write_text(text, encoding="utf-8")
    return folder / "own.json"


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [
        (0.6, [0.9, 0.8, 0.6]),
        ({}, [0.9, 0.8, 0.6]),
        ({"cat": 0.7}, [0.9, 0.8]),
        ({1: 0.7, 2: 0.3}, [0.9, 0.8, 0.3]),
        ({"1": 0.7, "dog": 0.3}, [0.9, 0.8, 0.3]),
        ({np.int64(2): np.float32(0.3)}, [0.9, 0.8, 0.6, 0.3]),
        ({"default": 0.35}, [0.9, 0.8, 0.6, 0.4]),
        ({"default": 1, "dog": 0}, [0.8, 0.3]),
        ({"7": 0.4, "default": 0.9}, [0.9, 0.4]),
        ({"default": 0.0, "cat": 0.6}, [0.9, 0.8, 0.6, 0.4, 0.3]),
    ],
)
def test_each_category_has_its_own_threshold(threshold: Any, kept: list[float]) -> None:
    alone = above(found_objects(), threshold)
    assert alone.scores.tolist() == pytest.approx(kept)
    resolved = above(found_objects(), resolve_thresholds(threshold, TABLE))
    assert resolved.scores.tolist() == alone.scores.tolist()


def test_what_is_not_named_takes_the_default_given() -> None:
    assert len(above(found_objects(), {"cat": 0.95}, default=0.0)) == 3
    assert resolve_thresholds({"cat": 0.95}, TABLE, default=0.1) == {1: 0.95, 2: 0.1, 90: 0.1}
    assert resolve_thresholds(0.25, TABLE) == {1: 0.25, 2: 0.25, 90: 0.25}


def test_a_name_of_digits_comes_before_an_id() -> None:
    table = CategoryTable((3, 7), ("7", "fish"))
    assert resolve_thresholds({"7": 0.1}, table) == {3: 0.1, 7: 0.5}
    assert resolve_thresholds({7: 0.1}, table) == {3: 0.5, 7: 0.1}


@given(st.floats(0, 1, width=32))
def test_a_score_reaches_the_threshold_that_it_is_itself(score: float) -> None:
    one = Detections(np.zeros((1, 4)), np.array([score]), np.array([1]), ["cat"])
    assert len(above(one, score)) == len(above(one, {"cat": score})) == 1
    # the decimal that people write for it, which is not the same float64
    assert len(above(one, {"cat": float(f"{score:.9g}")})) == 1


def test_nothing_found_stays_nothing() -> None:
    nothing = Detections([], [], [], [])  # type: ignore[arg-type]
    assert len(above(nothing, {"cat": 0.1})) == len(above(nothing, 0.5)) == 0


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ({"dgo": 0.1}, "threshold: there is no category 'dgo'; did you mean 'dog'?"),
        ({3: 0.1}, r"no category 3 \(there are: cat, dog, 7\)"),
        ({"unused_5": 0.1}, "no category 'unused_5'"),
        ({5: 0.1}, "no category 5"),
        ({1.0: 0.1}, "no category 1.0"),
        ({True: 0.1}, "no category True"),
        ({"cat": 0.1, 1: 0.2}, "'cat' and 1 are the same category"),
        ({"cat": np.nan}, "'cat': expected a score from 0 to 1, got nan"),
        ({"default": 2}, "'default': expected a score from 0 to 1, got 2"),
    ],
)
def test_resolving_is_strict(threshold: Mapping[Any, float], message: str) -> None:
    with pytest.raises(DetrKitError, match=message):
        resolve_thresholds(threshold, TABLE)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, np.nan, np.inf, "0.5", None, True, [0.5]])
def test_what_is_no_score_is_refused(wrong: Any) -> None:
    for threshold in (wrong, {"cat": wrong}, {"default": wrong}):
        for attempt in (
            lambda value=threshold: above(found_objects(), value),
            lambda value=threshold: resolve_thresholds(value, TABLE),
        ):
            with pytest.raises(DetrKitError, match="expected a score from 0 to 1"):
                attempt()


def test_thresholds_of_an_evaluation(tmp_path: Path) -> None:
    rows = [
        row(1, 0, 0.875),  # right
        row(1, 60, 0.5),  # wrong
        row(2, 20, 0.25),  # right
        row(90, 80, 0.75),  # wrong: the class has no right one
    ]
    path = evaluation_file(tmp_path, rows)
    thresholds = load_thresholds(path)
    # Of all together: at 0.875 one of three is found and nothing wrong, F1 1/2; at 0.25 4/7.
    assert thresholds == {"default": 0.25, "cat": 0.875, "dog": 0.25}
    assert resolve_thresholds(thresholds, TABLE) == {1: 0.875, 2: 0.25, 90: 0.25}
    assert load_thresholds(str(path), TABLE) == thresholds


def test_an_evaluation_without_classes_has_one_threshold(tmp_path: Path) -> None:
    path = evaluation_file(tmp_path, [row(1, 0, 0.875)], class_agnostic=True)
    assert load_thresholds(path, TABLE) == {"default": 0.875}


def test_an_evaluation_that_found_nothing_right_has_none(tmp_path: Path) -> None:
    path = evaluation_file(tmp_path, [row(1, 60, 0.5)])
    with pytest.raises(DetrKitError, match=r"eval.json: no detection of that evaluation was right"):
        load_thresholds(path)


def test_an_evaluation_of_other_classes_is_told_with_its_file(tmp_path: Path) -> None:
    path = evaluation_file(tmp_path, [row(1, 0, 0.875)])
    with pytest.raises(DetrKitError, match=r"eval.json: there is no category 'cat'"):
        load_thresholds(path, CategoryTable((1,), ("bird",)))


def test_thresholds_of_ones_own(tmp_path: Path) -> None:
    path = written(tmp_path, '\ufeff{"cat": 0.5, "90": 1, "default": 0, "straße": 0.25}')
    assert load_thresholds(path) == {"cat": 0.5, "90": 1.0, "default": 0.0, "straße": 0.25}
    path = written(tmp_path, '{"analysis": 0.5}')
    assert load_thresholds(path) == {"analysis": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cat": NaN}', "own.json: 'cat': expected a score from 0 to 1, got nan"),
        ('{"cat": -0.5}', "own.json: 'cat': .* got -0.5"),
        ('{"cat": 50}', "own.json: 'cat': .* got 50"),
        ('{"cat": "0.5"}', "own.json: 'cat': .* got '0.5'"),
        ('{"cat": true}', "own.json: 'cat': .* got True"),
        ('{"per_class": {"cat": 0.5}}', "own.json: 'per_class': .* got {'cat': 0.5}"),
        ('{"cat": 0.1, "cat": 0.2}', "own.json: 'cat' comes twice"),
        ('{"dgo": 0.1}', "own.json: there is no category 'dgo'; did you mean 'dog'"),
        ('{"1": 0.1, "cat": 0.1}', "own.json: '1' and 'cat' are the same category"),
        ("[0.1]", "own.json: expected a json object"),
        ("0.1", "own.json: expected a json object"),
        ("{", "own.json: not a json file"),
        ("[" * 100_000, "own.json: not a json file"),
        ('{"analysis": {"thresholds": {"classes": {}}}}', "own.json: looks like an evaluation"),
        ('{"analysis": {"thresholds": 3}}', "own.json: looks like an evaluation"),
    ],
)
def test_files_that_are_wrong_are_named_with_their_key(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DetrKitError, match=message):
        load_thresholds(written(tmp_path, text), TABLE)


def test_a_class_of_an_evaluation_that_is_called_default(tmp_path: Path) -> None:
    point = {"threshold": 0.5}
    values = {
        "analysis": {"thresholds": {"all": point, "classes": {"default": point}}},
        "options": {"class_agnostic": False},
    }
    with pytest.raises(DetrKitError, match="a class is called 'default'"):
        load_thresholds(written(tmp_path, json.dumps(values)))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DetrKitError, match=r"none\.json: no such file of thresholds"):
        load_thresholds(tmp_path / "none.json")
    with pytest.raises(DetrKitError, match="cannot read the file"):
        load_thresholds(tmp_path)


def test_thresholds_need_no_torch() -> None:
    code = "import sys, detr_kit.inference.thresholds; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
