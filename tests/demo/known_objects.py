"""A predictor that knows what is in every picture."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from detr_kit.categories import CategoryTable
from detr_kit.detections import Detections
from detr_kit.inference.predictor import Predictor
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeHW, SizeRule

MARKUP_NAME = "<b onclick=\"alert('x')\">&"


class Knowing(Predictor):
    """Finds the same four objects in every picture, in shares of its size."""

    device = "cpu"

    def __init__(self) -> None:
        preprocessing = Preprocessing(SizeRule("fit", 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        super().__init__(CategoryTable((1, 2, 7), ("cat", "dog", MARKUP_NAME)), preprocessing)
        self.calls = 0
        self.go_on = threading.Event()  # cleared, the model waits
        self.go_on.set()

    def detect(
        self, resized: Sequence[np.ndarray], original_sizes_hw: Sequence[SizeHW], names: list[str]
    ) -> list[Detections]:
        self.calls += 1
        assert self.go_on.wait(timeout=30)
        return [found(size_hw) for size_hw in original_sizes_hw]


def found(size_hw: SizeHW) -> Detections:
    """Two cats that overlap much, a dog and something with a nasty name."""
    height, width = size_hw
    shares = np.array(
        [[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.52], [0.5, 0.5, 1.0, 1.0], [0.0, 0.6, 0.2, 0.9]]
    )
    return Detections(
        shares * (width, height, width, height),
        np.array([0.9, 0.8, 0.6, 0.3]),
        np.array([1, 1, 2, 7]),
        ["cat", "cat", "dog", MARKUP_NAME],
    )
