"""What a class head loses at each query, by the names that a config gives these losses.

Sources: Lin et al. 2017 ("Focal Loss for Dense Object Detection"), section 3; Zhang et al. 2021
("VarifocalNet"), section 3.2, as Zhao et al. 2024 ("RT-DETR"), section 4.2, use it; Huang et al.
2025 ("DEIM"), section 3.3.

Shape legend: L layers, B images, Q queries, C categories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from detr_kit.errors import DetrKitError
from detr_kit.structures import Scoring

ClassLossName = Literal["cross_entropy", "focal", "varifocal", "matchability"]


@dataclass(frozen=True)
class _Kind:
    """The scoring that a loss is for, whether it asks how well boxes fit, and usual numbers."""

    scoring: Scoring
    uses_ious: bool = False
    alpha: float = 1.0
    gamma: float = 0.0


# Numbers as published. DEIM weights nothing but by the probability.
_KINDS: dict[ClassLossName, _Kind] = {
    "cross_entropy": _Kind("softmax"),
    "focal": _Kind("sigmoid", alpha=0.25, gamma=2.0),
    "varifocal": _Kind("sigmoid", uses_ious=True, alpha=0.75, gamma=2.0),
    "matchability": _Kind("sigmoid", uses_ious=True, alpha=1.0, gamma=1.5),
}


def class_loss_for(name: ClassLossName | Literal["auto"], scoring: Scoring) -> ClassLossName:
    """Return the loss for a model of this scoring; "auto" is cross entropy, or focal for sigmoids.

    Raises DetrKitError where the one does not fit the other.
    """
    if name == "auto":
        return "cross_entropy" if scoring == "softmax" else "focal"
    if _KINDS[name].scoring != scoring:
        fitting = [other for other, kind in _KINDS.items() if kind.scoring == scoring]
        raise DetrKitError(
            f"loss.classification {name!r} needs model.scoring {_KINDS[name].scoring!r}, but the "
            f"model's is {scoring!r}, for which there are {', '.join(('auto', *fitting))}"
        )
    return name


def uses_ious(name: ClassLossName) -> bool:
    """Whether the loss asks for the IoU of matched boxes."""
    return _KINDS[name].uses_ious


def class_loss(
    name: ClassLossName,
    logits: Tensor,
    classes: Tensor,
    ious: Tensor | None = None,
    *,
    no_object_weight: float,
    alpha: float | None = None,
    gamma: float | None = None,
) -> Tensor:
    """Return the (L, B, Q) losses of (L, B, Q, columns) logits, summed over a query's columns.

    `classes` (L, B, Q) are what the queries should say, C for nothing; `ious` (L, B, Q) the IoU of
    each query's box with its object's, for the losses that use it. `alpha` and `gamma` are by
    default those that the loss was published with.
    """
    if name == "cross_entropy":
        return cross_entropy(logits, classes, no_object_weight)
    kind = _KINDS[name]
    alpha = kind.alpha if alpha is None else alpha
    gamma = kind.gamma if gamma is None else gamma
    if name == "focal":
        return focal(logits, classes, alpha, gamma)
    assert ious is not None
    return (varifocal if name == "varifocal" else matchability)(logits, classes, ious, alpha, gamma)


def cross_entropy(layer_logits: Tensor, classes: Tensor, no_object_weight: float) -> Tensor:
    """Return the (L, B, Q) cross entropies, the last class weighted by `no_object_weight`."""
    weight = layer_logits.new_ones(layer_logits.shape[-1])
    weight[-1] = no_object_weight
    losses = F.cross_entropy(
        layer_logits.flatten(0, -2), classes.flatten(), weight=weight, reduction="none"
    )
    return losses.view_as(classes)


def focal(logits: Tensor, classes: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the focal losses: -alpha (1 - p)^gamma log p for the query's class.

    For every other class it is -(1 - alpha) p^gamma log(1 - p). Shapes as in `class_loss`.
    """
    is_class = _is_class(logits, classes)
    # Of the logit towards what is true, t: log p = -softplus(-t) and log(1 - p) = -softplus(t),
    # which lose no digits where p is rounded to 0 or 1.
    towards = torch.where(is_class, logits, -logits)
    losses = (F.softplus(towards) * -gamma).exp() * F.softplus(-towards)
    weight = is_class.to(logits.dtype).mul_(2 * alpha - 1).add_(1 - alpha)
    return (losses * weight).sum(-1)


def varifocal(logits: Tensor, classes: Tensor, ious: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the varifocal losses: the query's class is to have the IoU as its probability.

    It weighs as much as the IoU; every other class is to have 0 and weighs alpha p^gamma. Weights
    carry no gradient. Shapes as in `class_loss`.
    """
    is_class = _is_class(logits, classes)
    goal = is_class * ious.unsqueeze(-1)
    weight = torch.where(is_class, goal, logits.detach().sigmoid().pow(gamma) * alpha)
    return _binary(logits, goal, weight)


def matchability(
    logits: Tensor, classes: Tensor, ious: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Return the matchability-aware losses: IoU^gamma is the goal of the query's class.

    Unlike the varifocal loss it weighs 1 however badly the box fits. Shapes as in `class_loss`.
    """
    is_class = _is_class(logits, classes)
    goal = is_class * ious.pow(gamma).unsqueeze(-1)
    weight = (logits.detach().sigmoid().pow(gamma) * alpha).masked_fill(is_class, 1.0)
    return _binary(logits, goal, weight)


def _binary(logits: Tensor, goal: Tensor, weight: Tensor) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(logits, goal, weight=weight, reduction="none")
    return losses.sum(-1)


def _is_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Return (L, B, Q, C), True at each query's class, nowhere where it stands for nothing."""
    return classes.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
