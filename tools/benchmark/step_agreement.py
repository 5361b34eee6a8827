"""Whether the two sides of training_step.py are one detector, as a comparison of times needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from step_batches import StepBatch
from step_sides import NUM_CLASSES, peer_without_layer_losses
from torch import Tensor, nn

from detr_kit.losses import SetCriterion
from detr_kit.structures import ModelOutput

BOUND = 1e-4  # of logits, of boxes in [0, 1], and of losses as shares of themselves


@torch.no_grad()
def agreement(ours: nn.Module, peer: Any, batch: StepBatch) -> dict[str, float]:
    """Return differences in evaluation mode, in fp32 on the CPU, by what differs.

    Padding is treated as the official code does, which the peer does too; training treats it as
    each side does by default. The losses of all layers are computed by both sides from our
    outputs; without them, each side computes the last layer's from its own.
    """
    ours.eval()
    peer.eval()
    inputs = batch.for_peer()
    labels, mask = inputs["labels"], inputs["pixel_mask"]
    masks = {"pixel_mask": mask} if hasattr(peer, "model") else {}
    criterion = SetCriterion(NUM_CLASSES)
    with official_padding(ours):
        output = ours(batch.normalized(), all_layers=True)
    last = ModelOutput(output.layer_logits[-1:], output.layer_boxes_cxcywh[-1:])
    with peer_without_layer_losses(peer):
        theirs = peer(inputs["pixel_values"], labels=labels, **masks)
    found = {
        "logits": _largest(output.logits - theirs.logits),
        "boxes": _largest(output.boxes_cxcywh - theirs.pred_boxes),
        "loss, last layer": _relative(criterion(last, batch.targets).total, theirs.loss),
    }
    if len(output.layer_logits) > 1:
        their_loss, *_ = peer.loss_function(
            output.logits,
            labels,
            torch.device("cpu"),
            output.boxes_cxcywh,
            peer.config,
            output.layer_logits,
            output.layer_boxes_cxcywh,
        )
        our_loss = criterion(output, batch.targets).total
        found["loss, all layers"] = _relative(our_loss, their_loss)
    return found


@contextmanager
def official_padding(ours: Any) -> Iterator[None]:
    was = ours.backbone.padding
    ours.backbone.padding = "official"
    try:
        yield
    finally:
        ours.backbone.padding = was


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs() / theirs.abs())
