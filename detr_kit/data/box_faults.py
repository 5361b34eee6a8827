"""What can be wrong with boxes, for whole columns of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Decimals in a file overshoot the border by rounding; what is below this is not worth counting.
OVERSHOOT_TOLERANCE = 0.01
# So many boxes of a file must speak for another format than (x, y, w, h): a few are odd in any.
FORMAT_SHARE = 0.95
# Fractions are rounded in files; so much may they pass 1.
FRACTION_ROUNDING = 1e-3


@dataclass(frozen=True)
class ClippedBoxes:
    """Boxes cut to their pictures, and what was wrong with them; all columns are (N,) bool.

    `boxes_xyxy` is (N, 4) float32, inside the picture and of positive sides where not `bad`.
    """

    boxes_xyxy: np.ndarray
    overshoot: np.ndarray
    not_finite: np.ndarray
    no_side: np.ndarray
    outside: np.ndarray

    @property
    def bad(self) -> np.ndarray:
        """Where nothing of the box can be used; a box has one of the three faults at most."""
        return self.not_finite | self.no_side | self.outside


def clip_boxes(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> ClippedBoxes:
    """Cut boxes_xywh (N, 4) to the pictures of sizes_hw (N, 2) that each belongs to."""
    border = np.tile(sizes_hw[:, ::-1], 2).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        raw_xyxy = np.concatenate(
            [boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1
        )
        overshoot = np.maximum(-raw_xyxy, raw_xyxy - border).max(axis=1, initial=-np.inf)
        inside_xyxy = np.clip(raw_xyxy, 0, border).astype(np.float32)
        sides = inside_xyxy[:, 2:] - inside_xyxy[:, :2]
    not_finite = ~np.isfinite(boxes_xywh).all(axis=1)
    no_side = (boxes_xywh[:, 2:] <= 0).any(axis=1) & ~not_finite
    outside = ~(sides > 0).all(axis=1) & ~not_finite & ~no_side
    clipped = (overshoot > OVERSHOOT_TOLERANCE) & ~(not_finite | no_side | outside)
    return ClippedBoxes(inside_xyxy, clipped, not_finite, no_side, outside)


def describe_fault(box_xywh: np.ndarray) -> str:
    """Say what is wrong with a bad box."""
    box = [float(value) for value in box_xywh]
    if not np.isfinite(box_xywh).all():
        return f"bbox {box} is not finite"
    if (box_xywh[2:] <= 0).any():
        return f"bbox {box} has no width or no height"
    return f"bbox {box} lies outside its image"


def fit_as_corners(boxes: np.ndarray, sizes_hw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two (N,) bool: valid as corners, and at the same time far off as (x, y, w, h).

    As corners, x1 > x0 and x1 <= W for every box; read as widths, x0 + x1 passes W for boxes in
    the right half. True (x, y, w, h) boxes hardly do both throughout a file.
    """
    border = sizes_hw[:, ::-1]
    low, high = boxes[:, :2], boxes[:, 2:]
    valid = (high > low) & (high <= border + 1) & (low >= -1)
    as_corners = np.asarray(valid.all(axis=1))
    return as_corners, as_corners & pass_by_far(boxes, sizes_hw)


def pass_by_far(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> np.ndarray:
    """Return (N,) bool: passes the right or lower border by more than carelessness explains."""
    with np.errstate(over="ignore"):
        far = boxes_xywh[:, :2] + boxes_xywh[:, 2:] > sizes_hw[:, ::-1] * 1.05 + 1
    return np.asarray(far.any(axis=1))


def look_like_corners(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> bool:
    """Whether nearly all boxes would be valid as corners while many are far off otherwise."""
    if not len(boxes_xywh):
        return False
    as_corners, far_off = fit_as_corners(boxes_xywh, sizes_hw)
    return bool(as_corners.mean() >= FORMAT_SHARE and far_off.mean() >= 0.1)


def look_like_centres(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> bool:
    """Whether nearly all boxes fit as (cx, cy, w, h) while many pass the border otherwise.

    True (x, y, w, h) boxes have some at the left or upper border, which as centres pass it.
    """
    if not len(boxes_xywh):
        return False
    border = sizes_hw[:, ::-1]
    low, sides = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    with np.errstate(over="ignore"):
        centred = ((low - sides / 2 >= -1) & (low + sides / 2 <= border + 1)).all(axis=1)
        # Half of a side is the most that such a box can pass the border by.
        far_off = centred & (low + sides > border + np.maximum(sides / 4, 1)).any(axis=1)
    return bool(centred.mean() >= FORMAT_SHARE and far_off.mean() >= 0.1 and far_off.sum() >= 5)


def are_fractions(boxes: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the boxes (N, 4) of numbers from 0 to 1, but for rounding."""
    return np.asarray(((boxes >= 0) & (boxes <= 1 + FRACTION_ROUNDING)).all(axis=1))


def look_normalised(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> bool:
    """Whether nearly all boxes are fractions, of pictures that are larger than a few pixels."""
    finite = np.isfinite(boxes_xywh).all(axis=1)
    if not finite.any():
        return False
    share = are_fractions(boxes_xywh[finite]).mean()
    return bool(share >= FORMAT_SHARE and sizes_hw[finite].max() > 8)


def suspected_format(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> str:
    """Say what the boxes look like if not like (x, y, w, h) in pixels; "" where they do."""
    if look_like_corners(boxes_xywh, sizes_hw):
        return "corners (x0, y0, x1, y1)"
    if look_normalised(boxes_xywh, sizes_hw):
        return "fractions of the picture"
    if look_like_centres(boxes_xywh, sizes_hw):
        return "centres (cx, cy, w, h)"
    return ""
