"""Pictures with their objects, one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detr_kit.boxes import xyxy_to_cxcywh
from detr_kit.data.annotations import CocoAnnotations
from detr_kit.data.augmentation import Pipeline
from detr_kit.errors import DetrKitError
from detr_kit.preprocess import read_image
from detr_kit.sizes import SizeHW
from detr_kit.structures import Target

# The picture (H, W, 3) uint8 as augmented, its objects, and the size of the file it came from.
Sample = tuple[Tensor, Target, SizeHW]
# A key that tells the epoch reaches workers that live through all epochs.
SampleKey = tuple[int, int]


class SampleError(DetrKitError):
    """A picture cannot be used.

    A data loader raises the error of a worker anew with the worker's traceback as its message;
    the last line of that is the message that users need.
    """

    def __init__(self, message: str) -> None:
        last_line = message.strip().splitlines()[-1]
        super().__init__(last_line.removeprefix(f"{__name__}.{type(self).__name__}: "))


class DetectionDataset(Dataset[Sample]):
    """The pictures of `annotations`, read from `image_dir` and passed through `pipeline`.

    `dataset[epoch, index]` and `dataset[index]` (epoch 0) give a picture (H, W, 3) uint8, its
    Target and the size of its file. Augmentation depends on `seed`, epoch and index and on
    nothing else, so not on the number of workers.

    Raises DetrKitError for a missing folder, and on access for unreadable pictures and for those
    whose size is not the one in the annotation file.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        image_dir: str | Path,
        pipeline: Pipeline,
        *,
        seed: int = 0,
    ) -> None:
        self.annotations = annotations
        self.image_dir = Path(image_dir)
        self.pipeline = pipeline
        self.seed = seed
        if not self.image_dir.is_dir():
            raise DetrKitError(f"{self.image_dir}: no such image folder")

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        try:
            return self._sample(epoch, index)
        except DetrKitError as error:
            raise SampleError(str(error)) from error

    def image_path(self, index: int) -> Path:
        return self.image_dir / str(self.annotations.file_names[index])

    def _sample(self, epoch: int, index: int) -> Sample:
        size_hw = self.annotations.size_hw(index)
        image = read_image(self.image_path(index), expected_size_hw=size_hw)
        boxes_xyxy, labels = self.annotations.objects_of(index)
        seed = sample_seed(self.seed, epoch, index)
        image, boxes, rows = self.pipeline(image, boxes_xyxy, seed=seed)
        target = Target(
            labels=torch.from_numpy(labels[rows]),
            boxes_cxcywh=xyxy_to_cxcywh(torch.from_numpy(boxes)),
            image_id=int(self.annotations.image_ids[index]),
        )
        return torch.from_numpy(image), target, size_hw


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Return the 64-bit seed of one picture in one epoch."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0])
