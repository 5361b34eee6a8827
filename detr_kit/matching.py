"""Bipartite matching of queries and objects: cost, then solver, then assignment.

Source: Carion et al. 2020, "End-to-End Object Detection with Transformers", section 3.1 and
appendix A.2; for sigmoids the official code of Zhu et al. 2021 ("Deformable DETR").
Costs of all decoder layers, groups of queries and images are computed together on the device and
cross to the host once. Only pairs of one image have a cost, so that nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr_kit.errors import DetrKitError
from detr_kit.structures import ModelOutput, Scoring, TargetBatch

# How much the class weighs in the matching, as published: of DETR, and of Deformable DETR, whose
# focal cost is lower.
CLASS_COSTS: dict[Scoring, float] = {"softmax": 1.0, "sigmoid": 2.0}
# In the place of a cost that is not finite, for the solver to go on, and of that of a query that
# stands for nothing, which gets an object only where no other query is left.
_VERY_HIGH = 1e9
# Of the focal cost: its weight of what is right, and its exponent.
_ALPHA, _GAMMA = 0.25, 2.0
# Added to probabilities before their logarithm, as in the official code.
_EPSILON = 1e-8


class NonFiniteCostError(DetrKitError):
    """A matching cost is nan or infinite: the model's output or a target is."""


@dataclass(frozen=True)
class Assignment:
    """M matched pairs in each of L layers.

    `image` (L, M), `query` (L, M) and `target` (L, M) are int64 on the device of the outputs;
    `target` indexes the flat objects of the `TargetBatch`. M is the same in every layer: an
    image with n objects and Q queries has min(n, Q) pairs, in the order of their queries.
    `pairs` (3, L, M) holds the three on the host. `aside` is the host's copy of what was given to
    ride along with the costs. `nonfinite` is a sentence about the first cost that is nan or
    infinite, None without any.
    """

    image: Tensor
    query: Tensor
    target: Tensor
    pairs: np.ndarray
    aside: np.ndarray | None = None
    nonfinite: str | None = None


@dataclass(frozen=True)
class HungarianMatcher:
    """Match every object to one query at the least total cost.

    The cost of a pair is `class_cost * -p(label) + l1_cost * |box difference| +
    giou_cost * -GIoU`, in fp32 whatever the precision of the outputs (float64 stays). For outputs
    scored by sigmoids, `focal_cost` takes the place of `-p(label)`. Each layer of each group of
    queries is matched by itself.
    """

    class_cost: float = 1.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0

    @torch.no_grad()
    def __call__(
        self, output: ModelOutput, targets: TargetBatch, aside: Tensor | None = None
    ) -> Assignment:
        """Return the assignment; `aside`, a 1-D tensor, crosses to the host with the costs.

        The crossing is the one wait for the device. Without objects and `aside` there is none.
        A cost that is not finite raises nothing: it counts as very high, and `nonfinite` tells.
        """
        riders = [] if aside is None else [aside]
        if len(targets.labels) > 0:
            cost = matching_cost(
                output,
                targets,
                class_cost=self.class_cost,
                l1_cost=self.l1_cost,
                giou_cost=self.giou_cost,
            )
            crossed = to_host([cost, *riders])
            pairs, nonfinite = solve(crossed[0], targets, groups=output.groups)
        else:
            crossed = to_host(riders)
            pairs = np.zeros((3, len(output.layer_logits), 0), dtype=np.int64)
            nonfinite = None
        device = output.layer_logits.device
        image, query, target = torch.from_numpy(pairs).to(device, non_blocking=True)
        on_host = None if aside is None else crossed[-1].copy()
        return Assignment(image, query, target, pairs, on_host, nonfinite)


def matching_cost(
    output: ModelOutput,
    targets: TargetBatch,
    *,
    class_cost: float,
    l1_cost: float,
    giou_cost: float,
) -> Tensor:
    """Return the (N, L, Q) cost of every object with every query of its image.

    That of a `missing` query is very high.
    """
    output = output.at_least_fp32()
    logits, boxes_cxcywh = output.layer_logits, output.layer_boxes_cxcywh
    image = image_of_objects(targets.counts).to(logits.device, non_blocking=True)
    if output.scoring == "softmax":
        # The logarithm is quicker than the softmax; few of its values are then raised again.
        gain = logits.log_softmax(-1)[:, image, :, targets.labels].exp_()
    else:
        gain = focal_cost(logits[:, image, :, targets.labels]).neg_()
    # Coordinates come first, so that each is one block of memory.
    own = boxes_cxcywh.permute(3, 1, 0, 2).contiguous().index_select(1, image)  # (4, N, L, Q)
    target = targets.boxes_cxcywh.to(own.dtype).T[..., None, None]  # (4, N, 1, 1)
    l1, giou = _l1_and_giou(own, target)
    cost = l1.mul_(l1_cost).sub_(giou, alpha=giou_cost).sub_(gain, alpha=class_cost)
    if output.missing is not None:
        cost.masked_fill_(output.missing[image].unsqueeze(1), _VERY_HIGH)
    return cost


def focal_cost(logits: Tensor) -> Tensor:
    """Return what objects of a category cost at its logits (...): its focal loss as the true one.

    The loss that it has as a false one, and that is saved, is taken off.
    """
    probability, rest = logits.sigmoid(), logits.neg().sigmoid_()
    right = (rest.pow(_GAMMA)).mul_((probability + _EPSILON).log_()).mul_(-_ALPHA)
    wrong = (probability.pow_(_GAMMA)).mul_((rest + _EPSILON).log_()).mul_(_ALPHA - 1)
    # An infinite logit has a probability, but comes of something broken.
    return right.sub_(wrong).add_(logits, alpha=0.0)


def _l1_and_giou(own: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return L1 distance and GIoU of boxes cxcywh, coordinates first; overwrites `own`.

    Of two sides w and v whose centers are d apart, the stretch that both cover is the least of
    w, v and (w + v) / 2 - d, which is (w + v - m) / 2 with m the larger of |w - v| and 2 d, and
    (w + v + m) / 2 is the stretch from end to end. L1 has |w - v| and d already, so that no
    corner is computed. A negative stretch is a gap.
    """
    difference = (own - target).abs_()
    l1 = difference.sum(0)
    sides = own[2:] + target[2:]
    apart = torch.maximum(difference[2:], difference[:2].mul_(2))
    # All areas are four times as large as they are; only their ratios count.
    overlap = (sides - apart).clamp_(min=0)
    intersection = overlap[0].mul_(overlap[1])
    hull = sides.add_(apart)
    hull_area = hull[0].mul_(hull[1])
    area = own[2].mul_(own[3]).add_(target[2] * target[3])
    union = area.mul_(4).sub_(intersection)
    return l1, intersection.div_(union).add_(union.div_(hull_area)).sub_(1)


def image_of_objects(counts: Sequence[int]) -> Tensor:
    """Return which image of the batch each of the (N,) objects belongs to, on the host."""
    return torch.from_numpy(np.arange(len(counts)).repeat(counts))


def to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Bring tensors of one device to the host in one transfer, their bytes unchanged."""
    if len(tensors) < 2:
        return [tensor.detach().cpu().numpy() for tensor in tensors]
    parts = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in tensors]
    joined = torch.cat(parts).cpu()
    arrays = []
    for tensor, own in zip(tensors, joined.split([len(part) for part in parts]), strict=True):
        # A part may start where a wider number may not.
        own = own if own.storage_offset() % tensor.element_size() == 0 else own.clone()
        arrays.append(own.view(tensor.dtype).view(tensor.shape).numpy())
    return arrays


def solve(
    cost: np.ndarray, targets: TargetBatch, *, groups: int = 1
) -> tuple[np.ndarray, str | None]:
    """Assign each image and layer of a (N, L, Q) cost; return (3, L, M) int64 pairs.

    The three rows are image, query and flat target index. The second value is a sentence about
    the first cost that is not finite, None where all are finite; it counts layers within their
    group.
    """
    finite = np.isfinite(cost)
    nonfinite = None
    if not finite.all():
        nonfinite = _sentence(finite, targets, groups)
        cost = np.where(finite, cost, _VERY_HIGH)
    _, layers, queries = cost.shape
    image = np.arange(len(targets.counts)).repeat(np.minimum(targets.counts, queries))
    query, target = np.empty((2, layers, len(image)), dtype=np.int64)
    first = start = 0
    for count in targets.counts:
        own = cost[first : first + count]
        pairs = slice(start, start + min(count, queries))
        if count < queries:
            target[:, pairs] = np.arange(first, first + count)
            for layer in range(layers):
                query[layer, pairs] = linear_sum_assignment(own[:, layer])[1]
        else:
            for layer in range(layers):
                query[layer, pairs], target[layer, pairs] = linear_sum_assignment(own[:, layer].T)
            target[:, pairs] += first
        first, start = first + count, pairs.stop
    order = (image * queries + query).argsort(axis=1)
    query, target = np.take_along_axis(np.stack([query, target]), order[None], axis=2)
    return np.stack([np.broadcast_to(image, query.shape), query, target]), nonfinite


def _sentence(finite: np.ndarray, targets: TargetBatch, groups: int) -> str:
    """Name image and layer of the first cost that is not finite, layer by layer."""
    layer, row = np.argwhere(~finite.all(axis=2).T)[0]
    image = image_of_objects(targets.counts)[row]
    group, layer = divmod(layer, finite.shape[1] // groups)
    place = f"decoder layer {layer}" + (f", group {group} of queries," if groups > 1 else "")
    return (
        f"image id {targets.image_ids[image]}: the matching cost of {place} "
        "is not finite (nan or infinite outputs, or a broken target box)"
    )
