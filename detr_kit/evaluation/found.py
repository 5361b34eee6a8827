"""What a detector found, in columns: by the ids of a data set, and by its rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ResultColumns:
    """D detections by the ids of their pictures and categories; `name` is what errors call them.

    `image_ids` and `category_ids` (D,) int64, `boxes_xywh` (D, 4) float64 pixels, `scores` (D,)
    float64; all numbers are finite.
    """

    name: str
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes_xywh: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class FoundObjects:
    """D detections by their pictures and classes in a GroundTruth, in the order of the results.

    `image_rows` and `class_columns` (D,) int32, `boxes_xywh` (D, 4) float64 pixels, `scores` (D,)
    float64.
    """

    name: str
    image_rows: np.ndarray
    class_columns: np.ndarray
    boxes_xywh: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)
