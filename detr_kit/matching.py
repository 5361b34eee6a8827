"""Bipartite matching of queries and objects: cost, then solver, then assignment.

Source: Carion et al. 2020, "End-to-End Object Detection with Transformers", section 3.1 and
appendix A.2. Costs of all decoder layers and images are computed together on the device and
cross to the host once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr_kit.boxes import cxcywh_to_xyxy, pairwise_generalized_iou
from detr_kit.errors import DetrKitError
from detr_kit.structures import ModelOutput, TargetBatch


class NonFiniteCostError(DetrKitError):
    """A matching cost is nan or infinite: the model's output or a target is."""


@dataclass(frozen=True)
class Assignment:
    """M matched pairs in each of L layers.

    `image` (L, M), `query` (L, M) and `target` (L, M) are int64 on the device of the outputs;
    `target` indexes the flat objects of the `TargetBatch`. M is the same in every layer: an
    image with n objects and Q queries has min(n, Q) pairs.
    """

    image: Tensor
    query: Tensor
    target: Tensor


@dataclass(frozen=True)
class HungarianMatcher:
    """Match every object to one query at the least total cost.

    The cost of a pair is `class_cost * -p(label) + l1_cost * |box difference| +
    giou_cost * -GIoU`, in fp32 whatever the precision of the outputs (float64 stays).
    """

    class_cost: float = 1.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0

    @torch.no_grad()
    def __call__(self, output: ModelOutput, targets: TargetBatch) -> Assignment:
        """Return the assignment; raises NonFiniteCostError naming the image and layer."""
        device = output.layer_logits.device
        if len(targets.labels) == 0:
            none = torch.zeros(len(output.layer_logits), 0, dtype=torch.int64, device=device)
            return Assignment(none, none, none)
        cost = matching_cost(
            output,
            targets,
            class_cost=self.class_cost,
            l1_cost=self.l1_cost,
            giou_cost=self.giou_cost,
        )
        pairs = solve(cost.cpu().numpy(), targets)  # the one wait for the device in a step
        image, query, target = torch.from_numpy(pairs).to(device, non_blocking=True)
        return Assignment(image, query, target)


def matching_cost(
    output: ModelOutput,
    targets: TargetBatch,
    *,
    class_cost: float,
    l1_cost: float,
    giou_cost: float,
) -> Tensor:
    """Return the (L, B, Q, T) cost, T the most objects of an image; the rest is padding."""
    output = output.at_least_fp32()
    logits, boxes = output.layer_logits, output.layer_boxes_cxcywh
    layers, _, queries, _ = logits.shape
    slots = _padded_slots(targets.counts).to(logits.device, non_blocking=True)  # (B, T)
    labels = targets.labels[slots]  # (B, T)
    target_boxes = targets.boxes_cxcywh.to(boxes.dtype)[slots]  # (B, T, 4)

    columns = labels[None, :, None].expand(layers, -1, queries, -1)
    probability = logits.softmax(-1).gather(-1, columns)
    l1 = (boxes.unsqueeze(-2) - target_boxes.unsqueeze(-3)).abs().sum(-1)
    giou = pairwise_generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
    return l1_cost * l1 - class_cost * probability - giou_cost * giou


def solve(cost: np.ndarray, targets: TargetBatch) -> np.ndarray:
    """Assign each image and layer of a (L, B, Q, T) cost; return (3, L, M) int64 pairs.

    The three rows are image, query and flat target index. Raises NonFiniteCostError.
    """
    first = np.cumsum((0, *targets.counts[:-1]))
    layers = []
    for layer, layer_cost in enumerate(cost):
        pairs = []
        for image, count in enumerate(targets.counts):
            image_cost = layer_cost[image, :, :count]
            if not np.isfinite(image_cost).all():
                raise NonFiniteCostError(
                    f"image id {targets.image_ids[image]}: the matching cost of decoder layer "
                    f"{layer} is not finite (nan or infinite outputs, or a broken target box)"
                )
            query, target = linear_sum_assignment(image_cost)
            pairs.append(np.stack([np.full_like(query, image), query, first[image] + target]))
        layers.append(np.concatenate(pairs, axis=1))
    return np.stack(layers, axis=1).astype(np.int64)


def _padded_slots(counts: tuple[int, ...]) -> Tensor:
    """Return the (B, T) flat index of each image's objects; padding repeats index 0."""
    slots = torch.zeros(len(counts), max(counts), dtype=torch.int64)
    start = 0
    for row, count in zip(slots, counts, strict=True):
        row[:count] = torch.arange(start, start + count)
        start += count
    return slots
