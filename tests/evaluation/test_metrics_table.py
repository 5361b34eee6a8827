"""The figures as values for json, and as tables for a terminal."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from rich.console import Console

from detr_kit.evaluation import CocoMetrics, evaluate_results
from detr_kit.evaluation.metrics import Interval, figures_of
from detr_kit.evaluation.options import ScoringOptions
from tests.evaluation.coco_problems import (
    ROW,
    Problem,
    by_pycocotools,
    coco_content,
    other_options,
    problems,
    quiet_evaluation,
    write_json,
)

KEYS = [
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
]


@pytest.fixture
def metrics(tmp_path: Path) -> CocoMetrics:
    return evaluate_results([ROW], write_json(tmp_path / "val.json", coco_content()))


def printed(metrics: CocoMetrics) -> list[str]:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(metrics)
    return [line.strip("│ ") for line in console.export_text().splitlines()]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")]


def test_figures_are_the_12_of_pycocotools_in_its_order(metrics: CocoMetrics) -> None:
    assert [figure.key for figure in figures_of(ScoringOptions())] == KEYS
    assert [(figure.key, value) for figure, value in metrics.figures()] == [
        (key, getattr(metrics, key)) for key in KEYS
    ]
    assert metrics.others == {}


def test_figures_of_other_options(tmp_path: Path) -> None:
    options = ScoringOptions((0.5, 1 / 3), {"tiny": (0, 256), "small": (256, 1024)}, (5, 100))
    path = write_json(tmp_path / "val.json", coco_content())
    metrics = evaluate_results([ROW], path, options=options)
    assert [figure.key for figure, _ in metrics.figures()] == [
        *("ap", "ap33.33", "ap50", "ap_tiny", "ap_small"),
        *("ar_5", "ar_100", "ar_tiny", "ar_small"),
    ]
    assert list(metrics.others) == ["ap33.33", "ap_tiny", "ar_5", "ar_tiny"]
    assert metrics.ap50 == pytest.approx(1)
    assert metrics.ar_100 == 1
    # not asked for
    assert metrics.ap75 is metrics.ap_large is metrics.ar_1 is None
    assert metrics.per_class_ap50["class 1"] == pytest.approx(1)
    only_75 = evaluate_results([ROW], path, options=ScoringOptions((0.75,)))
    assert only_75.per_class_ap50 == {}
    assert only_75.ap50 is None
    assert only_75.ap == only_75.ap75
    assert only_75.ap == pytest.approx(1)


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(problem=problems(other_options()))
def test_figures_are_means_of_the_arrays_of_pycocotools(tmp_path: Path, problem: Problem) -> None:
    options = problem.options
    path = write_json(tmp_path / "val.json", problem.content)
    metrics = quiet_evaluation(problem.rows, path, options).metrics
    reference = by_pycocotools(problem.content, problem.rows, options)
    expected = [reference.precision[..., 0, -1]]
    expected += [reference.precision[row, ..., 0, -1] for row in range(len(options.iou_thresholds))]
    areas = range(1, len(options.areas))
    expected += [reference.precision[..., area, -1] for area in areas]
    expected += [reference.recall[..., 0, most] for most in range(len(options.max_detections))]
    expected += [reference.recall[..., area, -1] for area in areas]
    means = [np.mean(part[part > -1]) if (part > -1).any() else None for part in expected]
    assert [value for _, value in metrics.figures()] == means


def test_values_for_json(metrics: CocoMetrics) -> None:
    metrics = replace(metrics, ap_interval=Interval(0.25, 1.0))
    values = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert set(KEYS) < set(values)
    assert values["ap"] == pytest.approx(1.0)
    assert values["ap_small"] is None
    assert values["per_class"] == {"class 1": pytest.approx(1.0), "class 2": None}
    assert values["per_class_ap50"] == {"class 1": pytest.approx(1.0), "class 2": None}
    assert (values["num_images"], values["num_detections"]) == (1, 1)
    assert values["ap_interval"] == [0.25, 1.0]
    assert replace(metrics, ap_interval=None).to_dict()["ap_interval"] is None


def test_tables(metrics: CocoMetrics) -> None:
    lines = printed(metrics)
    assert "1 detections, 1 images" in " ".join(lines)
    rows = {cells(line)[0]: cells(line)[1:] for line in lines}
    assert rows["AP"] == ["IoU 0.50 to 0.95", "1.000"]
    assert rows["AP50"] == ["IoU 0.5", "1.000"]
    assert rows["AP small"] == ["area below 32²", "no ground truth"]
    assert rows["AP medium"] == ["area 32² to 96²", "1.000"]
    assert rows["AR large"] == ["area above 96²", "no ground truth"]
    assert rows["AR 1"] == ["1 detection an image and class", "1.000"]
    assert rows["AR 10"] == ["10 detections an image and class", "1.000"]
    assert rows["class 1"] == ["1", "1.000", "1.000"]
    assert rows["class 2"] == ["0", "no ground truth", "no ground truth"]
    assert lines[-1].startswith("scored in ")


def test_tables_of_other_options(tmp_path: Path) -> None:
    options = ScoringOptions((0.3,), {"tiny": (0, 250), "mid": (250, 1e4)}, (7,))
    path = write_json(tmp_path / "val.json", coco_content())
    rows = {
        cells(line)[0]: cells(line)[1:]
        for line in printed(evaluate_results([ROW], path, options=options))
    }
    assert rows["AP"] == ["IoU 0.30", "1.000"]
    assert rows["AP30"] == ["IoU 0.3", "1.000"]
    assert rows["AP tiny"] == ["area below 15.81²", "no ground truth"]
    assert rows["AR mid"] == ["area 15.81² to 100²", "1.000"]
    assert rows["AR 7"] == ["7 detections an image and class", "1.000"]
    assert rows["class 1"] == ["1", "1.000"]  # no AP50


def test_the_interval_stands_under_the_ap(metrics: CocoMetrics) -> None:
    lines = printed(replace(metrics, ap_interval=Interval(0.25, 0.75, 0.9)))
    place = next(row for row, line in enumerate(lines) if cells(line)[0] == "AP")
    assert "90 % interval" in lines[place + 1]
    assert "0.250 to 0.750" in lines[place + 1]
    assert not any("interval" in line for line in printed(metrics))


def test_names_are_no_markup(metrics: CocoMetrics) -> None:
    name = "[bold]a[/b]"
    named = replace(
        metrics, per_class={name: 0.5}, per_class_ap50={name: 0.25}, per_class_objects={name: 3}
    )
    assert any(cells(line) == [name, "3", "0.500", "0.250"] for line in printed(named))
