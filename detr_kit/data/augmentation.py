"""Pipelines from a picture of a data set to what a detector trains on.

A pipeline is called with the pictures, the index of one, and a seed; the same seed gives the same
result. It may look at other pictures than the one asked for, to mix them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from detr_kit.data.pictures import Pictures
from detr_kit.data.views import View, official_view, relative_view, visible_boxes
from detr_kit.errors import DetrKitError
from detr_kit.preprocess import Preprocessing, preprocessing_from
from detr_kit.sizes import SizeHW, SizeRule

if TYPE_CHECKING:
    import albumentations

    from detr_kit.config import ImageSizeConfig


@dataclass(frozen=True)
class Augmented:
    """What a detector trains on: `image` (H, W, 3) uint8 and the objects that are visible in it.

    `boxes_xyxy` is (n, 4) float32, corners in [0, 1] of the image; `labels` (n,) int64.
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray


class Pipeline(Protocol):
    """What a data set calls for each picture; see the module."""

    def __call__(self, pictures: Pictures, index: int, *, seed: int) -> Augmented: ...


class ResizePipeline:
    """Resize only: evaluation, and training with the augmentation `none`."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, pictures: Pictures, index: int, *, seed: int) -> Augmented:
        picture = pictures[index]
        height, width = picture.size_hw
        image = self.preprocessing.apply(picture.read())
        boxes = picture.boxes_xyxy.astype(np.float64) / (width, height, width, height)
        visible, rows = visible_boxes(boxes, picture.size_hw)
        return Augmented(image, visible, picture.labels[rows])


class ViewPipeline:
    """Show one view of the picture, drawn by `draw`, and change its colours by `recolour`.

    Boxes of which less than `min_visibility` of the area is in the view are dropped.
    """

    def __init__(
        self,
        draw: Callable[[SizeHW, np.random.Generator], View],
        *,
        min_visibility: float = 0.0,
        recolour: albumentations.Compose | None = None,
    ) -> None:
        self.draw = draw
        self.min_visibility = min_visibility
        self.recolour = recolour

    def __call__(self, pictures: Pictures, index: int, *, seed: int) -> Augmented:
        rng = np.random.default_rng(seed)
        picture = pictures[index]
        view = self.draw(picture.size_hw, rng)
        image = view.pixels(picture)
        if self.recolour is not None:
            image = recoloured(self.recolour, image, rng)
        boxes, rows = visible_boxes(
            view.boxes(picture.boxes_xyxy), view.size_hw, min_visibility=self.min_visibility
        )
        return Augmented(image, boxes, picture.labels[rows])


def seed_compose(compose: albumentations.Compose, rng: np.random.Generator) -> None:
    """Let all transforms draw from one stream.

    `set_random_seed` would start every transform's own stream at the same point: the first one's
    draw would decide the others'.
    """
    compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))


def recoloured(
    compose: albumentations.Compose, image: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Apply transforms that move no pixel."""
    seed_compose(compose, rng)
    return np.ascontiguousarray(compose(image=image)["image"])


def eval_pipeline(preprocessing: Preprocessing) -> ResizePipeline:
    """Return the pipeline of evaluation and prediction."""
    return ResizePipeline(preprocessing)


def train_pipeline(augmentation: str | Mapping[str, Any], image_size: ImageSizeConfig) -> Pipeline:
    """Return the training pipeline of a name, or of what `albumentations.to_dict` describes.

    - `detr`, `yolos`: flip; then with equal chance resize to one of the training sizes, or resize
      the short side to 400, 500 or 600 without a cap, crop with sides of 384 to 600 pixels, and
      resize to one of the training sizes. Boxes are cut to the crop, and stay where any part of
      them does. In `yolos`, sizes are floored to multiples of 16. Sources: DETR paper, appendix
      A.4; the official repositories' `datasets/coco.py`. The numbers of pixels are the official
      ones at any training size: for sizes far from 480-800 use `small_data`.
    - `small_data`: flip; a crop of 0.6 to 1 of the picture, stretched by up to 1.2, for half the
      pictures; brightness, contrast and colour. All of it is relative to the picture. Boxes of
      which less than a tenth is visible are dropped.
    - `strong`: see `detr_kit.data.strong`.
    - `none`: resized as in evaluation.
    - a mapping: the transforms of albumentations, then resized to one of the training sizes.

    Raises DetrKitError for an unknown name and for transforms that cannot be built.
    """
    if isinstance(augmentation, Mapping):
        from detr_kit.data.compose import AlbumentationsPipeline, compose_from_dict

        compose = compose_from_dict(augmentation, "data.augmentation")
        return AlbumentationsPipeline(compose, train_rules(image_size))
    name = augmentation
    rules = train_rules(image_size, name)
    if name == "none":
        return ResizePipeline(preprocessing_from(image_size))
    if name in ("detr", "yolos"):
        return ViewPipeline(partial(official_view, rules=rules))
    if name == "small_data":
        draw = partial(relative_view, rules=rules, min_scale=0.6, max_stretch=1.2)
        return ViewPipeline(draw, min_visibility=0.1, recolour=_slight_colours())
    if name == "strong":
        from detr_kit.data.strong import strong_pipeline

        return strong_pipeline(rules)
    raise DetrKitError(
        f"unknown augmentation {name!r}; one of 'detr', 'yolos', 'small_data', 'strong', 'none'"
    )


def train_rules(image_size: ImageSizeConfig, name: str = "") -> tuple[SizeRule, ...]:
    """Return the rules of which training picks one for each picture."""
    rule = "yolos_16" if name == "yolos" else image_size.rule
    sides = image_size.train_short_sides or (image_size.short_side,)
    cap = image_size.train_long_side or image_size.long_side
    return tuple(SizeRule(rule, side, cap) for side in sides)


def _slight_colours() -> albumentations.Compose:
    from detr_kit.data.compose import A

    return A.Compose(
        [
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
            A.HueSaturationValue(hue_shift_limit=8, sat_shift_limit=25, val_shift_limit=15, p=0.3),
        ]
    )
