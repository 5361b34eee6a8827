"""Small videos of a moving light, and a detector of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detr_kit.categories import CategoryTable
from detr_kit.detections import Detections
from detr_kit.inference.predictor import Predictor
from detr_kit.preprocess import Preprocessing, SizeRule
from detr_kit.sizes import SizeHW

RATE = 12.5
SIDE = 64
SIZE_HW = (72, 100)


class BrightBox(Predictor):
    """Finds the bright rectangle in a dark picture; `before` is called with every batch."""

    def __init__(self, before: Any = None) -> None:
        table = CategoryTable(ids=(7,), names=("light",))
        super().__init__(table, Preprocessing(SizeRule("square", SIDE), (0, 0, 0), (1, 1, 1)))
        self.before = before
        self.batches = 0

    def detect(
        self, resized: Sequence[np.ndarray], original_sizes_hw: Sequence[SizeHW], names: list[str]
    ) -> list[Detections]:
        self.batches += 1
        if self.before is not None:
            self.before()
        return [
            self._found(picture, size)
            for picture, size in zip(resized, original_sizes_hw, strict=True)
        ]

    def _found(self, picture: np.ndarray, size_hw: SizeHW) -> Detections:
        rows, columns = np.nonzero(picture.mean(axis=2) > 128)
        if not len(rows):
            return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0), [])
        scale = np.array(size_hw[::-1] * 2) / SIDE
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * scale
        return Detections(box[None], np.array([0.9]), np.array([7]), ["light"])


def frame_of(number: int, size_hw: SizeHW = SIZE_HW) -> np.ndarray:
    """A dark picture with a bright square that moves by 2 pixels a frame."""
    frame = np.zeros((*size_hw, 3), np.uint8)
    frame[32:64, 4 + 2 * number : 36 + 2 * number] = (250, 240, 230)
    return frame


def write_video(
    path: Path, frames: int = 12, size_hw: SizeHW = SIZE_HW, codec: str = "MJPG"
) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), RATE, size_hw[::-1])
    for number in range(frames):
        writer.write(frame_of(number, size_hw))
    writer.release()
    return path


def read_video(path: Path) -> tuple[float, list[np.ndarray]]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            return capture.get(cv2.CAP_PROP_FPS), frames
        frames.append(frame)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
