"""Pipelines from a decoded picture and its boxes to what a detector trains on.

A pipeline is called with a picture (H, W, 3) uint8, boxes_xyxy (n, 4) in its pixels and a seed;
the same seed gives the same result. It returns the new picture, the boxes that are still visible
as normalised corners (m, 4) float32, and their rows (m,) in the input, by which labels follow.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

import numpy as np

from detr_kit.errors import DetrKitError
from detr_kit.preprocess import Preprocessing, preprocessing_from
from detr_kit.sizes import SizeRule

if TYPE_CHECKING:
    import albumentations

    from detr_kit.config import ImageSizeConfig

# Visible sides below this many pixels are what rounding leaves of a box that was cut away.
MIN_VISIBLE_PIXELS = 1e-3


class Pipeline(Protocol):
    """What a data set calls for each picture; see the module."""

    def __call__(
        self, image: np.ndarray, boxes_xyxy: np.ndarray, *, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


class ResizePipeline:
    """Resize only: evaluation, and training with the augmentation `none`."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(
        self, image: np.ndarray, boxes_xyxy: np.ndarray, *, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        boxes, rows = _normalized(boxes_xyxy, image)
        return self.preprocessing.apply(image), boxes, rows


class AlbumentationsPipeline:
    """Run an `albumentations.Compose`; boxes cut away take their labels with them.

    `compose` must have been made with `bbox_params()`: rows of boxes travel as a fifth column,
    because label fields pass through a float encoding.
    """

    def __init__(self, compose: albumentations.Compose) -> None:
        self.compose = compose

    def __call__(
        self, image: np.ndarray, boxes_xyxy: np.ndarray, *, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # One stream for all transforms. `set_random_seed` would start every transform's own
        # stream at the same point: a flip would decide on the crop and on the colours.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        boxes, rows = _normalized(boxes_xyxy, image)
        bboxes = np.column_stack([boxes, rows.astype(np.float32)])
        result = self.compose(image=image, bboxes=bboxes)
        image = np.ascontiguousarray(result["image"])
        # Where no box is left, albumentations returns other shapes than (0, 5).
        left = np.asarray(result["bboxes"], dtype=np.float32)
        left = left if left.size else left.reshape(0, 5)
        visible = left[:, :4].clip(0, 1)
        sides = (visible[:, 2:] - visible[:, :2]) * (image.shape[1], image.shape[0])
        kept = (sides > MIN_VISIBLE_PIXELS).all(axis=1)
        return image, visible[kept], left[kept, 4].astype(np.int64)


def _normalized(boxes_xyxy: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return corners in [0, 1] as float32 (n, 4), and rows, of boxes that keep a size as such."""
    width_height = (image.shape[1], image.shape[0]) * 2
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4) / width_height
    boxes = boxes.clip(0, 1).astype(np.float32)
    rows = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    return boxes[rows], rows


def eval_pipeline(preprocessing: Preprocessing) -> ResizePipeline:
    """Return the pipeline of evaluation and prediction."""
    return ResizePipeline(preprocessing)


def train_pipeline(name: str, image_size: ImageSizeConfig) -> Pipeline:
    """Return the training pipeline `name`.

    - `detr`, `yolos`: flip; then with equal chance resize to one of the training sizes, or resize
      the short side to 400, 500 or 600 without a cap, crop with sides of 384 to 600 pixels, and
      resize to one of the training sizes. Boxes are cut to the crop, and stay where any part of
      them does. In `yolos`, sizes are floored to multiples of 16. Sources: DETR paper, appendix
      A.4; the official repositories' `datasets/coco.py`. The numbers of pixels are the official
      ones at any training size: for sizes far from 480-800 use `small_data`.
    - `small_data`: flip; a crop of 0.6 to 1 of the picture, stretched by up to 1.2, for half the
      pictures; brightness, contrast and colour. All of it is relative to the picture. Boxes of
      which less than a tenth is visible are dropped.
    - `none`: resized as in evaluation.

    Raises DetrKitError for an unknown name.
    """
    if name == "none":
        return ResizePipeline(preprocessing_from(image_size))
    if name in ("detr", "yolos"):
        return AlbumentationsPipeline(_official(name, image_size))
    if name == "small_data":
        return AlbumentationsPipeline(_small_data(image_size))
    raise DetrKitError(
        f"unknown augmentation {name!r}; one of 'detr', 'yolos', 'small_data', 'none'"
    )


def bbox_params(min_visibility: float = 0.0) -> albumentations.BboxParams:
    """Return the box settings that `AlbumentationsPipeline` needs."""
    from detr_kit.data.transforms import A

    return A.BboxParams(
        format="albumentations",
        min_width=MIN_VISIBLE_PIXELS,
        min_height=MIN_VISIBLE_PIXELS,
        min_visibility=min_visibility,
        clip=True,
    )


def _train_rules(image_size: ImageSizeConfig, rule: str) -> tuple[SizeRule, ...]:
    sides = image_size.train_short_sides or (image_size.short_side,)
    cap = image_size.train_long_side or image_size.long_side
    return tuple(SizeRule(rule, side, cap) for side in sides)


def _official(name: str, image_size: ImageSizeConfig) -> albumentations.Compose:
    from detr_kit.data.transforms import A, CropOfAbsoluteSize, ResizeByRule

    rule = "yolos_16" if name == "yolos" else image_size.rule
    rules = _train_rules(image_size, rule)
    before_crop = tuple(
        SizeRule("yolos_16" if rule == "yolos_16" else "detr", side) for side in (400, 500, 600)
    )
    crop_between = A.Sequential(
        [ResizeByRule(before_crop), CropOfAbsoluteSize(384, 600), ResizeByRule(rules)], p=1.0
    )
    return A.Compose(
        [A.HorizontalFlip(p=0.5), A.OneOf([ResizeByRule(rules), crop_between], p=1.0)],
        bbox_params=bbox_params(),
    )


def _small_data(image_size: ImageSizeConfig) -> albumentations.Compose:
    from detr_kit.data.transforms import A, CropOfRelativeSize, ResizeByRule

    rules = _train_rules(image_size, image_size.rule)
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.OneOf(
                [
                    ResizeByRule(rules, p=1.0),
                    CropOfRelativeSize(rules, min_scale=0.6, max_stretch=1.2, p=1.0),
                ],
                p=1.0,
            ),
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
            A.HueSaturationValue(hue_shift_limit=8, sat_shift_limit=25, val_shift_limit=15, p=0.3),
        ],
        bbox_params=bbox_params(min_visibility=0.1),
    )
