"""An alarm where a detector says the same of every picture, and none where it should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from detr_kit.data.sample import write_sample
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth, load_ground_truth
from detr_kit.evaluation.run import find_in_dataset
from detr_kit.inference import Detector
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.training.alarms import StillnessAlarm, prediction_variation

PICTURES, QUERIES = 40, 20
SIZES_WH = [(640, 480), (480, 640), (300, 300)]


def truth_of(folder: Path, boxes: np.ndarray) -> GroundTruth:
    """Pictures of several sizes with boxes (pictures, n, 4), relative xywh."""
    images, objects = [], []
    for row, of_picture in enumerate(boxes):
        width, height = SIZES_WH[row % len(SIZES_WH)]
        images.append({"id": row + 1, "width": width, "height": height, "file_name": f"{row}.jpg"})
        objects += [
            {"image_id": row + 1, "category_id": 1, "bbox": list(box * (width, height))}
            for box in of_picture.reshape(-1, 2, 2)
        ]
    for number, entry in enumerate(objects):
        (x, y), (width, height) = entry["bbox"]
        entry |= {"id": number, "bbox": [x, y, width, height], "area": width * height}
    coco = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    path = folder / "truth.json"
    path.write_text(json.dumps(coco))
    return load_ground_truth(path)


def random_boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    size = rng.uniform(0.1, 0.4, (*shape, 2))
    return np.concatenate([rng.uniform(0, 1, (*shape, 2)) * (1 - size), size], axis=-1)


def results(truth: GroundTruth, boxes: np.ndarray, scores: np.ndarray) -> ResultColumns:
    """Detections (pictures, n, 4) relative xywh and their scores, in any order of pictures."""
    number = boxes.shape[1]
    scale = truth.sizes_hw[:, None, [1, 0, 1, 0]]
    order = np.random.default_rng(9).permutation(truth.num_images * number)
    return ResultColumns(
        "results",
        truth.image_ids.repeat(number)[order],
        np.ones(len(order), dtype=np.int64),
        (boxes * scale).reshape(-1, 4)[order],
        scores.reshape(-1)[order],
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def truth(tmp_path: Path, rng: np.random.Generator) -> GroundTruth:
    return truth_of(tmp_path, random_boxes(rng, PICTURES, 3))


def collapsed(truth: GroundTruth, rng: np.random.Generator, noise: float) -> ResultColumns:
    boxes = random_boxes(rng, 1, QUERIES) + noise * rng.normal(size=(truth.num_images, QUERIES, 4))
    scores = 0.02 * (1 + noise * rng.normal(size=(truth.num_images, QUERIES)))
    return results(truth, boxes, scores)


def sound(truth: GroundTruth, rng: np.random.Generator, *, score: float) -> ResultColumns:
    """Three objects found roughly; the other queries say the same of every picture."""
    scale = truth.sizes_hw[truth.image_rows][:, [1, 0, 1, 0]]
    objects = (truth.boxes_xywh / scale).reshape(truth.num_images, 3, 4)
    boxes = random_boxes(rng, 1, QUERIES).repeat(truth.num_images, axis=0)
    boxes[:, :3] = objects + 0.02 * rng.normal(size=objects.shape)
    scores = np.full((truth.num_images, QUERIES), 0.05)
    scores[:, :3] = score
    return results(truth, boxes, scores)


@pytest.mark.parametrize(("noise", "most"), [(0, 1e-9), (1e-3, 0.01), (1e-2, 0.08)])
def test_the_same_output_for_every_picture_raises_the_alarm(
    truth: GroundTruth, rng: np.random.Generator, noise: float, most: float
) -> None:
    found = collapsed(truth, rng, noise)
    variation = prediction_variation(found, truth)
    assert variation is not None
    assert noise / 10 <= variation < most
    said = StillnessAlarm(truth).after_evaluation(found, evaluations=3)
    assert said is not None
    assert f"by {variation:.1%} of what the true objects do" in said
    assert "model.init_from" in said


@pytest.mark.parametrize("score", [0.9, 0.3])
def test_a_detector_that_finds_things_raises_none(
    truth: GroundTruth, rng: np.random.Generator, score: float
) -> None:
    found = sound(truth, rng, score=score)
    variation = prediction_variation(found, truth)
    assert variation is not None
    assert 0.5 < variation < 1.1
    assert StillnessAlarm(truth).after_evaluation(found, evaluations=3) is None


def test_what_objects_are_is_their_own_measure(truth: GroundTruth) -> None:
    found = ResultColumns(
        "results",
        truth.image_ids[truth.image_rows],
        np.ones(truth.num_objects, dtype=np.int64),
        truth.boxes_xywh,
        np.full(truth.num_objects, 0.7),
    )
    assert prediction_variation(found, truth) == pytest.approx(1)


def test_pictures_that_are_all_alike_raise_none(tmp_path: Path, rng: np.random.Generator) -> None:
    alike = random_boxes(rng, 1, 3) + 0.005 * rng.normal(size=(PICTURES, 3, 4))
    truth = truth_of(tmp_path, alike)
    for found in (sound(truth, rng, score=0.9), collapsed(truth, rng, 0)):
        assert prediction_variation(found, truth) is None
        assert StillnessAlarm(truth).after_evaluation(found, evaluations=3) is None


def test_too_little_to_tell_from_raises_none(tmp_path: Path, rng: np.random.Generator) -> None:
    few = truth_of(tmp_path, random_boxes(rng, 3, 3))
    assert prediction_variation(collapsed(few, rng, 0), few) is None
    empty = truth_of(tmp_path, random_boxes(rng, 10, 0))
    assert prediction_variation(collapsed(empty, rng, 0), empty) is None
    truth = truth_of(tmp_path, random_boxes(rng, 10, 3))
    nothing = ResultColumns("results", *(np.empty(0, np.int64),) * 2, np.empty((0, 4)), np.empty(0))
    assert prediction_variation(nothing, truth) is None


def test_boxes_without_extent_or_outside_do_not_count(
    truth: GroundTruth, rng: np.random.Generator
) -> None:
    boxes = np.zeros((truth.num_images, 3, 4))
    boxes[:, 1] = (1.5, 0.2, 0.3, 0.3)
    boxes[:, 2] = (0.2, 0.2, 0.3, 0.3)
    scores = rng.uniform(0.1, 1, boxes.shape[:2])
    assert prediction_variation(results(truth, boxes, scores), truth) == pytest.approx(0, abs=1e-9)
    assert prediction_variation(results(truth, boxes[:, :2], scores[:, :2]), truth) is None


def test_the_alarm_waits_for_the_third_evaluation_and_thins_out(
    truth: GroundTruth, rng: np.random.Generator
) -> None:
    alarm, still = StillnessAlarm(truth), collapsed(truth, rng, 1e-3)

    def told(found: ResultColumns, evaluations: range) -> list[int]:
        return [n for n in evaluations if alarm.after_evaluation(found, evaluations=n)]

    assert told(still, range(1, 20)) == [3, 4, 6, 10, 18]
    assert told(sound(truth, rng, score=0.9), range(20, 22)) == []
    assert told(still, range(22, 25)) == [22, 23]


def test_an_untrained_detector_is_still(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", "easy", train=1, val=12)
    annotations = tmp_path / "sample/annotations/val.json"
    truth = load_ground_truth(annotations)
    torch.manual_seed(0)
    numbers = resolve(ModelConfig(name="detr_small", backbone="plain", num_queries=10))
    spec = DetectorSpec(
        numbers,
        CategoryTable(truth.categories.ids, truth.categories.names),
        Preprocessing(SizeRule("square", 64, 64), IMAGENET_MEAN, IMAGENET_STD),
    )
    save_detector(tmp_path / "detector", build_model(numbers, len(spec.categories)), spec)
    detector = Detector.from_checkpoint(tmp_path / "detector")
    variation = prediction_variation(
        find_in_dataset(detector, annotations, tmp_path / "sample/val"), truth
    )
    assert variation is not None
    assert variation < 0.05
