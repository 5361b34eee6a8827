"""What the numbers of the boxes of a whole file stand for, where they are not (x, y, w, h)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from detr_kit.data.box_faults import (
    FORMAT_SHARE,
    FRACTION_ROUNDING,
    are_fractions,
    look_like_centres,
    look_like_corners,
    look_normalised,
)

# "fractions" are of the width and height of the picture: (x, y, w, h), (x0, y0, x1, y1) or
# (cx, cy, w, h); "unclear_fractions" fit into the pictures by none of the three.
BoxFormat = Literal[
    "xywh",
    "corners",
    "centres",
    "fractions",
    "fraction_corners",
    "fraction_centres",
    "unclear_fractions",
]
IN_PIXELS: tuple[BoxFormat, ...] = ("xywh", "corners", "centres")

# How a message calls a format.
FORMAT_NAMES: dict[BoxFormat, str] = {
    "xywh": "x, y, w, h in pixels",
    "corners": "corners x0, y0, x1, y1 in pixels",
    "centres": "centres cx, cy, w, h in pixels",
    "fractions": "x, y, w, h as fractions of the image",
    "fraction_corners": "corners x0, y0, x1, y1 as fractions of the image",
    "fraction_centres": "centres cx, cy, w, h as fractions of the image",
    "unclear_fractions": "fractions of the image, of corners, centres or sizes",
}

# No picture is larger than this; it stands for a width or height that is not known.
NO_BORDER = 2**31 - 1


def borders_hw(sizes_hw: np.ndarray) -> np.ndarray:
    """Return the sizes_hw (N, 2) as int64 with NO_BORDER where a side is missing."""
    return np.where(sizes_hw > 0, sizes_hw, NO_BORDER).astype(np.int64)


def clipped_xywh(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> np.ndarray:
    """Return boxes_xywh (N, 4) cut to their pictures, rounded to a millionth of a pixel."""
    border = borders_hw(sizes_hw)[:, ::-1]
    with np.errstate(invalid="ignore", over="ignore"):
        low = np.clip(boxes_xywh[:, :2], 0, border)
        high = np.clip(boxes_xywh[:, :2] + boxes_xywh[:, 2:], 0, border)
    return rounded(np.concatenate([low, high - low], axis=1))


def rounded(values: np.ndarray) -> np.ndarray:
    """Round to six decimals; numbers that large would overflow on the way stay as they are."""
    small = np.abs(values) < 1e9
    return np.where(small, np.round(np.where(small, values, 0), 6), values)


def find_format(boxes_xywh: np.ndarray, sizes_hw: np.ndarray, outside: np.ndarray) -> BoxFormat:
    """Say what the boxes (n, 4) of a file are; all are finite, their numbers 3 and 4 positive.

    `sizes_hw` (n, 2) are the pictures' sizes, 0 where not known; `outside` (n,) bool are boxes
    that do not reach into their picture. Another format than "xywh" is given only where nearly
    every box speaks for it (`FORMAT_SHARE`).
    """
    # A box outside its picture is none as fractions either, and says nothing of the others.
    boxes, sizes = boxes_xywh[~outside], sizes_hw[~outside]
    # The first thousand settle it for files that are right.
    first = are_fractions(clipped_xywh(boxes[:1000], sizes[:1000]))
    if 2 * first.sum() >= len(first):
        cut = clipped_xywh(boxes, sizes)
        if look_normalised(cut, borders_hw(sizes)):
            voting = are_fractions(cut)
            found = _kind_of_fractions(cut[voting])
            return found if _become_larger(cut[voting], sizes[voting], found) else "xywh"
    sized = (sizes_hw > 0).all(axis=1)
    if look_like_corners(boxes_xywh[sized], sizes_hw[sized]):
        return "corners"
    return "centres" if look_like_centres(boxes_xywh[sized], sizes_hw[sized]) else "xywh"


def _kind_of_fractions(boxes: np.ndarray) -> BoxFormat:
    """Return what most of the boxes fit; the first of several that they fit alike."""
    low, high = boxes[:, :2], boxes[:, 2:]
    border = 1 + FRACTION_ROUNDING
    centred = (low + high / 2 <= border) & (low - high / 2 >= -FRACTION_ROUNDING)
    fitting: dict[BoxFormat, float] = {
        "fractions": (low + high <= border).all(axis=1).mean(),
        "fraction_corners": (high > low).all(axis=1).mean(),
        "fraction_centres": centred.all(axis=1).mean(),
    }
    best = max(fitting, key=lambda name: fitting[name])
    return best if fitting[best] >= FORMAT_SHARE else "unclear_fractions"


def _become_larger(boxes: np.ndarray, sizes_hw: np.ndarray, found: BoxFormat) -> bool:
    """Whether the boxes are no fractions any more in pixels; else they are tiny boxes in pixels."""
    as_read: BoxFormat = "fractions" if found == "unclear_fractions" else found
    borders = borders_hw(sizes_hw)
    in_pixels = clipped_xywh(to_pixels_xywh(boxes, borders, as_read), sizes_hw)
    return bool((in_pixels > 1).any())


def to_pixels_xywh(boxes: np.ndarray, sizes_hw: np.ndarray, found: BoxFormat) -> np.ndarray:
    """Return boxes (N, 4) of a known format as (x, y, w, h) in pixels."""
    if found in ("xywh", "unclear_fractions"):
        return boxes
    low, high = boxes[:, :2], boxes[:, 2:]
    with np.errstate(invalid="ignore", over="ignore"):
        if found in ("corners", "fraction_corners"):
            high = high - low
        if found in ("centres", "fraction_centres"):
            low = low - high / 2
        if found not in IN_PIXELS:
            low, high = low * sizes_hw[:, ::-1], high * sizes_hw[:, ::-1]
    return rounded(np.concatenate([low, high], axis=1))
