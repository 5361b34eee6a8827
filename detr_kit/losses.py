"""The set criterion of DETR, which YOLOS shares.

Source: Carion et al. 2020, section 3.1 and appendix A.2; Fang et al. 2021 ("You Only Look at One
Sequence"), section 3. Every term is computed for all decoder layers in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.boxes import cxcywh_to_xyxy, generalized_iou
from detr_kit.matching import Assignment, HungarianMatcher
from detr_kit.structures import ModelOutput, TargetBatch


@dataclass(frozen=True)
class Normalizer:
    """What the sums of a process's losses are divided by; plain numbers, known on the host.

    `boxes` divides the box losses, `class_weights` the class loss.
    """

    boxes: float
    class_weights: float


@dataclass(frozen=True)
class StepCounts:
    """How much a part of a step holds: images, objects, and pairs that will be matched."""

    images: int
    objects: int
    pairs: int

    @classmethod
    def of(cls, batches: Sequence[TargetBatch], num_queries: int) -> StepCounts:
        counts = [count for batch in batches for count in batch.counts]
        return cls(len(counts), sum(counts), sum(min(count, num_queries) for count in counts))

    def __add__(self, other: StepCounts) -> StepCounts:
        return StepCounts(
            self.images + other.images, self.objects + other.objects, self.pairs + other.pairs
        )


@dataclass(frozen=True)
class LossValues:
    """The weighted `total` to differentiate, and detached scalars by name for the log.

    Names: `class`, `l1`, `giou` (unweighted, last layer), the same with `_0`, `_1` ... for the
    earlier layers, `class_error` (percent of matched queries whose class is wrong) and
    `cardinality_error` (mean difference between predicted and true number of objects).
    """

    total: Tensor
    logged: dict[str, Tensor]


class SetCriterion(nn.Module):
    """Match, then cross entropy, L1 and GIoU, on every decoder layer.

    `num_classes` counts the class columns without `no object`.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher | None = None,
        *,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        no_object_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher if matcher is not None else HungarianMatcher()
        self.weights = {"class": class_weight, "l1": l1_weight, "giou": giou_weight}
        self.no_object_weight = no_object_weight

    def normalizer(
        self, counts: StepCounts, num_queries: int, *, world_size: int = 1
    ) -> Normalizer:
        """Return the normaliser of a step that holds `counts` over all processes and batches.

        Gradients are averaged over processes, hence the division by `world_size`. For one
        process and one batch it equals the official weighted mean.
        """
        unmatched = counts.images * num_queries - counts.pairs
        return Normalizer(
            max(counts.objects, 1) / world_size,
            (counts.pairs + self.no_object_weight * unmatched) / world_size,
        )

    def official_normalizer(
        self,
        own: StepCounts,
        step: StepCounts,
        num_queries: int,
        *,
        world_size: int,
        batches: int = 1,
    ) -> Normalizer:
        """Return the official code's: boxes averaged over processes, classes by the own batch.

        The official code accumulates nothing; over `batches` of a step, class means are averaged.
        """
        own_weights = self.normalizer(own, num_queries).class_weights
        return Normalizer(max(step.objects / world_size, 1.0), own_weights * batches)

    def forward(
        self, output: ModelOutput, targets: TargetBatch, normalizer: Normalizer | None = None
    ) -> LossValues:
        """Return the losses of a batch; without `normalizer`, this batch is the whole step."""
        if normalizer is None:
            queries = output.layer_logits.shape[2]
            normalizer = self.normalizer(StepCounts.of([targets], queries), queries)
        output = output.at_least_fp32()
        assignment = self.matcher(output, targets)
        classes = matched_classes(output, targets, assignment, no_object=self.num_classes)
        matched_boxes = output.layer_boxes_cxcywh[
            _layer_index(assignment), assignment.image, assignment.query
        ]
        target_boxes = targets.boxes_cxcywh.to(matched_boxes.dtype)[assignment.target]
        layer_losses = {
            "class": class_loss(output.layer_logits, classes, self.no_object_weight)
            / normalizer.class_weights,
            "l1": l1_loss(matched_boxes, target_boxes) / normalizer.boxes,
            "giou": giou_loss(matched_boxes, target_boxes) / normalizer.boxes,
        }
        total = torch.stack(
            [self.weights[name] * values.sum() for name, values in layer_losses.items()]
        ).sum()
        logged = _named_by_layer(layer_losses)
        logged["class_error"] = class_error(output.logits.detach(), classes[-1], self.num_classes)
        logged["cardinality_error"] = cardinality_error(output.logits.detach(), targets.counts)
        return LossValues(total, logged)


def matched_classes(
    output: ModelOutput, targets: TargetBatch, assignment: Assignment, no_object: int
) -> Tensor:
    """Return the (L, B, Q) class that each query should predict."""
    classes = torch.full(
        output.layer_logits.shape[:3],
        no_object,
        dtype=torch.int64,
        device=output.layer_logits.device,
    )
    classes[_layer_index(assignment), assignment.image, assignment.query] = targets.labels[
        assignment.target
    ]
    return classes


def class_loss(layer_logits: Tensor, classes: Tensor, no_object_weight: float) -> Tensor:
    """Return the (L,) sum of cross entropies, the last class weighted by `no_object_weight`."""
    weight = layer_logits.new_ones(layer_logits.shape[-1])
    weight[-1] = no_object_weight
    losses = F.cross_entropy(
        layer_logits.flatten(0, -2), classes.flatten(), weight=weight, reduction="none"
    )
    return losses.view(len(classes), -1).sum(1)


def l1_loss(boxes_cxcywh: Tensor, target_boxes_cxcywh: Tensor) -> Tensor:
    """Return the (L,) sum of absolute differences of paired (L, M, 4) boxes."""
    return (boxes_cxcywh - target_boxes_cxcywh).abs().sum((1, 2))


def giou_loss(boxes_cxcywh: Tensor, target_boxes_cxcywh: Tensor) -> Tensor:
    """Return the (L,) sum of 1 - GIoU of paired (L, M, 4) boxes."""
    giou = generalized_iou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(target_boxes_cxcywh))
    return (1 - giou).sum(1)


def class_error(logits: Tensor, classes: Tensor, no_object: int) -> Tensor:
    """Return the percentage of matched queries of one layer whose best class is wrong."""
    matched = classes != no_object
    right = ((logits.argmax(-1) == classes) & matched).sum()
    pairs = matched.sum()
    return torch.where(pairs > 0, 100.0 * (1.0 - right / pairs.clamp(min=1)), 0.0)


def cardinality_error(logits: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Return the mean absolute difference of predicted and true numbers of objects."""
    no_object = logits.shape[-1] - 1
    predicted = (logits.argmax(-1) != no_object).sum(1).float()
    true = torch.tensor(counts, dtype=torch.float32).to(logits.device, non_blocking=True)
    return (predicted - true).abs().mean()


def _layer_index(assignment: Assignment) -> Tensor:
    layers = torch.arange(len(assignment.query), device=assignment.query.device)
    return layers.unsqueeze(1)  # (L, 1), broadcasts over the pairs


def _named_by_layer(layer_losses: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, values in layer_losses.items():
        *earlier, last = values.detach().unbind()
        named[name] = last
        named.update({f"{name}_{layer}": value for layer, value in enumerate(earlier)})
    return named
