"""A small detector with places for faults, and the report about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detr_kit.data.loading import Batch
from detr_kit.losses import LossValues, SetCriterion
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.structures import CollatedImages, ImageBatch, ModelOutput, TargetBatch
from detr_kit.training.nonfinite import nonfinite_report

CATEGORIES = 2
PREPROCESSING = Preprocessing(SizeRule("square", 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
NAMES = {17: "a.jpg", 33: "b.jpg", 50: "c.jpg"}


class Fault(nn.Module):
    """Computes `change` of what it is given."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 4)
        self.fault = Fault()
        self.fc2 = nn.Linear(4, 4)
        self.between: Callable[[Tensor], Tensor] = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(self.fault(self.fc1(x))))


class Tiny(nn.Module):
    """Two blocks on the mean colour of a picture, three queries, two decoder layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4, momentum=0.5)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.drop = nn.Dropout(0.1)
        self.class_head = nn.Linear(4, 3 * (CATEGORIES + 1))
        self.box_head = nn.Linear(4, 12)
        self.checkpointed = False

    def forward(self, batch: ImageBatch) -> ModelOutput:
        x = self.norm(self.embed(batch.pixels.mean((2, 3))))
        layers = []
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x))
            layers.append(self.drop(x))
        features = torch.stack(layers)  # (L, B, D)
        logits = self.class_head(features).unflatten(-1, (3, CATEGORIES + 1))
        return ModelOutput(logits, self.box_head(features).unflatten(-1, (3, 4)).sigmoid())


def make_batch(ids: tuple[int, ...] = (17, 33, 50), *, dtype: torch.dtype = torch.uint8) -> Batch:
    """Pictures of one colour each: 0, 100 and 200, one object in each but the second."""
    pixels = torch.stack(
        [torch.full((8, 8, 3), 100 * i + 5 * (i == 1), dtype=dtype) for i in range(len(ids))]
    )
    sizes = ((8, 8),) * len(ids)
    counts = (1, 0, 2)[: len(ids)]
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.5, 0.3]])
    labels = torch.tensor([0, 1, 0])
    total = sum(counts)
    return (
        CollatedImages(pixels, sizes, sizes, ids),
        TargetBatch(labels[:total], boxes[:total], counts, ids),
    )


def bad_for(image: int) -> Callable[[Tensor], Tensor]:
    """The logarithm of a negative number in one value of a row of the batch."""

    def change(x: Tensor) -> Tensor:
        if len(x) == 1:
            return x
        row = torch.zeros_like(x)
        row[image, 0] = -2.0
        return x + torch.log(row + 1.0)

    return change


def report_of(model: nn.Module, *batches: Batch, folder: Path, **changes: Any) -> str:
    criterion = changes.pop("criterion", SetCriterion(CATEGORIES, on_nonfinite="poison"))
    preprocessing = changes.pop("preprocessing", PREPROCESSING)

    def forward(images: CollatedImages, targets: TargetBatch) -> LossValues:
        batch = images.normalized(preprocessing.mean, preprocessing.std)
        return criterion(model(batch), targets)

    settings: dict[str, Any] = {
        "preprocessing": preprocessing,
        "step": 120,
        "rates": {"backbone": 1e-5, "rest": 1e-4},
        "precision": "fp32",
        "forward": forward,
        "folder": folder,
        "name_of": NAMES.__getitem__,
    }
    model.train()
    return str(nonfinite_report(model, criterion, batches, **(settings | changes)))
