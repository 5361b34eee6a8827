"""Running a model in training, where some are told of the objects that they are to find."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detr_kit.structures import ImageBatch, ModelOutput, TargetBatch


def run_model(model: nn.Module, images: ImageBatch, targets: TargetBatch) -> ModelOutput:
    """Return a model's output; `targets`, on its device, go to one that wants them."""
    if wants_targets(model):
        return model(images, targets=targets)
    return model(images)


def wants_targets(model: nn.Module) -> bool:
    """Whether a model learns from objects that it is shown with noise; it may be wrapped."""
    bare: Any = model.module if isinstance(model, DistributedDataParallel) else model
    return bool(getattr(bare, "wants_targets", False))
