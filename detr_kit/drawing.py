"""Boxes and what they are, drawn so that both can be read on any picture.

Every line has a halo, dark around a bright colour and bright around a dark one, so that one of the
two stands out from any background. Lines get finer where they would cover the picture.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from detr_kit.labels import Lettering, Places, Text

RGB = tuple[int, int, int]

_BLACK: RGB = (0, 0, 0)
_WHITE: RGB = (255, 255, 255)
_HALO_ALPHA = 160
_NOTE_BACKGROUND = (0, 0, 0, 190)
# Shares of the picture that lines, and lines with halos, cover at most, where that can be.
_LINES, _HALOS = 0.12, 0.3
# Boxes that are narrower have a halo outside only, else nothing of the object would be seen.
_NARROW = 16


def draw_boxes(
    canvas: Image.Image,
    boxes_xyxy: np.ndarray,
    names: Sequence[str],
    category_ids: Sequence[int],
    *,
    details: Sequence[str] | None = None,
    font: str | Path | None = None,
) -> None:
    """Draw boxes (n, 4) in pixels and what they are, in place, on an RGB picture.

    The last box is on top and the first to get a label: its name and, if there are any, its
    `details`, which stay where there is no room for the name. A note in a corner counts the boxes
    without a label. Boxes outside the picture are not drawn. `font` is a TrueType file for names
    that the usual font, DejaVu Sans, has no letters for, such as Chinese ones.

    Raises DetrKitError where the font cannot be read.
    """
    width, height = canvas.size
    boxes_xyxy = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    left, top, right, bottom = boxes_xyxy.T
    rows = np.flatnonzero((right >= 0) & (left < width) & (bottom >= 0) & (top < height)).tolist()
    if not rows:
        return
    boxes = boxes_xyxy[rows].clip(0, (width - 1, height - 1) * 2).round().astype(np.int64)
    colors = [category_color(category_ids[row]) for row in rows]
    texts = [Text.of(names[row], details[row] if details is not None else "") for row in rows]
    pen = ImageDraw.Draw(canvas, "RGBA")  # to blend halos in
    _draw_outlines(pen, boxes, colors, canvas.size)
    lettering = Lettering(texts, canvas.size, font)
    places = Places(boxes, lettering, canvas.size)
    for row, label, corner_xy in places.of(texts):
        _write(pen, label, corner_xy, lettering, (*colors[row], 255))
    if places.num_left_out:
        _write_note(pen, places, lettering, len(texts), canvas.width)


def category_color(category_id: int) -> RGB:
    """Return the category's RGB color, the same in every picture.

    Hues a golden section apart: any run of consecutive ids is spread over the color circle.
    """
    hue = category_id * 0.6180339887 % 1.0
    lightness = 0.45 + 0.15 * (category_id // 3 % 2)
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def contrasting(color: Sequence[int]) -> RGB:
    """Return black or white, whichever contrasts more with an RGB color: at least 4.5 to 1.

    By the contrast ratio of WCAG 2 (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio).
    """
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (part / 255 for part in color[:3])
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return _BLACK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else _WHITE


def _draw_outlines(
    pen: ImageDraw.ImageDraw, boxes: np.ndarray, colors: list[RGB], picture_wh: tuple[int, int]
) -> None:
    """Draw lines inwards, thin ones in small boxes and where they cover much of the picture."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    length, area = max(1, 2 * int(sides.sum())), math.prod(picture_wh)
    usual = max(1, round(min(min(picture_wh) / 270, _LINES * area / length)))
    halo = max(1, usual // 3)
    if len(boxes) > 1 and (usual + 2 * halo) * length > _HALOS * area:
        halo = 0
    for box, narrowest, color in zip(
        boxes.tolist(), sides.min(axis=1).tolist(), colors, strict=True
    ):
        line = min(usual, max(1, narrowest // 10))
        if halo:
            around = [box[0] - halo, box[1] - halo, box[2] + halo, box[3] + halo]
            inside = halo if narrowest >= _NARROW else 0
            shade = (*contrasting(color), _HALO_ALPHA)
            pen.rectangle(around, outline=shade, width=halo + line + inside)
        pen.rectangle(box, outline=color, width=line)


def _write(
    pen: ImageDraw.ImageDraw,
    label: str,
    corner_xy: tuple[int, int],
    lettering: Lettering,
    background: tuple[int, int, int, int],
) -> None:
    x, y = corner_xy
    ends = (x + lettering.width_of(label) - 1, y + lettering.height - 1)
    pen.rectangle((x, y, *ends), fill=background)
    baseline = (x + lettering.margin, y + lettering.margin + lettering.ascent)
    pen.text(baseline, label, fill=contrasting(background), font=lettering.font, anchor="ls")


def _write_note(
    pen: ImageDraw.ImageDraw, places: Places, lettering: Lettering, num_boxes: int, width: int
) -> None:
    """Tell in a corner how many labels had no place, in short where the picture is small."""
    count = places.num_left_out
    for note in (f"{count:,} of {num_boxes:,} boxes without a label", f"+{count:,}"):
        corner_xy = places.of_note(note)
        if corner_xy is not None:
            _write(pen, note, corner_xy, lettering, _NOTE_BACKGROUND)
            return
