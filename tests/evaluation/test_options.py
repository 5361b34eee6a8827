from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.cocoeval import Params

from detr_kit.errors import DetrKitError
from detr_kit.evaluation import evaluate_results
from detr_kit.evaluation.options import RECALLS, ScoringOptions
from tests.evaluation.coco_problems import ROW, coco_content, quiet_evaluation, write_json


def test_defaults_are_those_of_pycocotools() -> None:
    options, params = ScoringOptions(), Params("bbox")
    assert list(options.iou_thresholds) == params.iouThrs.tolist()
    assert RECALLS.tolist() == params.recThrs.tolist()
    assert list(options.max_detections) == params.maxDets
    assert list(options.area_names) == params.areaRngLbl
    assert [list(bounds) for bounds in options.areas.values()] == params.areaRng
    assert bool(params.useCats) is not options.class_agnostic


def test_values_are_sorted_and_single() -> None:
    options = ScoringOptions([0.75, 0.5, 0.75], {}, [100, 1, 100])
    assert options.iou_thresholds == (0.5, 0.75)
    assert options.max_detections == (1, 100)
    assert ScoringOptions(np.array([0.9, 0.3])).iou_thresholds == (0.3, 0.9)


def test_all_areas_are_added_and_come_first() -> None:
    options = ScoringOptions(areas={"tiny": (0, 16**2)})
    assert options.areas == {"all": (0, 1e10), "tiny": (0, 256)}
    assert options.area_names == ("all", "tiny")
    assert ScoringOptions(areas={"tiny": (0, 16**2), "all": (0, 1e10)}) == options


def test_options_are_equal_by_their_values() -> None:
    assert ScoringOptions((0.5, 0.75)) == ScoringOptions([0.75, 0.5])
    assert ScoringOptions((0.5,)) != ScoringOptions((0.6,))


def test_the_place_of_a_threshold() -> None:
    options = ScoringOptions()
    assert [options.threshold_index(iou) for iou in (0.5, 0.75, 0.95)] == [0, 5, 9]
    assert options.threshold_index(0.1 + 0.2 + 0.3) == 2  # 0.6000000000000001
    assert options.threshold_index(0.52) is None
    assert ScoringOptions((0.3,)).threshold_index(0.5) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iou_thresholds": ()}, r"IoU thresholds must lie in \(0, 1\], got \[\]"),
        ({"iou_thresholds": (0.0, 0.5)}, r"IoU thresholds must lie in \(0, 1\], got \[0.0, 0.5\]"),
        ({"iou_thresholds": (50,)}, r"IoU thresholds must lie in \(0, 1\], got \[50.0\]"),
        ({"iou_thresholds": (math.nan,)}, r"IoU thresholds must lie in \(0, 1\], got \[nan\]"),
        ({"max_detections": ()}, r"max detections must be integers from 1, got \[\]"),
        ({"max_detections": (0, 10)}, r"max detections must be integers from 1, got \[0, 10\]"),
        ({"areas": {"tiny": (16, 0)}}, "area range 'tiny' must be 0 <= least < most, got 16"),
        ({"areas": {"tiny": (-1, 16)}}, "area range 'tiny' must be 0 <= least < most, got -1"),
        ({"areas": {"tiny": (5, 5)}}, "area range 'tiny' must be 0 <= least < most, got 5"),
        ({"areas": {"tiny": (0, math.nan)}}, "area range 'tiny' must be 0 <= least < most, got 0"),
        ({"areas": {"all": (0, 99)}}, "area range 'all' is that of AP: choose another name"),
        ({"areas": {"big": (5, math.inf)}}, "area range 'big' must be 0 <= least < most, got 5"),
        ({"areas": {"10": (0, 9)}}, "area range '10': a name must begin with a letter"),
        ({"areas": {"interval": (0, 9)}}, "area range 'interval': a name must"),
        ({"areas": {"[/b]": (0, 9)}}, r"area range '\[/b\]': a name must"),
        ({"areas": {"tiny": (0, 9, 10)}}, "options: expected numbers"),
        ({"areas": [(0, 9)]}, "options: expected numbers"),
        ({"areas": {1: (0, 9)}}, "area range '1': a name must begin with a letter"),
        ({"iou_thresholds": (0.33331, 0.33334)}, "IoU thresholds must differ by 0.0001 or more"),
        ({"iou_thresholds": 0.5}, "options: expected numbers"),
        ({"iou_thresholds": ("half",)}, "options: expected numbers"),
        ({"max_detections": (1.5,)}, r"max detections must be integers from 1, got \[1.5\]"),
        ({"max_detections": "many"}, "options: expected numbers"),
    ],
)
def test_values_that_mean_nothing(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DetrKitError, match=message):
        ScoringOptions(**values)


def test_more_detections_than_coco_scores(tmp_path: Path) -> None:
    """The only right one has the lowest of 150 scores."""
    path = write_json(tmp_path / "val.json", coco_content())
    rows = [{**ROW, "bbox": [200, n, 9, 9], "score": 1 - n / 200} for n in range(149)] + [ROW]
    assert quiet_evaluation(rows, path).metrics.ar_100 == 0
    options = ScoringOptions(max_detections=(149, 150))
    metrics = evaluate_results(rows, path, options=options)
    assert metrics.others == {"ar_149": 0, "ar_150": pytest.approx(1)}
    assert metrics.ap == pytest.approx(1 / 150)
    assert metrics.ar_100 is None


def test_a_class_taken_for_another_counts_where_classes_do_not(tmp_path: Path) -> None:
    path = write_json(tmp_path / "val.json", coco_content())
    row = {**ROW, "category_id": 2}
    assert evaluate_results([row], path).ap == 0
    metrics = evaluate_results([row], path, options=ScoringOptions(class_agnostic=True))
    assert metrics.ap == pytest.approx(1)
    assert metrics.per_class == {"all classes": pytest.approx(1)}


def test_a_low_threshold_finds_what_is_far_off(tmp_path: Path) -> None:
    path = write_json(tmp_path / "val.json", coco_content())
    row = {**ROW, "bbox": [10, 10, 50, 17]}  # IoU 0.34
    options = ScoringOptions(iou_thresholds=(0.3, 0.4))
    metrics = evaluate_results([row], path, options=options)
    assert metrics.others == {"ap30": pytest.approx(1), "ap40": 0}
    assert metrics.ap == pytest.approx(0.5)


def test_a_range_of_areas_of_ones_own(tmp_path: Path) -> None:
    objects = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": ROW["bbox"]},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [200, 10, 12, 12]},
    ]
    path = write_json(tmp_path / "val.json", coco_content(objects))
    options = ScoringOptions(areas={"tiny": (0, 16**2), "other": (16**2, 1e10)})
    metrics = evaluate_results([ROW], path, options=options)
    assert metrics.others == {
        "ap_tiny": 0,
        "ap_other": pytest.approx(1),
        "ar_tiny": 0,
        "ar_other": pytest.approx(1),
    }
    assert metrics.ap_small is metrics.ar_large is None
    assert metrics.ar_100 == pytest.approx(0.5)


def test_what_differs_from_coco_in_words() -> None:
    assert ScoringOptions().differences == ""
    options = ScoringOptions((0.3, 0.5), {}, (1, 300), class_agnostic=True)
    assert options.differences == "class-agnostic; IoU 0.3, 0.5; 300 detections an image and class"
