"""The losses of matched boxes, and figures for the log that nothing is learned from."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_kit.boxes import cxcywh_to_xyxy, generalized_iou, iou_and_union


def l1_loss(boxes_cxcywh: Tensor, target_boxes_cxcywh: Tensor) -> Tensor:
    """Return the (L, M) sum of absolute differences of each pair of (L, M, 4) boxes."""
    return (boxes_cxcywh - target_boxes_cxcywh).abs().sum(2)


def giou_loss(boxes_cxcywh: Tensor, target_boxes_cxcywh: Tensor) -> Tensor:
    """Return the (L, M) 1 - GIoU of each pair of (L, M, 4) boxes."""
    return 1 - generalized_iou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(target_boxes_cxcywh))


@torch.no_grad()
def ious_of_pairs(boxes_cxcywh: Tensor, target_boxes_cxcywh: Tensor) -> Tensor:
    """Return the (L, M) IoU of each pair of (L, M, 4) boxes, without a gradient."""
    return iou_and_union(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(target_boxes_cxcywh))[0]


def class_error(found: Tensor, classes: Tensor) -> Tensor:
    """Return the percentage of (M,) matched queries whose best class is wrong, 0 without any."""
    return (found != classes).sum() * (100.0 / max(len(classes), 1))


def cardinality_error(predicted: Tensor, counts: tuple[int, ...], *, no_object: int) -> Tensor:
    """Return the mean absolute difference of predicted and true numbers of objects.

    `predicted` (B, Q) is each query's best class, `counts` the true numbers of the B images.
    """
    objects = (predicted != no_object).sum(1)
    true = torch.tensor(counts, dtype=torch.float32).to(predicted.device, non_blocking=True)
    return (objects - true).abs().mean()
