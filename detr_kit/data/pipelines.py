"""Pipelines from a picture of a data set to what a detector trains on.

A pipeline is called with the pictures, the index of one, and a seed; the same seed gives the same
result. It may look at other pictures than the one asked for, to mix them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from detr_kit.data.pictures import Pictures
from detr_kit.data.views import View, visible_boxes
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeHW

if TYPE_CHECKING:
    import albumentations


@dataclass(frozen=True)
class Augmented:
    """What a detector trains on: `image` (H, W, 3) uint8 and the objects that are visible in it.

    `boxes_xyxy` is (n, 4) float32, corners in [0, 1] of the image; `labels` (n,) int64; `rows` (n,)
    int64 the objects' places in the annotations, as `Picture.rows`; None where unknown.
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    rows: np.ndarray | None = None


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
        return Augmented(image, visible, picture.labels[rows], picture.rows[rows])


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
        return Augmented(image, boxes, picture.labels[rows], picture.rows[rows])


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
