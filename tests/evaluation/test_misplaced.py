"""A low AP by boxes or ids that are meant in another way is told from one of a bad detector."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detr_kit.evaluation.ground_truth import GroundTruth
from tests.evaluation.drawn_results import (
    CLASS,
    IMAGE,
    SCORE,
    X,
    detected,
    doubts,
    sizes,
    truth_file,
    with_boxes,
)

COCO = "(COCO's are x, y, width, height in pixels)"


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> GroundTruth:
    return truth_file(tmp_path_factory.mktemp("doubts") / "val.json")


Mistake = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]
BOX_MISTAKES: dict[str, tuple[Mistake, str]] = {
    "corners": (
        lambda b, s: (b[0], b[1], b[0] + b[2], b[1] + b[3]),
        "read as x0, y0, x1, y1",
    ),
    "centres": (
        lambda b, s: (b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]),
        "read as centre x, centre y, width, height",
    ),
    "fractions": (
        lambda b, s: (b[0] / s[0], b[1] / s[1], b[2] / s[0], b[3] / s[1]),
        "multiplied by the width and height of their picture",
    ),
    "centres as fractions": (
        lambda b, s: (
            (b[0] + b[2] / 2) / s[0],
            (b[1] + b[3] / 2) / s[1],
            b[2] / s[0],
            b[3] / s[1],
        ),
        "read as centre x, centre y, width, height and multiplied by the width and height of "
        "their picture",
    ),
    "corners from top left, in thousandths": (
        lambda b, s: (
            1000 * b[1] / s[1],
            1000 * b[0] / s[0],
            1000 * (b[1] + b[3]) / s[1],
            1000 * (b[0] + b[2]) / s[0],
        ),
        "read as y0, x0, y1, x1 and taken from pictures resized to about 1000 x 1000",
    ),
    "squares": (
        lambda b, s: (
            640 * b[0] / s[0],
            640 * b[1] / s[1],
            640 * b[2] / s[0],
            640 * b[3] / s[1],
        ),
        "taken from pictures resized to about 640 x 640",
    ),
    "half": (
        lambda b, s: tuple(b / 2),
        r"multiplied by (2|2.0\d|1.9\d), as of pictures of another size",
    ),
    "double": (
        lambda b, s: tuple(b * 2),
        r"multiplied by (0.5|0.50\d|0.49\d), as of pictures of another size",
    ),
    "swapped": (lambda b, s: (b[1], b[0], b[3], b[2]), "read as y, x, height, width"),
}


@pytest.mark.parametrize("name", BOX_MISTAKES)
def test_boxes_meant_in_another_way(truth: GroundTruth, name: str) -> None:
    change, words = BOX_MISTAKES[name]
    results = detected(truth)
    mistaken = with_boxes(results, *change(results[:, X:SCORE].T, sizes(results, truth).T))
    (line,) = doubts(mistaken, truth)
    pattern = rf"AP50 is 0\.0\d\d; it would be about 0\.[56]\d if boxes were {words} "
    assert re.fullmatch(pattern + re.escape(COCO), line), line


@pytest.mark.parametrize(("steps", "words"), [(1, "lower"), (-1, "higher")])
def test_ids_of_the_next_picture(truth: GroundTruth, steps: int, words: str) -> None:
    results = detected(truth)
    moved = results[:, IMAGE] + 3 * steps
    results = np.column_stack([moved, results[:, X:]])[np.isin(moved, truth.image_ids)]
    assert [line.split(" if ")[1] for line in doubts(results, truth)] == [
        f"image ids were one {words}, in the order of those of {truth.path}"
    ]


def test_pictures_numbered_by_their_file_names(truth: GroundTruth) -> None:
    results = detected(truth)
    by_name = np.argsort(np.array(list(truth.file_names)))
    number = np.argsort(by_name)
    rows = np.searchsorted(truth.image_ids, results[:, IMAGE])
    results[:, IMAGE] = truth.image_ids[number[rows]]
    assert [line.split(" if ")[1] for line in doubts(results, truth)] == [
        f"image ids numbered the pictures of {truth.path} in the order of file names"
    ]


def test_ids_of_the_next_class(tmp_path: Path) -> None:
    truth = truth_file(tmp_path / "val.json", num_classes=9)
    results = detected(truth)
    ids = truth.categories.ids_array
    results[:, CLASS] = ids[np.searchsorted(ids, results[:, CLASS]) + 1]
    assert [line.split(" if ")[1] for line in doubts(results, truth)] == [
        f"category ids were one lower, in the order of those of {truth.path}"
    ]


def test_exchanged_and_single_classes(truth: GroundTruth) -> None:
    results = detected(truth)
    exchanged = results.copy()
    exchanged[:, CLASS] = np.array([0, 4, 3, 2, 1])[results[:, CLASS].astype(int)]
    (line,) = doubts(exchanged, truth)
    question = f" if classes were ignored: do the category ids mean those of {truth.path}?"
    assert question in line
    assert line.split("? ")[1].startswith("Of ")
    assert doubts(exchanged, truth, class_agnostic=True) == []
    results[:, CLASS] = 90
    (line,) = doubts(results, truth)
    assert line.endswith(question)


def test_a_detector_of_the_commonest_class_alone_is_not_accused(tmp_path: Path) -> None:
    truth = truth_file(tmp_path / "val.json", num_classes=8)
    truth.class_columns[np.arange(truth.num_objects) % 8 > 0] = 5
    results = detected(truth, wrong=4)
    results[:, CLASS] = truth.categories.ids[5]
    assert doubts(results, truth, class_agnostic=True) == []
    assert not any("would be" in line for line in doubts(results, truth))


def test_another_threshold_is_named(truth: GroundTruth) -> None:
    results = detected(truth)
    results[:, X:SCORE] /= 2
    (line,) = doubts(results, truth, iou_thresholds=[0.4, 0.6])
    assert line.startswith("AP at IoU 0.4 is 0.0")


def test_without_sizes_what_needs_none_is_told(tmp_path: Path) -> None:
    truth = truth_file(tmp_path / "val.json")
    results = detected(truth)
    truth.sizes_hw[:] = 0
    results[:, 3:5] += results[:, 1:3]
    (line,) = doubts(results, truth)
    assert "read as x0, y0, x1, y1 (" in line


def honest_ones(truth: GroundTruth, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Results of detectors that are bad and make no mistake of format or ids."""
    results = detected(truth, seed=int(rng.integers(99)), wrong=40)
    count = len(results)
    s = sizes(results, truth).astype(float)
    results[:, SCORE] = rng.random(count)
    slots = rng.random((30, 4))[np.arange(count) % 30]
    sides = rng.uniform(0.05, 0.6, s.shape) * s
    middle = np.concatenate([s / 4, s / 2], axis=1) * np.exp(rng.normal(0, 0.04, (count, 4)))
    boxes = {
        "random": np.concatenate([rng.random(s.shape) * (s - sides), sides], axis=1),
        "the middle": middle,
        "the middle of the middle": np.concatenate([s * 0.45, s / 10], axis=1),
        "all": np.concatenate([s * 0, s], axis=1),
        "fixed queries": np.concatenate([slots[:, :2] * s / 2, slots[:, 2:] * s / 2], axis=1),
        "places of others": truth.boxes_xywh[rng.integers(0, truth.num_objects, count)],
    }
    drawn = {name: with_boxes(results, *columns.T) for name, columns in boxes.items()}
    for row in drawn.values():
        row[:, CLASS] = rng.integers(1, len(truth.categories), count)
    seed = int(rng.integers(99))
    drawn["inexact"] = detected(truth, seed=seed, jitter=0.5, wrong=40)
    drawn["weak"] = detected(truth, seed=seed, share=0.1, wrong=40)
    return drawn


def test_bad_detectors_are_not_accused(tmp_path: Path) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        for shape in ((40, 6, 4), (25, 1, 1), (30, 1, 6), (3, 12, 2)):
            num_images, per_image, num_classes = shape
            truth = truth_file(
                tmp_path / "val.json",
                num_images=num_images,
                per_image=per_image,
                num_classes=num_classes,
                seed=seed,
            )
            if seed % 2:  # objects that fill the middle, as of pictures made to classify
                wh = truth.sizes_hw[truth.image_rows, ::-1]
                shares = rng.uniform(0.4, 0.8, wh.shape)
                truth.boxes_xywh[:] = np.concatenate([wh * (1 - shares) / 2, wh * shares], axis=1)
            for name, results in honest_ones(truth, rng).items():
                told = [line for line in doubts(results, truth) if "would be" in line]
                assert told == [], (name, shape, seed)


def test_few_detections_or_objects_are_not_explained(tmp_path: Path) -> None:
    truth = truth_file(tmp_path / "val.json", num_images=19, per_image=1)
    results = detected(truth, share=1)
    results[:, X:SCORE] /= 2
    assert not any("would be" in line for line in doubts(results, truth))
    truth = truth_file(tmp_path / "val.json", num_images=20, per_image=4)
    results = detected(truth, share=1, wrong=1)
    results[:, X:SCORE] /= 2
    assert len(results) == 100
    assert any("would be" in line for line in doubts(results, truth))
    assert not any("would be" in line for line in doubts(results[:99], truth))


def test_huge_boxes_do_not_overflow(truth: GroundTruth) -> None:
    results = detected(truth)
    results[:, X:SCORE] *= 1e97
    (line,) = doubts(results, truth)
    assert re.search(r"if boxes were multiplied by (1|1.0\d|9.9\d?)e-9[78], as of", line)
