"""Objects keep their place in the annotations through every augmentation."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detr_kit.config import AUGMENTATIONS, ImageSizeConfig
from detr_kit.data.annotations import CocoAnnotations, load_annotations
from detr_kit.data.augmentation import train_pipeline
from detr_kit.data.dataset import DetectionDataset
from detr_kit.data.loading import collate
from detr_kit.data.pictures import Pictures
from detr_kit.data.pipelines import Augmented
from detr_kit.data.sample import write_sample
from detr_kit.structures import Target, TargetBatch

SQUARE = ImageSizeConfig(rule="square", short_side=64)
FLIP_AND_SHIFT = {
    "__class_fullname__": "Compose",
    "p": 1.0,
    "transforms": [
        {"__class_fullname__": "HorizontalFlip", "p": 0.5},
        {"__class_fullname__": "Affine", "translate_percent": 0.4, "p": 1.0},
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_sample(folder, "easy", seed=1, train=12, val=1)
    return folder


@pytest.fixture(scope="module")
def labelled_by_row(place: Path) -> CocoAnnotations:
    """Annotations whose labels are the rows of the objects."""
    loaded = load_annotations(place / "annotations/train.json")
    return replace(loaded, labels=np.arange(loaded.num_objects))


@pytest.mark.parametrize("augmentation", [*AUGMENTATIONS, FLIP_AND_SHIFT], ids=str)
def test_rows_follow_the_objects(
    place: Path, labelled_by_row: CocoAnnotations, augmentation: str | dict[str, Any]
) -> None:
    dataset = DetectionDataset(
        labelled_by_row, place / "train", train_pipeline(augmentation, SQUARE)
    )
    samples = [dataset[epoch, index] for epoch in range(3) for index in range(len(dataset))]
    _, targets = collate(samples)
    assert targets.rows is not None
    assert targets.rows.dtype == np.int64
    np.testing.assert_array_equal(targets.rows, targets.labels.numpy())
    if augmentation not in ("detr", "yolos"):  # their crops are larger than these pictures
        assert len(np.unique(targets.rows)) > labelled_by_row.num_objects / 2


class Halving:
    """A pipeline by other hands, which knows of no rows."""

    def __call__(self, pictures: Pictures, index: int, *, seed: int) -> Augmented:
        picture = pictures[index]
        height, width = picture.size_hw
        boxes = picture.boxes_xyxy / np.float32((width, height, width, height))
        return Augmented(picture.read()[::2, ::2].copy(), boxes, picture.labels)


def test_rows_that_a_pipeline_does_not_tell_are_unknown(
    place: Path, labelled_by_row: CocoAnnotations
) -> None:
    dataset = DetectionDataset(labelled_by_row, place / "train", Halving())
    _, targets = collate([dataset[index] for index in range(len(dataset))])
    assert targets.rows is not None
    assert targets.rows.tolist() == [-1] * len(targets.labels)


def test_rows_stay_on_the_host_and_reach_other_processes() -> None:
    target = Target(torch.tensor([3]), torch.rand(1, 4), 7, np.array([11]))
    batch = TargetBatch.from_targets([target, replace(target, rows=None)])
    assert batch.rows is not None
    assert batch.rows.tolist() == [11, -1]
    moved = pickle.loads(pickle.dumps(batch.to("cpu")))
    assert moved.rows.tolist() == [11, -1]
    empty = TargetBatch.from_targets([])
    assert empty.rows is not None
    assert empty.rows.shape == (0,)
