"""Queries and the objects that they are to find, and what is read at their places.

Shape legend: L layers, B images, Q queries, M pairs of a query and an object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detr_kit.structures import TargetBatch


@dataclass(frozen=True)
class Pairs:
    """M queries of each of L layers and what they are to find.

    `places` (L, M) are theirs among the B * Q queries of a layer, `classes` (L, M) and
    `boxes_cxcywh` (L, M, 4) those of their objects.
    """

    places: Tensor
    classes: Tensor
    boxes_cxcywh: Tensor


def target_classes(
    shape: tuple[int, ...], places: Tensor, matched: Tensor, *, no_object: int
) -> Tensor:
    """Return the (L, B, Q) class that each query should predict: that of its object, if any.

    `places` (L, M) are those of matched queries among a layer's B * Q, `matched` their classes.
    """
    classes = torch.full(shape, no_object, dtype=torch.int64, device=places.device)
    return classes.flatten(1).scatter_(1, places, matched).view(shape)


def objects_of(targets: TargetBatch, target: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return classes (L, M) and boxes (L, M, 4), in the precision of `boxes`, of objects."""
    return targets.labels[target], targets.boxes_cxcywh.to(boxes.dtype)[target]


def without(losses: dict[str, Tensor], missing: Tensor, pairs: Pairs) -> dict[str, Tensor]:
    """Return the losses of the queries that are not `missing` (B, Q), zeros for the others."""
    of_pairs = missing.flatten()[pairs.places]
    return {
        name: own.masked_fill(missing if name == "class" else of_pairs, 0.0)
        for name, own in losses.items()
    }


def at_places(values: Tensor, places: Tensor) -> Tensor:
    """Return (L, M, ...) out of (L, B, Q, ...)."""
    flat = values.flatten(1, 2)
    index = places.view(*places.shape, *[1] * (flat.dim() - 2))
    return flat.gather(1, index.expand(*places.shape, *flat.shape[2:]))
