"""The augmentation `strong`, for small data sets: crops, zooming out, mosaic, mixup and colours."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from detr_kit.data.compose import A
from detr_kit.data.pictures import Picture, Pictures
from detr_kit.data.pipelines import Augmented, recoloured
from detr_kit.data.placements import (
    Placement,
    covering_view,
    iou_crop,
    mosaic,
    objects_of,
    pixels_of,
    zoom_out,
)
from detr_kit.data.views import relative_view
from detr_kit.sizes import SizeHW, SizeRule

# The share of the pictures that each way of showing them has. Zooming out is rare because a mosaic
# shrinks objects too.
SHARES = {"relative": 0.3, "iou_crop": 0.2, "zoom_out": 0.1, "mosaic": 0.3, "mixup": 0.1}

_MIXUP_BETA = 8.0


class StrongPipeline:
    """Show a picture in one of the ways of `SHARES`, and change its colours by `recolour`.

    The size is what one of `rules` gives the whole picture, so that pictures of one size stay so
    and a batch of them needs no padding. See `strong_pipeline` for the ways.
    """

    def __init__(self, rules: tuple[SizeRule, ...], recolour: A.Compose | None) -> None:
        self.rules = rules
        self.recolour = recolour

    def __call__(self, pictures: Pictures, index: int, *, seed: int) -> Augmented:
        rng = np.random.default_rng(seed)
        way = drawn_way(rng, alone=len(pictures) == 1)
        rule = self.rules[int(rng.integers(len(self.rules)))]
        shown = shown_as(way, pictures, index, rule, rng)
        if self.recolour is None:
            return shown
        image = recoloured(self.recolour, shown.image, rng)
        return replace(shown, image=image)


def strong_pipeline(rules: tuple[SizeRule, ...]) -> StrongPipeline:
    """Return the augmentation `strong`: one of these ways, then a flip and colours.

    - `relative`: as in `small_data`, the whole picture or a crop of 0.6 to 1 of it.
    - `iou_crop`, `zoom_out`, `mosaic`: see the functions in `detr_kit.data.placements`.
    - `mixup`: see `mixed`; of pictures that are not mosaics, and never of one with itself.

    Every picture is flipped with probability 0.5, those of a mosaic one by one. Brightness,
    contrast, saturation and hue change in the ranges of SSD's photometric distortion, a little
    narrower; few pictures become gray or blurred.

    A mosaic may hold the objects of four pictures, and mixup those of two. None is left out to
    keep them under the number of a detector's queries: a match is then found for as many objects
    as there are queries. Where pictures are crowded, give the detector queries for that.

    Sources: Liu et al. 2016, "SSD"; Bochkovskiy et al. 2020, "YOLOv4"; Zhang et al. 2018, "mixup";
    Zhang et al. 2019, "Bag of Freebies for Training Object Detection Neural Networks".
    """
    return StrongPipeline(rules, _photometric())


def drawn_way(rng: np.random.Generator, *, alone: bool) -> str:
    """Draw a way by its share; a picture `alone` in its data set has no other for `mixup`."""
    way = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    return "relative" if alone and way == "mixup" else way


def mixed(first: Augmented, second: Augmented, weight: float) -> Augmented:
    """Blend two pictures of one size, `weight` being the first one's, and keep all objects.

    Source: Zhang et al. 2019, "Bag of Freebies", section 3.1. The paper weighs the loss of each
    object by its picture's share; here all count in full, so weights should be near a half.
    """
    image = cv2.addWeighted(first.image, weight, second.image, 1 - weight, 0)
    boxes = np.concatenate([first.boxes_xyxy, second.boxes_xyxy])
    labels = np.concatenate([first.labels, second.labels])
    known = [part.rows for part in (first, second) if part.rows is not None]
    rows = np.concatenate(known) if len(known) == 2 else None
    return Augmented(image, boxes, labels, rows)


def shown_as(
    way: str, pictures: Pictures, index: int, rule: SizeRule, rng: np.random.Generator
) -> Augmented:
    """Show a picture, and others with it, in one of the ways of `SHARES`, its colours unchanged."""
    picture = pictures[index]
    canvas_hw = rule.target_hw(picture.size_hw)
    if way == "mosaic":
        others = [pictures[int(other)] for other in rng.integers(len(pictures), size=3)]
        return _on_canvas(mosaic([picture, *others], canvas_hw, rng), canvas_hw)
    if way == "iou_crop":
        return _on_canvas([iou_crop(picture, canvas_hw, rng)], canvas_hw)
    if way == "zoom_out":
        return _on_canvas([zoom_out(picture, canvas_hw, rng)], canvas_hw)
    view = relative_view(picture.size_hw, rng, (rule,), min_scale=0.6, max_stretch=1.2)
    shown = _on_canvas([Placement(picture, view)], canvas_hw)
    if way == "relative":
        return shown
    other = pictures[(index + int(rng.integers(1, len(pictures)))) % len(pictures)]
    return mixed(shown, _covering(other, canvas_hw, rng), rng.beta(_MIXUP_BETA, _MIXUP_BETA))


def _covering(picture: Picture, canvas_hw: SizeHW, rng: np.random.Generator) -> Augmented:
    view = covering_view(picture.size_hw, canvas_hw, rng)
    return _on_canvas([Placement(picture, view)], canvas_hw)


def _on_canvas(placements: list[Placement], canvas_hw: SizeHW) -> Augmented:
    return Augmented(pixels_of(placements, canvas_hw), *objects_of(placements, canvas_hw))


def _photometric() -> A.Compose:
    return A.Compose(
        [
            A.ColorJitter(
                brightness=(0.8, 1.2), contrast=(0.7, 1.3), saturation=(0.6, 1.4), hue=(0, 0), p=0.7
            ),
            # In OpenCV's unit of 2 degrees; apart, because turning to HSV and back takes longest.
            A.HueSaturationValue(hue_shift_limit=9, sat_shift_limit=0, val_shift_limit=0, p=0.3),
            # Gray. ToGray would lose the axis of a picture one pixel high or wide.
            A.ColorJitter(
                brightness=(1, 1), contrast=(1, 1), saturation=(0, 0), hue=(0, 0), p=0.03
            ),
            A.Blur(blur_limit=(3, 3), p=0.05),
        ]
    )
