"""Pictures with their objects, augmented, one at a time."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detr_kit.checkpoints.listing import listed
from detr_kit.data.annotations import CocoAnnotations
from detr_kit.data.pictures import PictureFolder
from detr_kit.data.pipelines import Pipeline
from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.images import ImageError
from detr_kit.sizes import SizeHW
from detr_kit.structures import Target

# (epoch, index), and which repetition of the picture in the epoch where it comes several times. A
# key that tells the epoch reaches workers that live through all epochs.
SampleKey = tuple[int, int] | tuple[int, int, int]
OnBadImage = Literal["raise", "replace", "leave_out"]

# Sets the seeds of replaced pictures apart from those of repeated ones.
_REPLACED = 2**32 - 1
# So many pictures are tried in the place of an unreadable one.
_ATTEMPTS = 20


class SampleError(DetrKitError):
    """A picture cannot be used.

    A data loader raises the error of a worker anew with the worker's traceback as its message;
    the last line of that is the message that users need.
    """

    def __init__(self, message: str) -> None:
        last_line = message.strip().splitlines()[-1]
        super().__init__(last_line.removeprefix(f"{__name__}.{type(self).__name__}: "))


class SkippedPicturesWarning(DetrKitWarning):
    """Pictures of the validation split could not be read."""


@dataclass(frozen=True)
class Sample:
    """A picture (H, W, 3) uint8 as augmented, its objects, and the size of the file it came from.

    `skipped` says why other pictures were left out, of which this one takes the place.
    """

    image: Tensor
    target: Target
    original_size_hw: SizeHW
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Missing:
    """An unreadable picture, left out of its batch."""

    skipped: tuple[str, ...]


class DetectionDataset(Dataset[Sample | Missing]):
    """The pictures of `annotations`, read from `image_dir` and passed through `pipeline`.

    `dataset[epoch, index]` and `dataset[index]` (epoch 0) give a Sample. Augmentation depends on
    `seed` and the key and on nothing else, so not on the number of workers.

    Unreadable pictures, and those whose size is not the one in the annotation file, raise
    DetrKitError on access; with `on_bad_image="replace"`, another picture, drawn by the key,
    takes their place; with "leave_out", they are Missing.

    Raises DetrKitError for a missing folder.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        image_dir: str | Path,
        pipeline: Pipeline,
        *,
        seed: int = 0,
        on_bad_image: OnBadImage = "raise",
    ) -> None:
        self.pictures = PictureFolder(annotations, image_dir)
        self.image_ids = annotations.image_ids
        self.pipeline = pipeline
        self.seed = seed
        self.on_bad_image = on_bad_image

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | SampleKey) -> Sample | Missing:
        key = key if isinstance(key, tuple) else (0, key)
        try:
            if self.on_bad_image == "replace":
                return self._sample_or_another(key)
            return self._sample(key, key[1])
        except ImageError as error:
            if self.on_bad_image == "leave_out":
                return Missing((str(error),))
            raise SampleError(f"{error} (on_bad_image=skip goes on without it)") from error
        except DetrKitError as error:
            raise SampleError(str(error)) from error

    def _sample_or_another(self, key: SampleKey) -> Sample:
        skipped: list[str] = []
        index = key[1]
        rng = np.random.default_rng(sample_seed(self.seed, (*key, _REPLACED)))
        seeds: tuple[int, ...] = key
        while True:
            try:
                return self._sample(seeds, index, tuple(skipped))
            except ImageError as error:
                skipped.append(str(error))
                if len(skipped) == _ATTEMPTS:
                    raise DetrKitError(
                        f"{error} (the last of {_ATTEMPTS} pictures that were tried)"
                    ) from error
                if error.name == str(self.pictures.path(index)):
                    index = int(rng.integers(len(self)))  # else it was a partner: draw others
            seeds = (*key, _REPLACED, len(skipped))

    def _sample(self, key: Sequence[int], index: int, skipped: tuple[str, ...] = ()) -> Sample:
        found = self.pipeline(self.pictures, index, seed=sample_seed(self.seed, key))
        target = Target(
            labels=torch.from_numpy(found.labels),
            boxes_cxcywh=torch.from_numpy(_cxcywh(found.boxes_xyxy)),
            image_id=int(self.image_ids[index]),
            rows=found.rows,
        )
        size_hw = self.pictures.annotations.size_hw(index)
        return Sample(torch.from_numpy(found.image), target, size_hw, skipped)


def _cxcywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return centres and sizes (n, 4) float32; for a few boxes, numpy is faster than torch."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=1)


def sample_seed(seed: int, key: Sequence[int]) -> int:
    """Return the 64-bit seed of a picture's augmentation from the run's seed and the key."""
    numbers = ",".join(map(str, (seed, *key)))
    return int.from_bytes(hashlib.blake2b(numbers.encode(), digest_size=8).digest(), "big")


def warn_of_skipped(skipped: Sequence[str]) -> None:
    """Warn that an evaluation lacks pictures, naming the first."""
    if skipped:
        warnings.warn(
            "pictures that could not be read count as without detections: "
            f"{listed(sorted(set(skipped)), 3)}",
            SkippedPicturesWarning,
            stacklevel=3,
        )
