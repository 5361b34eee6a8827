"""Albumentations transforms for the geometry of detection recipes.

Importing this module imports albumentations, which takes seconds: import it where it is used.
Boxes reach the transforms as (n, 5) arrays: normalised corners and the row of the box.
"""

from __future__ import annotations

import os
from typing import Any

# Without it, the import of albumentations asks a package registry for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import numpy as np

from detr_kit.preprocess import resize_for_training
from detr_kit.sizes import SizeHW, SizeRule


class ResizeByRule(A.DualTransform):
    """Resize by one of `rules`, each equally likely."""

    def __init__(self, rules: tuple[SizeRule, ...], p: float = 1.0) -> None:
        super().__init__(p=p)
        self.rules = rules

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        rule = self.py_random.choice(self.rules)
        return {"size_hw": rule.target_hw(tuple(params["shape"][:2]))}

    def apply(self, img: np.ndarray, size_hw: SizeHW = (0, 0), **params: Any) -> np.ndarray:
        return resize_for_training(img, size_hw)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        return bboxes


class CropOfAbsoluteSize(A.DualTransform):
    """Crop at a random place with sides drawn from [min_side, max_side], capped by the picture."""

    def __init__(self, min_side: int, max_side: int, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.min_side = min_side
        self.max_side = max_side

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        (y0, height), (x0, width) = (self._draw(side) for side in params["shape"][:2])
        return {"window": (x0, y0, x0 + width, y0 + height)}

    def _draw(self, side: int) -> tuple[int, int]:
        """Return start and length of the crop along a side."""
        length = self.py_random.randint(min(self.min_side, side), min(self.max_side, side))
        return self.py_random.randint(0, side - length), length

    def apply(
        self, img: np.ndarray, window: tuple[int, int, int, int] = (0, 0, 0, 0), **params: Any
    ) -> np.ndarray:
        return _crop(img, window)

    def apply_to_bboxes(
        self, bboxes: np.ndarray, window: tuple[int, int, int, int] = (0, 0, 0, 0), **params: Any
    ) -> np.ndarray:
        return _crop_boxes(bboxes, window, params["shape"])


class CropOfRelativeSize(A.DualTransform):
    """Crop a window of `min_scale` to all of the picture, then resize by one of `rules`.

    The window's aspect ratio differs from the picture's by a factor in [1 / max_stretch,
    max_stretch], and it is resized to the size that the rule gives the whole picture: pictures of
    one size stay so and a batch of them needs no padding.
    """

    def __init__(
        self, rules: tuple[SizeRule, ...], min_scale: float, max_stretch: float, p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        self.rules = rules
        self.min_scale = min_scale
        self.max_stretch = max_stretch

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        size_hw = tuple(params["shape"][:2])
        scale = self.py_random.uniform(self.min_scale, 1.0)
        stretch = self.max_stretch ** self.py_random.uniform(-0.5, 0.5)
        (y0, height), (x0, width) = (
            self._draw(side, scale * factor)
            for side, factor in zip(size_hw, (stretch, 1 / stretch), strict=True)
        )
        return {
            "window": (x0, y0, x0 + width, y0 + height),
            "size_hw": self.py_random.choice(self.rules).target_hw(size_hw),
        }

    def _draw(self, side: int, fraction: float) -> tuple[int, int]:
        length = min(max(round(side * fraction), 1), side)
        return self.py_random.randint(0, side - length), length

    def apply(
        self,
        img: np.ndarray,
        window: tuple[int, int, int, int] = (0, 0, 0, 0),
        size_hw: SizeHW = (0, 0),
        **params: Any,
    ) -> np.ndarray:
        return resize_for_training(_crop(img, window), size_hw)

    def apply_to_bboxes(
        self, bboxes: np.ndarray, window: tuple[int, int, int, int] = (0, 0, 0, 0), **params: Any
    ) -> np.ndarray:
        return _crop_boxes(bboxes, window, params["shape"])


def _crop(image: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = window
    return image[y0:y1, x0:x1]


def _crop_boxes(
    boxes: np.ndarray, window: tuple[int, int, int, int], shape: tuple[int, ...]
) -> np.ndarray:
    """Renormalise boxes by the window.

    They are not clipped: albumentations does so after each step, and learns from what it cuts
    off how much of a box is visible.
    """
    x0, y0, x1, y1 = window
    origin = np.array([x0, y0, x0, y0], dtype=np.float32)
    window_wh = np.array([x1 - x0, y1 - y0] * 2, dtype=np.float32)
    picture_wh = np.array([shape[1], shape[0]] * 2, dtype=np.float32)
    moved = boxes.copy()
    moved[:, :4] = (boxes[:, :4] * picture_wh - origin) / window_wh
    return moved
