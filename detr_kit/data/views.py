"""Crop, resize and flip of a picture as one operation, and the ways to draw it at random.

A chain of resize, crop and resize reads one window of the picture in the end. Computed first, the
window is resized once: nothing is resampled twice, and what lies outside is never touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from detr_kit.data.pictures import Picture
from detr_kit.preprocess import resize_for_training, resize_window
from detr_kit.sizes import SizeHW, SizeRule

# Visible sides below this many pixels are what rounding leaves of a box that was cut away.
MIN_VISIBLE_PIXELS = 1e-3

# The numbers of pixels of the official recipes: short sides before the crop, sides of the crop.
_BEFORE_CROP = (400, 500, 600)
_CROP_SIDES = (384, 600)

# A JPEG is decoded in a reduced size where that is still this much larger than the view. The
# decoder's reduction is a plain mean of pixels; what is left to the antialiased resize hides it:
# on photographs the mean difference is about 1 of 255 levels, without the margin about 2.
_DRAFT_MARGIN = 1.5


@dataclass(frozen=True)
class View:
    """A window of a picture, in its whole pixels, resized to `size_hw` and then mirrored or not."""

    window_xyxy: tuple[int, int, int, int]
    size_hw: SizeHW
    mirrored: bool = False

    @property
    def window_hw(self) -> SizeHW:
        x0, y0, x1, y1 = self.window_xyxy
        return y1 - y0, x1 - x0

    def pixels(self, picture: Picture) -> np.ndarray:
        """Return the view's (H, W, 3) uint8 pixels, contiguous."""
        scale = max(
            side / window for side, window in zip(self.size_hw, self.window_hw, strict=True)
        )
        image = picture.read_for_training(scale * _DRAFT_MARGIN)
        x0, y0, x1, y1 = self.window_xyxy
        if image.shape[:2] == picture.size_hw:
            window = image[y0:y1, x0:x1]
            # Mirrored before it grows or after it has shrunk: there are fewer pixels.
            if self.mirrored and scale >= 1:
                return resize_for_training(cv2.flip(window, 1), self.size_hw)
            resized = resize_for_training(window, self.size_hw)
        else:
            # Sizes of reduced files are rounded up: the last pixel reaches beyond the picture.
            factor = round(max(picture.size_hw) / max(image.shape))
            reduced = (x0 / factor, y0 / factor, x1 / factor, y1 / factor)
            resized = resize_window(image, reduced, self.size_hw)
        return cv2.flip(resized, 1) if self.mirrored else np.ascontiguousarray(resized)

    def boxes(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Return boxes (n, 4) in pixels of the picture as corners of the view, not yet cut to it.

        The result is float64, the view reaching from 0 to 1.
        """
        x0, y0, _, _ = self.window_xyxy
        height, width = self.window_hw
        moved = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4) - (x0, y0, x0, y0)
        moved /= (width, height, width, height)
        if self.mirrored:
            moved[:, [0, 2]] = 1 - moved[:, [2, 0]]
        return moved


def visible_boxes(
    boxes: np.ndarray, size_hw: SizeHW, *, min_visibility: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Cut corners to [0, 1]; return what is left as float32 (m, 4), and its rows (m,).

    Boxes are dropped that have no width or height left in a picture of `size_hw`, or less than
    the share `min_visibility` of their area.
    """
    # Column by column: over so few boxes, numpy's reductions cost more than the arithmetic.
    cut = boxes.clip(0, 1)
    widths, heights = cut[:, 2] - cut[:, 0], cut[:, 3] - cut[:, 1]
    kept = (widths * size_hw[1] > MIN_VISIBLE_PIXELS) & (heights * size_hw[0] > MIN_VISIBLE_PIXELS)
    if min_visibility:
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        kept &= widths * heights >= min_visibility * areas
    rounded = cut.astype(np.float32)
    kept &= (rounded[:, 2] > rounded[:, 0]) & (rounded[:, 3] > rounded[:, 1])
    rows = np.flatnonzero(kept)
    return rounded[rows], rows


def whole_view(
    size_hw: SizeHW, rng: np.random.Generator, rules: tuple[SizeRule, ...], *, mirror: float = 0.5
) -> View:
    """Draw one of `rules`, each equally likely, for the whole picture."""
    size = _one_of(rules, rng).target_hw(size_hw)
    return View((0, 0, size_hw[1], size_hw[0]), size, mirrored=rng.random() < mirror)


def official_view(size_hw: SizeHW, rng: np.random.Generator, rules: tuple[SizeRule, ...]) -> View:
    """Draw a view by the recipe of DETR: the whole picture, or a crop between two resizes.

    Source: DETR paper, appendix A.4; the official repository's `datasets/coco.py`. The window is
    rounded to whole pixels of the picture.
    """
    if rng.random() < 0.5:
        return whole_view(size_hw, rng, rules)
    rule = "yolos_16" if rules[0].rule == "yolos_16" else "detr"
    between_hw = SizeRule(rule, int(rng.choice(_BEFORE_CROP))).target_hw(size_hw)
    (top, crop_height), (left, crop_width) = (_crop(side, rng) for side in between_hw)
    by_h, by_w = (full / side for full, side in zip(size_hw, between_hw, strict=True))
    y0, y1 = _whole_pixels(top * by_h, (top + crop_height) * by_h, size_hw[0])
    x0, x1 = _whole_pixels(left * by_w, (left + crop_width) * by_w, size_hw[1])
    size = _one_of(rules, rng).target_hw((crop_height, crop_width))
    return View((x0, y0, x1, y1), size, mirrored=rng.random() < 0.5)


def relative_view(
    size_hw: SizeHW,
    rng: np.random.Generator,
    rules: tuple[SizeRule, ...],
    *,
    min_scale: float,
    max_stretch: float,
) -> View:
    """Draw the whole picture, or a window of `min_scale` to all of it, with equal chance.

    The window's aspect ratio differs from the picture's by a factor in [1 / max_stretch,
    max_stretch], and it is resized to the size that a rule gives the whole picture: pictures of
    one size stay so and a batch of them needs no padding.
    """
    if rng.random() < 0.5:
        return whole_view(size_hw, rng, rules)
    scale = rng.uniform(min_scale, 1.0)
    stretch = max_stretch ** rng.uniform(-0.5, 0.5)
    spans = []
    for side, factor in zip(size_hw, (stretch, 1 / stretch), strict=True):
        length = min(max(round(side * scale * factor), 1), side)
        start = int(rng.integers(0, side - length + 1))
        spans.append((start, start + length))
    (y0, y1), (x0, x1) = spans
    size = _one_of(rules, rng).target_hw(size_hw)
    return View((x0, y0, x1, y1), size, mirrored=rng.random() < 0.5)


def _one_of(rules: tuple[SizeRule, ...], rng: np.random.Generator) -> SizeRule:
    return rules[int(rng.integers(len(rules)))]


def _crop(side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return start and length of the official crop along a side."""
    low, high = _CROP_SIDES
    length = int(rng.integers(min(low, side), min(high, side) + 1))
    return int(rng.integers(0, side - length + 1)), length


def _whole_pixels(start: float, end: float, side: int) -> tuple[int, int]:
    first = min(round(start), side - 1)
    return first, min(max(round(end), first + 1), side)
