"""The set criterion of DETR, which YOLOS shares.

Source: Carion et al. 2020, section 3.1 and appendix A.2; Fang et al. 2021 ("You Only Look at One
Sequence"), section 3. Every term is computed for all decoder layers in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.boxes import cxcywh_to_xyxy, generalized_iou
from detr_kit.matching import Assignment, HungarianMatcher, NonFiniteCostError
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
    `cardinality_error` (mean difference between predicted and true number of objects), and
    `cost_class`, `cost_l1` and `cost_giou`, what a matched pair of the last layer costs in the
    matching, by term: its mean, weighted, 0 without pairs.
    """

    total: Tensor
    logged: dict[str, Tensor]
    assignment: Assignment


class SetCriterion(nn.Module):
    """Match, then cross entropy, L1 and GIoU, on every decoder layer.

    `num_classes` counts the class columns without `no object`. A matching cost that is not finite
    raises NonFiniteCostError, or with `on_nonfinite="poison"` makes the total nan, and with it
    the gradient: nothing then waits, and whoever looks at the gradient finds out.
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
        on_nonfinite: Literal["raise", "poison"] = "raise",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher if matcher is not None else HungarianMatcher()
        self.weights = {"class": class_weight, "l1": l1_weight, "giou": giou_weight}
        self.no_object_weight = no_object_weight
        self.on_nonfinite = on_nonfinite

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
        self,
        output: ModelOutput,
        targets: TargetBatch,
        normalizer: Normalizer | None = None,
        aside: Tensor | None = None,
    ) -> LossValues:
        """Return the losses of a batch; without `normalizer`, this batch is the whole step.

        `aside` crosses to the host with the matching costs, to `assignment.aside`.
        """
        if normalizer is None:
            queries = output.layer_logits.shape[2]
            normalizer = self.normalizer(StepCounts.of([targets], queries), queries)
        output = output.at_least_fp32()
        assignment = self.matcher(output, targets, aside)
        if assignment.nonfinite is not None and self.on_nonfinite == "raise":
            raise NonFiniteCostError(assignment.nonfinite)
        own_classes = targets.labels[assignment.target]
        own_boxes = targets.boxes_cxcywh.to(output.layer_boxes_cxcywh.dtype)[assignment.target]
        places = _places(assignment, output)
        classes = target_classes(output, places, own_classes, no_object=self.num_classes)
        matched_boxes = _at(output.layer_boxes_cxcywh, places)
        losses = {
            "class": class_loss(output.layer_logits, classes, self.no_object_weight),
            "l1": l1_loss(matched_boxes, own_boxes),
            "giou": giou_loss(matched_boxes, own_boxes),
        }
        sums = {
            "class": losses["class"].sum((1, 2)) / normalizer.class_weights,
            "l1": losses["l1"].sum(1) / normalizer.boxes,
            "giou": losses["giou"].sum(1) / normalizer.boxes,
        }
        total = torch.stack([self.weights[name] * own for name, own in sums.items()]).sum()
        if assignment.nonfinite is not None:
            total = total * float("nan")
        with torch.no_grad():
            logged = _named_by_layer(sums)
            predicted = output.logits.argmax(-1)
            found = predicted.flatten().gather(0, places[-1])
            logged["class_error"] = class_error(found, own_classes[-1])
            logged["cardinality_error"] = cardinality_error(
                predicted, targets.counts, no_object=self.num_classes
            )
            of_pairs = losses | {"class": _at(losses["class"], places)}
            logged |= self._costs_of_pairs({name: own[-1] for name, own in of_pairs.items()})
        return LossValues(total, logged, assignment)

    def _costs_of_pairs(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean matching costs of (M,) pairs, from what they lost.

        The class costs minus the probability, whose logarithm is lost; the GIoU is 1 less the loss.
        """
        count = max(len(losses["l1"]), 1)
        matcher = self.matcher
        return {
            "cost_class": losses["class"].neg().exp().sum() * (-matcher.class_cost / count),
            "cost_l1": losses["l1"].sum() * (matcher.l1_cost / count),
            "cost_giou": (losses["giou"] - 1).sum() * (matcher.giou_cost / count),
        }


def target_classes(
    output: ModelOutput, places: Tensor, matched: Tensor, *, no_object: int
) -> Tensor:
    """Return the (L, B, Q) class that each query should predict: that of its object, if any.

    `places` (L, M) are those of matched queries among a layer's B * Q, `matched` their classes.
    """
    shape = output.layer_logits.shape[:3]
    classes = torch.full(shape, no_object, dtype=torch.int64, device=places.device)
    return classes.flatten(1).scatter_(1, places, matched).view(shape)


def class_loss(layer_logits: Tensor, classes: Tensor, no_object_weight: float) -> Tensor:
    """Return the (L, B, Q) cross entropies, the last class weighted by `no_object_weight`."""
    weight = layer_logits.new_ones(layer_logits.shape[-1])
    weight[-1] = no_object_weight
    losses = F.cross_entropy(
        layer_logits.flatten(0, -2), classes.flatten(), weight=weight, reduction="none"
    )
    return losses.view_as(classes)


def l1_loss(boxes_cxcywh: Tensor, target_boxes_cxcywh: Tensor) -> Tensor:
    """Return the (L, M) sum of absolute differences of each pair of (L, M, 4) boxes."""
    return (boxes_cxcywh - target_boxes_cxcywh).abs().sum(2)


def giou_loss(boxes_cxcywh: Tensor, target_boxes_cxcywh: Tensor) -> Tensor:
    """Return the (L, M) 1 - GIoU of each pair of (L, M, 4) boxes."""
    return 1 - generalized_iou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(target_boxes_cxcywh))


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


def _places(assignment: Assignment, output: ModelOutput) -> Tensor:
    """Return where the (L, M) matched queries stand among the B * Q of their layer."""
    return assignment.image * output.layer_logits.shape[2] + assignment.query


def _at(values: Tensor, places: Tensor) -> Tensor:
    """Return (L, M, ...) out of (L, B, Q, ...)."""
    flat = values.flatten(1, 2)
    index = places.view(*places.shape, *[1] * (flat.dim() - 2))
    return flat.gather(1, index.expand(*places.shape, *flat.shape[2:]))


def _named_by_layer(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, values in sums.items():
        *earlier, last = values.detach().unbind()
        named[name] = last
        named.update({f"{name}_{layer}": value for layer, value in enumerate(earlier)})
    return named
