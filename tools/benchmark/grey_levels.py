"""What it changes to read one window of a picture in place of DETR's resize, crop and resize.

Used by pipeline.py.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image
from recipes import BEFORE_CROP, CROP_SIDES, LONG_SIDE, SHORT_SIDES, Annotated

from detr_kit.data.pictures import Picture
from detr_kit.data.views import View
from detr_kit.images import read_image
from detr_kit.sizes import SizeHW, SizeRule

BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Geometry:
    """The official chain: resize to `between_hw`, crop `crop_xyxy` of that, resize to `size_hw`."""

    between_hw: SizeHW
    crop_xyxy: tuple[int, int, int, int]
    size_hw: SizeHW

    def window_xyxy(self, size_hw: SizeHW) -> tuple[float, float, float, float]:
        """Return the window of a picture of `size_hw` that the chain reads, in its pixels."""
        by_h, by_w = (full / side for full, side in zip(size_hw, self.between_hw, strict=True))
        x0, y0, x1, y1 = self.crop_xyxy
        return x0 * by_w, y0 * by_h, x1 * by_w, y1 * by_h


def drawn_geometry(size_hw: SizeHW, draw: random.Random) -> Geometry:
    between_hw = SizeRule("detr", draw.choice(BEFORE_CROP)).target_hw(size_hw)
    height, width = (draw.randint(CROP_SIDES[0], min(CROP_SIDES[1], s)) for s in between_hw)
    top, left = draw.randint(0, between_hw[0] - height), draw.randint(0, between_hw[1] - width)
    rule = SizeRule("detr", draw.choice(SHORT_SIDES), LONG_SIDE)
    crop = (left, top, left + width, top + height)
    return Geometry(between_hw, crop, rule.target_hw((height, width)))


def results(picture: Annotated, geometry: Geometry) -> dict[str, np.ndarray]:
    """Return the pixels (H, W, 3) uint8 by the ways to reach them."""
    image = Image.fromarray(read_image(picture.path))
    ours = Picture(picture.path, picture.size_hw, np.empty((0, 4)), np.empty(0))
    between_wh, size_wh = geometry.between_hw[::-1], geometry.size_hw[::-1]
    twice = image.resize(between_wh, BILINEAR).crop(geometry.crop_xyxy)
    exact = geometry.window_xyxy(picture.size_hw)
    x0, y0, x1, y1 = (round(edge) for edge in exact)
    rounded, full = (x0, y0, x1, y1), (0, 0, image.width, image.height)
    ways = {
        "twice": twice.resize(size_wh, BILINEAR),
        "once": image.resize(size_wh, BILINEAR, box=exact),
        "once, whole pixels": image.crop(rounded).resize(size_wh, BILINEAR),
        "detr_kit": View(rounded, geometry.size_hw).pixels(ours),
        "all of it, Pillow": image.resize(size_wh, BILINEAR),
        "all of it, detr_kit": View(full, geometry.size_hw).pixels(ours),
    }
    return {name: np.asarray(way) for name, way in ways.items()}


PAIRS = (
    ("all of it, Pillow", "all of it, detr_kit"),
    ("twice", "once"),
    ("twice", "detr_kit"),
    ("once", "detr_kit"),
    ("once", "once, whole pixels"),
    ("once, whole pixels", "detr_kit"),
)


def print_grey_levels(pictures: list[Annotated]) -> None:
    """Print differences on one fixed crop of each picture, and without the crop."""
    draw = random.Random(0)
    rows: dict[tuple[str, str], list[tuple[float, float, int]]] = {pair: [] for pair in PAIRS}
    for picture in pictures:
        found = results(picture, drawn_geometry(picture.size_hw, draw))
        for first, second in PAIRS:
            difference = np.abs(found[first].astype(np.int16) - found[second])
            figures = (difference.mean(), (difference > 1).mean(), difference.max())
            rows[first, second].append(figures)
    print(
        "\ngrey levels of 255 between ways to the same picture. Crops: Pillow as published (twice),"
    )
    print("Pillow with a window in fractions of pixels (once), in whole pixels as detr_kit's is")
    print(f"{'':40}{'mean':>8}{'over 1':>9}{'max':>6}")
    for (first, second), figures in rows.items():
        mean, over, most = np.array(figures).T
        title = f"{first} / {second}"
        print(f"{title:40}{mean.mean():8.3f}{over.mean():9.1%}{most.max():6.0f}")
