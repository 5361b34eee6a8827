"""The pictures of a data set with their objects, decoded when asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from detr_kit.data.annotations import CocoAnnotations
from detr_kit.errors import DetrKitError
from detr_kit.images import ImageInput, read_for_training, read_image
from detr_kit.sizes import SizeHW


class Picture:
    """One picture: its size and objects are known, its pixels are read when asked for.

    `boxes_xyxy` is (n, 4) float32 in pixels of `size_hw`, `labels` (n,) int64. `rows` (n,) int64
    are the objects' places in the annotations, -1 unless `first_row` tells where they begin.
    """

    def __init__(
        self,
        source: ImageInput,
        size_hw: SizeHW,
        boxes_xyxy: np.ndarray,
        labels: np.ndarray,
        first_row: int | None = None,
    ) -> None:
        self.source = source
        self.size_hw = size_hw
        self.boxes_xyxy = boxes_xyxy
        self.labels = labels
        self.first_row = first_row

    @property
    def rows(self) -> np.ndarray:
        if self.first_row is None:
            return np.full(len(self.labels), -1, dtype=np.int64)
        return np.arange(self.first_row, self.first_row + len(self.labels), dtype=np.int64)

    def read(self) -> np.ndarray:
        """Return the RGB uint8 (H, W, 3) pixels."""
        return read_image(self.source, expected_size_hw=self.size_hw)

    def read_for_training(self, scale: float) -> np.ndarray:
        """Return the same, or a smaller picture that is not below `scale` times the full size.

        See `detr_kit.images.read_for_training`.
        """
        if isinstance(self.source, (str, Path)):
            return read_for_training(self.source, expected_size_hw=self.size_hw, scale=scale)
        return self.read()


class Pictures(Protocol):
    """What pipelines read from; a list of `Picture` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Picture: ...


class PictureFolder(Sequence[Picture]):
    """The pictures of an annotation file, in its order, from the folder `image_dir`.

    Raises DetrKitError where the folder is missing.
    """

    def __init__(self, annotations: CocoAnnotations, image_dir: str | Path) -> None:
        self.annotations = annotations
        self.image_dir = Path(image_dir)
        if not self.image_dir.is_dir():
            raise DetrKitError(f"{self.image_dir}: no such image folder")

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        boxes_xyxy, labels = self.annotations.objects_of(index)
        # Copies: who changes them shall not change the data set.
        return Picture(
            self.path(index),
            self.annotations.size_hw(index),
            boxes_xyxy.copy(),
            labels.copy(),
            int(self.annotations.offsets[index]),
        )

    def path(self, index: int) -> Path:
        return self.image_dir / self.annotations.file_names[index]

    def missing_files(self) -> list[str]:
        """Return the file names that do not exist; every folder is listed once, no file opened."""
        entries: dict[Path, frozenset[str]] = {}
        missing = []
        for name in self.annotations.file_names:
            path = self.image_dir / name
            if path.parent not in entries:
                entries[path.parent] = _entries(path.parent)
            # Systems that ignore the case of letters list a name otherwise than they find it.
            if path.name not in entries[path.parent] and not path.exists():
                missing.append(name)
        return missing


def _entries(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()
