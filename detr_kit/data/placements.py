"""Views of pictures placed on one canvas, and ways to draw them at random.

A crop, a picture on a larger ground and a mosaic are all views at places of a canvas that has the
final size from the start: every picture is resized once, to the pixels it ends up with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from detr_kit.data.pictures import Picture
from detr_kit.data.views import View, visible_boxes
from detr_kit.sizes import SizeHW

# The mean colour of ImageNet: close to 0 after normalising.
FILL_RGB = (124, 116, 104)

# An object is dropped if less than this share of its box is visible, or less than a pixel a side.
MIN_VISIBILITY = 0.15
MIN_PIXELS = 1.0

# SSD's minimum overlaps of a crop with an object; 0 is its crop without such a condition.
_MIN_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
_CROP_TRIES = 50
_MIN_CROP_SIDE = 0.3
_MAX_CROP_STRETCH = 1.5

# SSD's canvas has up to 4 times the picture's sides. Here a picture keeps a short side of some 240
# pixels where it has them: half of COCO's objects are smaller than a cell of stride 32 by then.
_ZOOMED_SHORT_SIDE = 240
_ZOOM_LIMITS = (1.5, 3.0)

_MOSAIC_CENTRE = (0.3, 0.7)
_MIN_COVER_SIDE = 0.5
_MAX_COVER_STRETCH = 1.25


@dataclass(frozen=True)
class Placement:
    """A view of a picture, its top left corner at (`top`, `left`) of a canvas, in whole pixels."""

    picture: Picture
    view: View
    top: int = 0
    left: int = 0

    def objects(self, canvas_hw: SizeHW) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the visible objects' corners in [0, 1] of the canvas, labels and `Picture.rows`.

        The shapes are (m, 4) float32 and twice (m,) int64. Objects are cut to the view; those with
        less than `MIN_VISIBILITY` of their area left, or a side under `MIN_PIXELS`, are dropped.
        """
        boxes = self.view.boxes(self.picture.boxes_xyxy)
        visible, rows = visible_boxes(boxes, self.view.size_hw, min_visibility=MIN_VISIBILITY)
        height, width = self.view.size_hw
        corner = (self.left, self.top, self.left, self.top)
        pixels = visible.astype(np.float64) * (width, height, width, height) + corner
        kept = (pixels[:, 2:] - pixels[:, :2] >= MIN_PIXELS).all(axis=1)
        placed = pixels[kept] / (canvas_hw[1], canvas_hw[0], canvas_hw[1], canvas_hw[0])
        rows = rows[kept]
        return placed.astype(np.float32), self.picture.labels[rows], self.picture.rows[rows]


def pixels_of(placements: Sequence[Placement], canvas_hw: SizeHW) -> np.ndarray:
    """Return the canvas (H, W, 3) uint8 with all placements, `FILL_RGB` where there is none."""
    if len(placements) == 1 and placements[0].view.size_hw == canvas_hw:
        return placements[0].view.pixels(placements[0].picture)
    height, width = canvas_hw
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    # Several times as fast as an assignment that repeats three numbers.
    cv2.rectangle(canvas, (0, 0), (width, height), FILL_RGB, cv2.FILLED)
    for placement in placements:
        height, width = placement.view.size_hw
        rows = slice(placement.top, placement.top + height)
        columns = slice(placement.left, placement.left + width)
        canvas[rows, columns] = placement.view.pixels(placement.picture)
    return canvas


def objects_of(
    placements: Sequence[Placement], canvas_hw: SizeHW
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (m, 4), labels (m,) and rows (m,) of all placements, as `Placement.objects`."""
    objects = [placement.objects(canvas_hw) for placement in placements]
    boxes, labels, rows = map(np.concatenate, zip(*objects, strict=True))
    return boxes, labels, rows


def iou_crop(picture: Picture, canvas_hw: SizeHW, rng: np.random.Generator) -> Placement:
    """Draw a window by its overlap with an object, shown on the whole canvas.

    Each try draws sides of 0.3 to 1 of the picture's, and one of the least IoUs 0, 0.1, 0.3, 0.5,
    0.7 and 0.9; the first window is taken that has it with an object whose centre is inside, and
    without one the whole picture. Pictures without objects get the first window.

    Source: Liu et al. 2016, "SSD", section 2.2, data augmentation. Two things differ:

    - SSD drops every object whose centre is outside. To a set of queries an object that is
      half visible and has no label is background, so here the visible part decides as elsewhere.
    - The window's aspect ratio is within a factor of 1.5 of the picture's, so that objects are
      stretched no more. SSD's is 0.5 to 2, and all its pictures become squares.
    """
    windows = _crop_windows(picture.size_hw, rng)
    minima = rng.choice(_MIN_OVERLAPS, size=_CROP_TRIES)
    if len(picture.boxes_xyxy):
        fitting = np.flatnonzero(_overlaps(windows, picture.boxes_xyxy) >= minima)
    else:
        fitting = np.zeros(1, dtype=np.int64)
    x0, y0, x1, y1 = (0, 0, picture.size_hw[1], picture.size_hw[0])
    if len(fitting):
        x0, y0, x1, y1 = windows[fitting[0]].tolist()
    view = View((x0, y0, x1, y1), canvas_hw, mirrored=rng.random() < 0.5)
    return Placement(picture, view)


def _crop_windows(size_hw: SizeHW, rng: np.random.Generator) -> np.ndarray:
    """Return (`_CROP_TRIES`, 4) corners in whole pixels."""
    shares = rng.uniform(_MIN_CROP_SIDE, 1.0, (_CROP_TRIES, 2))
    shares = np.minimum(shares, _MAX_CROP_STRETCH * shares.min(axis=1, keepdims=True))
    size_wh = np.array(size_hw[::-1])
    lengths = np.maximum(np.rint(shares * size_wh).astype(np.int64), 1)
    starts = rng.integers(0, size_wh - lengths + 1)
    return np.concatenate([starts, starts + lengths], axis=1)


def _overlaps(windows: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return each window's highest IoU with an object whose centre it holds, -1 without one."""
    boxes = boxes_xyxy.astype(np.float64)
    starts, ends = windows[:, None, :2], windows[:, None, 2:]
    low, high = np.maximum(starts, boxes[:, :2]), np.minimum(ends, boxes[:, 2:])
    shared = (high - low).clip(0).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    ious = shared / ((ends - starts).prod(axis=-1) + areas - shared)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    held = ((centres >= starts) & (centres <= ends)).all(axis=-1)
    held &= shared >= MIN_VISIBILITY * areas
    return np.where(held, ious, -1.0).max(axis=1)


def zoom_out(picture: Picture, canvas_hw: SizeHW, rng: np.random.Generator) -> Placement:
    """Draw a place for the whole picture on a canvas that is larger by a ratio from 1.

    The largest ratio of the sides is the canvas's short side in units of 240 pixels, but at least
    1.5 and at most 3.

    Source: Liu et al. 2016, "SSD", section 3.6, data augmentation for small objects.
    """
    low, high = _ZOOM_LIMITS
    ratio = rng.uniform(1.0, min(max(min(canvas_hw) / _ZOOMED_SHORT_SIDE, low), high))
    height, width = (max(round(side / ratio), 1) for side in canvas_hw)
    top, left = rng.integers(0, (canvas_hw[0] - height + 1, canvas_hw[1] - width + 1)).tolist()
    whole = (0, 0, picture.size_hw[1], picture.size_hw[0])
    view = View(whole, (height, width), mirrored=rng.random() < 0.5)
    return Placement(picture, view, top, left)


def mosaic(
    pictures: Sequence[Picture], canvas_hw: SizeHW, rng: np.random.Generator
) -> list[Placement]:
    """Place four pictures around a point within 0.3 to 0.7 of the canvas's sides.

    Each fills its quadrant with a window as in `covering_view`. Quadrants without a pixel, on a
    canvas of few pixels, are left out.

    Source: Bochkovskiy et al. 2020, "YOLOv4", section 3.3.
    """
    y, x = (round(side * rng.uniform(*_MOSAIC_CENTRE)) for side in canvas_hw)
    rows, columns = ((0, y), (y, canvas_hw[0])), ((0, x), (x, canvas_hw[1]))
    quadrants = [(row, column) for row in rows for column in columns]
    placements = []
    for picture, ((top, bottom), (left, right)) in zip(pictures, quadrants, strict=True):
        if bottom > top and right > left:
            view = covering_view(picture.size_hw, (bottom - top, right - left), rng)
            placements.append(Placement(picture, view, top, left))
    return placements


def covering_view(size_hw: SizeHW, target_hw: SizeHW, rng: np.random.Generator) -> View:
    """Draw a window that fills `target_hw` and is stretched by at most a factor of 1.25.

    It is the largest such window of the picture, times 0.5 to 1, at any place.
    """
    height, width = size_hw
    wanted = target_hw[1] / target_hw[0]
    bound = _MAX_COVER_STRETCH
    ratio = wanted * min(max(width / height / wanted, 1 / bound), bound)
    scale = rng.uniform(_MIN_COVER_SIDE, 1.0)
    spans = []
    for side, largest in (
        (height, min(height, width / ratio)),
        (width, min(width, height * ratio)),
    ):
        length = min(max(round(largest * scale), 1), side)
        start = int(rng.integers(0, side - length + 1))
        spans.append((start, start + length))
    (y0, y1), (x0, x1) = spans
    return View((x0, y0, x1, y1), target_hw, mirrored=rng.random() < 0.5)
