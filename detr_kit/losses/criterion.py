"""The set criterion that all families share.

Source: Carion et al. 2020, section 3.1 and appendix A.2; Fang et al. 2021 ("You Only Look at One
Sequence"), section 3; several groups of queries: Chen et al. 2023 ("Group DETR"), section 3.2;
denoising: Li et al. 2022 ("DN-DETR"), section 4, and Zhang et al. 2023 ("DINO"), section 3.3;
patches: see `detr_kit.losses.patches`.
Every term is computed for all decoder layers in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from detr_kit.losses.classification import ClassLossName, class_loss, class_loss_for, uses_ious
from detr_kit.losses.normalizers import Normalizer, StepCounts
from detr_kit.losses.pairs import Pairs, at_places, objects_of, target_classes, without
from detr_kit.losses.patches import assign_patches
from detr_kit.losses.terms import (
    cardinality_error,
    class_error,
    giou_loss,
    ious_of_pairs,
    l1_loss,
)
from detr_kit.matching import Assignment, HungarianMatcher, NonFiniteCostError, focal_cost
from detr_kit.structures import (
    DenoisedOutput,
    ModelOutput,
    PatchOutput,
    Scoring,
    TargetBatch,
)

# What a batch logs of queries that stand for known objects.
DENOISING_NAMES = ("dn_class", "dn_l1", "dn_giou")

# The logit of a category at which there is nothing to lose by saying that it is not there.
_SURELY_NOT = -1e4


@dataclass(frozen=True)
class LossValues:
    """The weighted `total` to differentiate, and detached scalars by name for the log.

    Names: `class`, `l1`, `giou` (unweighted, last layer), the same with `_0`, `_1` ... for the
    earlier layers, `class_error` (percent of matched queries whose class is wrong) and
    `cardinality_error` (mean difference between predicted and true number of objects), and
    `cost_class`, `cost_l1` and `cost_giou`, what a matched pair of the last layer costs in the
    matching, by term: its mean, weighted, 0 without pairs. Of several groups of queries these are
    about the last one, which predicts. `dn_class`, `dn_l1` and `dn_giou` (last layer) are there
    where queries were denoised, `patch_class`, `patch_l1` and `patch_giou` where patches learn.
    """

    total: Tensor
    logged: dict[str, Tensor]
    assignment: Assignment


class SetCriterion(nn.Module):
    """Match, then class loss, L1 and GIoU, on every decoder layer.

    `num_classes` counts the class columns without `no object`. `classification` names the class
    loss, see `detr_kit.losses.classification`, where `focal_alpha` and `focal_gamma` are told of
    too; "auto" goes by the model's scoring. A matching cost that is not finite raises
    NonFiniteCostError, or with `on_nonfinite="poison"` makes the total nan, and with it the
    gradient: nothing then waits, and whoever looks at the gradient finds out.
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
        classification: ClassLossName | Literal["auto"] = "auto",
        focal_alpha: float | None = None,
        focal_gamma: float | None = None,
        on_nonfinite: Literal["raise", "poison"] = "raise",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher if matcher is not None else HungarianMatcher()
        self.weights = {"class": class_weight, "l1": l1_weight, "giou": giou_weight}
        self.no_object_weight = no_object_weight
        self.classification = classification
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
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

        `aside` crosses to the host with the matching costs, to `assignment.aside`. Raises
        DetrKitError where the class loss is for another scoring than the output's, and
        NonFiniteCostError as the class says.
        """
        if normalizer is None:
            queries = output.layer_logits.shape[2]
            normalizer = self.normalizer(StepCounts.of([targets], queries), queries)
        output = output.at_least_fp32()
        assignment = self.matcher(output, targets, aside)
        if assignment.nonfinite is not None and self.on_nonfinite == "raise":
            raise NonFiniteCostError(assignment.nonfinite)
        logits, boxes = output.layer_logits, output.layer_boxes_cxcywh
        places = assignment.image * logits.shape[2] + assignment.query
        pairs = Pairs(places, *objects_of(targets, assignment.target, boxes))
        of_any = slice(0, None, len(logits) // output.groups) if output.first_is_of_any else None
        losses = self._losses(logits, boxes, pairs, output.scoring, of_any)
        if output.missing is not None:
            losses = without(losses, output.missing, pairs)
        sums = self._sums(losses, normalizer, output.scoring)
        # Every group is a whole detector: their mean weighs as much as one.
        total = self._weighted(sums) / output.groups if output.groups > 1 else self._weighted(sums)
        noted = {}
        if output.denoised is not None:
            of_denoised = self._denoised(output.denoised, targets, normalizer, output.scoring)
            total = total + self._weighted(of_denoised)
            noted = {f"dn_{name}": own.detach()[-1] for name, own in of_denoised.items()}
        if output.patches is not None:
            queries = logits.shape[2]
            of_patches = self._of_patches(
                output.patches, targets, normalizer, output.scoring, queries
            )
            total = total + self._weighted(of_patches)
            noted |= {f"patch_{name}": own.detach()[-1] for name, own in of_patches.items()}
        if assignment.nonfinite is not None:
            total = total * float("nan")
        with torch.no_grad():
            logged = _named_by_layer(sums, layers=len(logits) // output.groups)
            logged |= self._figures(output, targets, pairs, losses) | noted
        return LossValues(total, logged, assignment)

    def _losses(
        self,
        layer_logits: Tensor,
        layer_boxes: Tensor,
        pairs: Pairs,
        scoring: Scoring,
        of_any: slice | None = None,
    ) -> dict[str, Tensor]:
        """Return the class losses (L, B, Q) of all queries and the box losses (L, M) of pairs.

        The layers `of_any` tell objects of any category by their first column.
        """
        name = class_loss_for(self.classification, scoring)
        shape = layer_logits.shape[:3]
        classes = target_classes(shape, pairs.places, pairs.classes, no_object=self.num_classes)
        if of_any is not None:
            layer_logits, classes = self._of_any(layer_logits, classes, of_any)
        matched_boxes = at_places(layer_boxes, pairs.places)
        ious = None
        if uses_ious(name):
            of_pairs = ious_of_pairs(matched_boxes, pairs.boxes_cxcywh)
            ious = layer_logits.new_zeros(shape).flatten(1)
            ious = ious.scatter_(1, pairs.places, of_pairs).view(shape)
        return {
            "class": class_loss(
                name,
                layer_logits,
                classes,
                ious,
                no_object_weight=self.no_object_weight,
                alpha=self.focal_alpha,
                gamma=self.focal_gamma,
            ),
            "l1": l1_loss(matched_boxes, pairs.boxes_cxcywh),
            "giou": giou_loss(matched_boxes, pairs.boxes_cxcywh),
        }

    def _of_any(self, logits: Tensor, classes: Tensor, layers: slice) -> tuple[Tensor, Tensor]:
        """Let every object of these layers be one of the first category, and no other be asked."""
        unasked = torch.zeros_like(logits[:, :1, :1], dtype=torch.bool)
        unasked[layers, ..., 1:] = True
        classes = classes.clone()
        classes[layers].masked_fill_(classes[layers] != self.num_classes, 0)
        return logits.masked_fill(unasked, _SURELY_NOT), classes

    def _denoised(
        self,
        denoised: DenoisedOutput,
        targets: TargetBatch,
        normalizer: Normalizer,
        scoring: Scoring,
    ) -> dict[str, Tensor]:
        """Return the (L,) sums of queries whose objects are known, divided by objects x copies."""
        logits, boxes, plan = denoised.layer_logits, denoised.layer_boxes_cxcywh, denoised.plan
        places, target = (
            row.expand(len(logits), -1)
            for row in (plan.image * logits.shape[2] + plan.query, plan.target)
        )
        pairs = Pairs(places, *objects_of(targets, target, boxes))
        losses = without(self._losses(logits, boxes, pairs, scoring), ~plan.present, pairs)
        repeated = normalizer.boxes * plan.copies
        return self._sums(losses, Normalizer(repeated, repeated), scoring)

    def _of_patches(
        self,
        patches: PatchOutput,
        targets: TargetBatch,
        normalizer: Normalizer,
        scoring: Scoring,
        num_queries: int,
    ) -> dict[str, Tensor]:
        """Return the (1,) sums of patches, weighted as `PatchTargets` says, normalised."""
        plan = assign_patches(patches, targets, no_object=self.num_classes)
        places = torch.arange(plan.classes.numel(), device=plan.classes.device)
        boxes = patches.layer_boxes_cxcywh
        pairs = Pairs(
            places.unsqueeze(0),
            plan.classes.view(1, -1),
            plan.boxes_cxcywh.view(1, -1, 4).to(boxes.dtype),
        )
        losses = self._losses(patches.layer_logits, boxes, pairs, scoring)
        losses = without(losses, patches.missing, pairs)
        shares = plan.shares.view(1, -1)
        counted = {"class": plan.class_weights(num_queries), "l1": shares, "giou": shares}
        losses = {name: own * counted[name] for name, own in losses.items()}
        return self._sums(losses, normalizer, scoring)

    def _sums(
        self, losses: Mapping[str, Tensor], normalizer: Normalizer, scoring: Scoring
    ) -> dict[str, Tensor]:
        """Return the (L,) normalised sums."""
        softmax = scoring == "softmax"
        divisor = normalizer.class_weights if softmax else normalizer.boxes
        return {
            "class": losses["class"].sum((1, 2)) / divisor,
            "l1": losses["l1"].sum(1) / normalizer.boxes,
            "giou": losses["giou"].sum(1) / normalizer.boxes,
        }

    def _weighted(self, sums: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[name] * own for name, own in sums.items()]).sum()

    def _figures(
        self,
        output: ModelOutput,
        targets: TargetBatch,
        pairs: Pairs,
        losses: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return errors and costs of the last layer."""
        logits, classes, places = output.logits, pairs.classes[-1], pairs.places[-1]
        best = logits.argmax(-1)
        found = best.flatten().gather(0, places)
        if output.scoring == "sigmoid":  # nothing where no category is more likely than not
            best = best.masked_fill(logits.amax(-1) <= 0, self.num_classes)
            own_logits = logits.flatten(0, 1)[places].gather(1, classes.unsqueeze(1))
            class_costs = focal_cost(own_logits)
        else:  # minus the probability, whose logarithm is lost
            class_costs = at_places(losses["class"][-1:], pairs.places[-1:]).neg().exp().neg()
        return {
            "class_error": class_error(found, classes),
            "cardinality_error": cardinality_error(
                best, targets.counts, no_object=self.num_classes
            ),
        } | self._costs_of_pairs(class_costs, losses["l1"][-1], losses["giou"][-1])

    def _costs_of_pairs(self, of_class: Tensor, l1: Tensor, giou: Tensor) -> dict[str, Tensor]:
        """Return the mean matching costs of (M,) pairs; the GIoU is 1 less the loss."""
        count = max(len(l1), 1)
        matcher = self.matcher
        return {
            "cost_class": of_class.sum() * (matcher.class_cost / count),
            "cost_l1": l1.sum() * (matcher.l1_cost / count),
            "cost_giou": (giou - 1).sum() * (matcher.giou_cost / count),
        }


def _named_by_layer(sums: Mapping[str, Tensor], *, layers: int) -> dict[str, Tensor]:
    """Name the last `layers`, those of the group that predicts."""
    named = {}
    for name, values in sums.items():
        *earlier, last = values.detach()[-layers:].unbind()
        named[name] = last
        named.update({f"{name}_{layer}": value for layer, value in enumerate(earlier)})
    return named
