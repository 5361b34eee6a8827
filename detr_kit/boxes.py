"""Pure functions on boxes held in tensors.

A box is four numbers in the last dimension: (cx, cy, w, h) or (x0, y0, x1, y1), as names say.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Convert (..., 4) boxes from center and size to corners, in the same unit."""
    center, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert (..., 4) boxes from corners to center and size, in the same unit."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area(boxes_xyxy: Tensor) -> Tensor:
    """Return the (...,) area of (..., 4) boxes; negative sides are not repaired."""
    width_height = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return width_height[..., 0] * width_height[..., 1]


def iou_and_union(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and union of boxes that broadcast against each other in all but the last dim.

    No epsilon is added: two boxes of zero area have IoU nan, as 0 / 0.
    """
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    overlap = (high - low).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = area(a_xyxy) + area(b_xyxy) - intersection
    return intersection / union, union


def generalized_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the GIoU in [-1, 1] of boxes that broadcast against each other.

    Source: Rezatofighi et al. 2019, "Generalized Intersection over Union", algorithm 1.
    """
    iou, union = iou_and_union(a_xyxy, b_xyxy)
    low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = area(torch.cat([low, high], dim=-1))
    return iou - (hull - union) / hull
