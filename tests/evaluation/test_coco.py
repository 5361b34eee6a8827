from __future__ import annotations

import io
import json
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError
from detr_kit.evaluation import CocoMetrics, evaluate_results
from detr_kit.evaluation.metrics import FIGURES

Rows = list[dict[str, Any]]


def written(
    path: Path, images: int, annotations: Rows, categories: tuple[int, ...] = (1, 2)
) -> Path:
    content = {
        "images": [
            {"id": id_, "file_name": f"{id_}.jpg", "width": 400, "height": 300}
            for id_ in range(1, images + 1)
        ],
        "categories": [{"id": id_, "name": f"class {id_}"} for id_ in categories],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return path


def by_hand(rows: Rows, annotations: Path) -> list[float]:
    """The 12 figures as the README of pycocotools has them computed."""
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        scorer = COCOeval(truth, truth.loadRes(rows), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return [float(value) for value in scorer.stats]


def figures_of(metrics: CocoMetrics) -> list[float]:
    values = [getattr(metrics, field) for field, _, _ in FIGURES]
    return [-1.0 if value is None else value for value in values]


def random_scene(seed: int, images: int = 4) -> tuple[Rows, Rows]:
    """Ground truth with crowds and all sizes, and results near it, beside it and doubled."""
    rng = np.random.default_rng(seed)
    annotations: Rows = []
    rows: Rows = []
    for number in range(1, int(rng.integers(1, 25)) + 1):
        image_id, category_id = int(rng.integers(1, images + 1)), int(rng.choice([3, 7, 91]))
        side = rng.choice([10, 50, 120], p=[0.3, 0.4, 0.3])
        box = [*rng.uniform(0, 200, 2), *(side * rng.uniform(0.5, 1.5, 2))]
        box = [round(float(value), 2) for value in box]
        annotations.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(rng.random() < 0.2),
            }
        )
        for _ in range(int(rng.integers(0, 4))):
            shaken = np.array(box) + rng.normal(0, 0.08, 4) * side
            rows.append(
                {
                    "image_id": image_id
                    if rng.random() < 0.9
                    else int(rng.integers(1, images + 1)),
                    "category_id": category_id if rng.random() < 0.9 else 3,
                    "bbox": [*shaken[:2].tolist(), *np.abs(shaken[2:]).tolist()],
                    "score": round(float(rng.random()), 2),  # ties happen
                }
            )
    return annotations, rows


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32 - 1))
def test_equal_to_pycocotools_by_hand(tmp_path: Path, seed: int) -> None:
    annotations, rows = random_scene(seed)
    rows.append({"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.0})
    path = written(tmp_path / "val.json", 4, annotations, (3, 7, 91, 100))
    metrics = evaluate_results(rows, path)
    assert figures_of(metrics) == by_hand(rows, path)


def test_equal_to_pycocotools_on_real_labels(shared_data: Path) -> None:
    path = shared_data / "coco_mini" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    assert any(annotation["iscrowd"] for annotation in content["annotations"])
    rng = np.random.default_rng(0)
    found: dict[int, Detections] = {}
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]] * 2
        boxes = np.array([a["bbox"] for a in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += rng.normal(0, 4, boxes.shape)
        boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
        ids = np.array([a["category_id"] for a in own], dtype=np.int64)
        found[image["id"]] = Detections(boxes, rng.random(len(own)), ids, ["?"] * len(own))
    metrics = evaluate_results(found, path)
    rows = [row for image_id, detections in found.items() for row in detections.to_coco(image_id)]
    assert figures_of(metrics) == by_hand(rows, path)
    assert 0.2 < metrics.ap < 0.9  # type: ignore[operator]
    assert metrics.num_images == len(content["images"])
    assert metrics.num_detections == len(rows)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_classes_average_to_the_headline(tmp_path: Path, seed: int) -> None:
    annotations, rows = random_scene(seed)
    rows.append({"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.0})
    path = written(tmp_path / "val.json", 4, annotations, (3, 7, 91, 100))
    metrics = evaluate_results(rows, path)
    assert list(metrics.per_class) == ["class 3", "class 7", "class 91", "class 100"]
    assert metrics.per_class["class 100"] is None
    for headline, classes in (
        (metrics.ap, metrics.per_class),
        (metrics.ap50, metrics.per_class_ap50),
    ):
        known = [value for value in classes.values() if value is not None]
        assert np.mean(known) == pytest.approx(headline, abs=1e-12)


def test_annotation_id_0_and_missing_fields(tmp_path: Path) -> None:
    annotations = [{"id": 0, "image_id": 1, "category_id": 2, "bbox": [10, 10, 50, 50]}]
    path = written(tmp_path / "val.json", 1, annotations)
    row = {"image_id": 1, "category_id": 2, "bbox": [10, 10, 50, 50], "score": 0.01}
    metrics = evaluate_results([row], path)
    assert metrics.ap == pytest.approx(1.0)
    assert metrics.ap_medium == pytest.approx(1.0)
    assert metrics.ap_small is None
    assert metrics.per_class == {"class 1": None, "class 2": pytest.approx(1.0)}


def test_repeated_annotation_ids_count_as_two_objects(tmp_path: Path) -> None:
    annotations = [
        {"id": 5, "image_id": 1, "category_id": 2, "bbox": [10, 10, 50, 50]},
        {"id": 5, "image_id": 1, "category_id": 2, "bbox": [200, 10, 50, 50]},
    ]
    path = written(tmp_path / "val.json", 1, annotations)
    row = {"image_id": 1, "category_id": 2, "bbox": [10, 10, 50, 50], "score": 0.01}
    assert evaluate_results([row], path).ar_100 == pytest.approx(0.5)


@pytest.mark.parametrize("empty", [[], {}, {1: Detections([], [], [], [])}])  # type: ignore[arg-type]
def test_no_detections_score_0_with_a_warning(tmp_path: Path, empty: Any) -> None:
    annotations = [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [10, 10, 50, 50]}]
    path = written(tmp_path / "val.json", 2, annotations)
    with pytest.warns(UserWarning, match="there are no detections"):
        metrics = evaluate_results(empty, path)
    assert metrics.ap == 0
    assert metrics.ar_100 == 0
    assert metrics.ap_small is None
    assert metrics.per_class == {"class 1": None, "class 2": 0}


def test_no_ground_truth_at_all(tmp_path: Path) -> None:
    path = written(tmp_path / "val.json", 1, [])
    row = {"image_id": 1, "category_id": 2, "bbox": [10, 10, 50, 50], "score": 0.01}
    metrics = evaluate_results([row], path)
    assert figures_of(metrics) == [-1.0] * 12


def rows_with(scores: list[list[float]]) -> Rows:
    """One list of scores an image."""
    return [
        {"image_id": image_id, "category_id": 1, "bbox": [0, 0, 9, 9], "score": score}
        for image_id, image_scores in enumerate(scores, start=1)
        for score in image_scores
    ]


@pytest.mark.parametrize(
    ("scores", "warned"),
    [
        ([[0.5, 0.9], [0.6]], True),
        ([[0.5, 0.9], []], True),
        ([[0.5, 0.9], [0.6, 0.01]], False),  # a low score was kept
        ([[0.5, 0.9], [0.6, 0.4]], False),  # as many as there are queries
        ([[0.5] * 100, [0.6] * 150], False),  # the rest would not be scored
    ],
)
def test_results_that_look_cut_are_warned_of(
    tmp_path: Path, scores: list[list[float]], warned: bool
) -> None:
    path = written(tmp_path / "val.json", 2, [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate_results(rows_with(scores), path)
    messages = [str(warning.message) for warning in caught]
    assert [("threshold" in message) for message in messages] == [True] * warned
    assert all(warning.filename == __file__ for warning in caught)


def test_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_results(rows_with([[0.01]]), written(tmp_path / "val.json", 1, []))
    assert capsys.readouterr() == ("", "")


def test_figures_as_json_and_as_a_table(tmp_path: Path) -> None:
    annotations = [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [10, 10, 50, 50]}]
    path = written(tmp_path / "val.json", 1, annotations)
    row = {"image_id": 1, "category_id": 2, "bbox": [10, 10, 50, 50], "score": 0.01}
    metrics = evaluate_results([row], path)
    values = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert values["ap"] == pytest.approx(1.0)
    assert values["ap_small"] is None
    assert values["per_class"]["class 1"] is None
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(metrics.table())
    lines = console.export_text().splitlines()
    assert sum("no ground truth" in line for line in lines) == 5  # AP, AR small, large; class 1
    assert any("AP50 " in line and "1.000" in line for line in lines)
    assert any("class 2" in line and line.count("1.000") == 2 for line in lines)


def test_unknown_ids_are_listed(tmp_path: Path) -> None:
    path = written(tmp_path / "val.json", 2, [])
    rows = [
        {"image_id": id_, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.01}
        for id_ in (1, 5, 6, 7, 7, 8, 9, 10, "2")
    ]
    with pytest.raises(DetrKitError, match=r"image ids 5, 6, 7, 8, 9 and 2 more are not in .*val"):
        evaluate_results(rows, path)
    for row in rows:
        row.update(image_id=1, category_id=91)
    with pytest.raises(DetrKitError, match=r"category ids 91 are not in .*val"):
        evaluate_results(rows, path)
