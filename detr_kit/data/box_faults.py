"""What can be wrong with boxes, for whole columns of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Decimals in a file overshoot the border by rounding; what is below this is not worth counting.
OVERSHOOT_TOLERANCE = 0.01


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


def look_like_corners(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> bool:
    """Whether all boxes would be valid as corners while many are far off as (x, y, w, h).

    As corners, x1 > x0 and x1 <= W for every box; read as widths, x0 + x1 passes W for boxes in
    the right half. True (x, y, w, h) boxes hardly do both throughout a file.
    """
    if not len(boxes_xywh):
        return False
    border = sizes_hw[:, ::-1]
    low, high = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    as_corners = ((high > low) & (high <= border + 1) & (low >= -1)).all()
    far_off = (low + high > border * 1.05 + 1).any(axis=1)
    return bool(as_corners and far_off.mean() >= 0.1)


def look_normalised(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> bool:
    """Whether all boxes are fractions in [0, 1], of pictures that are larger than a few pixels."""
    finite = np.isfinite(boxes_xywh).all(axis=1)
    if not finite.any():
        return False
    fractions = (boxes_xywh[finite] >= 0).all() and (boxes_xywh[finite] <= 1).all()
    return bool(fractions and sizes_hw[finite].max() > 8)
