"""The batch that both sides of training_step.py learn from, as each of them takes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detr_kit.config import ImageSizeConfig
from detr_kit.data.annotations import load_annotations
from detr_kit.data.augmentation import train_pipeline
from detr_kit.data.dataset import DetectionDataset, Sample
from detr_kit.data.loading import collate
from detr_kit.preprocess import Preprocessing, preprocessing_from
from detr_kit.structures import CollatedImages, ImageBatch, Target, TargetBatch

COCO_MINI = Path(__file__).resolve().parents[3] / "shared/data/coco_mini"
GENERATED_OBJECTS = 8
PREPROCESSING: Preprocessing = preprocessing_from(ImageSizeConfig())


@dataclass(frozen=True)
class StepBatch:
    """Pictures and objects on the host, as detr_kit's loader gives them."""

    images: CollatedImages
    targets: TargetBatch

    def normalized(self) -> ImageBatch:
        return self.images.normalized(PREPROCESSING.mean, PREPROCESSING.std)

    def for_peer(self) -> dict[str, Any]:
        """Return what an image processor of transformers gives: normalised, and with a mask."""
        batch = self.normalized()
        counts = list(self.targets.counts)
        labels, boxes = self.targets.labels.split(counts), self.targets.boxes_cxcywh.split(counts)
        return {
            "pixel_values": batch.pixels.contiguous(),
            "pixel_mask": (~batch.padding_mask).long(),
            "labels": [
                {"class_labels": own_labels, "boxes": own_boxes}
                for own_labels, own_boxes in zip(labels, boxes, strict=True)
            ],
        }

    @property
    def num_objects(self) -> int:
        """One more than the highest row of an object in its annotations, 0 for generated ones."""
        rows = self.targets.rows
        return 0 if rows is None else int(rows.max(initial=-1)) + 1

    def pinned(self) -> StepBatch:
        return StepBatch(self.images.pin_memory(), self.targets.pin_memory())

    def __str__(self) -> str:
        height, width = self.images.pixels.shape[1:3]
        pictures = ", ".join(f"{own[0]}x{own[1]}" for own in self.images.sizes_hw)
        objects = ", ".join(str(count) for count in self.targets.counts)
        return f"{height}x{width}, pictures of {pictures} with {objects} objects"


def step_batch(size: int, batch_size: int, *, mixed: bool) -> StepBatch:
    """Return pictures of coco_mini in `size` x `size`, or generated ones where it is missing.

    `mixed` keeps their aspect ratio, lying and upright by turns, with the long side at `size`.
    """
    folder = COCO_MINI / "val2017"
    if folder.is_dir():
        samples = _real(folder, size, batch_size, mixed=mixed)
    else:
        samples = _generated(size, batch_size, mixed=mixed)
    return StepBatch(*collate(samples))


def source() -> str:
    return "coco_mini" if (COCO_MINI / "val2017").is_dir() else "generated pictures"


def _real(folder: Path, size: int, batch_size: int, *, mixed: bool) -> list[Sample]:
    annotations = load_annotations(COCO_MINI / "annotations/instances_val2017.json")
    image_size = ImageSizeConfig(rule="fit" if mixed else "square", short_side=size)
    dataset = DetectionDataset(annotations, folder, train_pipeline("none", image_size))
    indices = [i for i in range(len(dataset)) if len(annotations.objects_of(i)[1])]
    if mixed:
        indices = list(_by_turns(indices, [annotations.size_hw(i) for i in indices]))
    return [dataset[indices[i % len(indices)]] for i in range(batch_size)]  # type: ignore[misc]


def _by_turns(indices: list[int], sizes_hw: list[tuple[int, int]]) -> Iterator[int]:
    lying = [i for i, size in zip(indices, sizes_hw, strict=True) if size[0] <= size[1]]
    upright = [i for i, size in zip(indices, sizes_hw, strict=True) if size[0] > size[1]]
    for pair in zip(lying, upright, strict=False):
        yield from pair


def _generated(size: int, batch_size: int, *, mixed: bool) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    short_side = size * 3 // 4 if mixed else size
    samples = []
    for index in range(batch_size):
        size_hw = (short_side, size) if index % 2 == 0 else (size, short_side)
        image = torch.randint(256, (*size_hw, 3), dtype=torch.uint8, generator=generator)
        boxes = _generated_boxes(generator)
        labels = torch.randint(80, (len(boxes),), generator=generator)
        samples.append(Sample(image, Target(labels, boxes, index), size_hw))
    return samples


def _generated_boxes(generator: torch.Generator) -> Tensor:
    sides = 0.05 + 0.4 * torch.rand(GENERATED_OBJECTS, 2, generator=generator)
    centers = sides / 2 + (1 - sides) * torch.rand(GENERATED_OBJECTS, 2, generator=generator)
    return torch.cat([centers, sides], dim=1)
