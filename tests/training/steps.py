"""Training steps of a tiny detector on random pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from detr_kit.config import ModelConfig
from detr_kit.losses import SetCriterion, StepCounts
from detr_kit.matching import HungarianMatcher
from detr_kit.models.zoo import build_model, resolve
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.structures import CollatedImages, ImageBatch, ModelOutput, Target, TargetBatch
from detr_kit.training.step import Batch, StepFigures, TrainingStep
from tests.training.conftest import TINY, TINY_DETR

CATEGORIES = 3
QUERIES = 6
PREPROCESSING = Preprocessing(SizeRule("square", 64), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def batch(places: Sequence[int]) -> Batch:
    """Random pictures, each by its number: every third without objects, odd ones narrower."""
    images, targets = [], []
    for place in places:
        generator = torch.Generator().manual_seed(place)
        size_hw = (64, 48) if place % 2 else (64, 64)
        images.append(torch.randint(0, 256, (*size_hw, 3), generator=generator, dtype=torch.uint8))
        count = place % 3
        boxes = torch.rand(count, 4, generator=generator) * 0.4 + 0.1
        labels = torch.randint(0, CATEGORIES, (count,), generator=generator)
        targets.append(Target(labels, boxes, image_id=place))
    sizes_hw = [(image.shape[0], image.shape[1]) for image in images]
    return CollatedImages.from_images(images, sizes_hw, places), TargetBatch.from_targets(targets)


def make_step(family: str = "detr", **options: Any) -> TrainingStep:
    torch.manual_seed(0)
    model = build_model(resolve(ModelConfig(**TINY[family])), num_classes=CATEGORIES).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    return _step(model, optimizer, Accelerator(cpu=True), **options)


class Double(nn.Module):
    """A detector in float64, which casts the pixels that it is given."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector.double()

    def forward(self, images: ImageBatch) -> ModelOutput:
        return self.detector(replace(images, pixels=images.pixels.double()))


def make_double_step() -> TrainingStep:
    """Gradient descent in float64 with a norm that does not see the batch, and no dropout."""
    torch.manual_seed(0)
    numbers = {**TINY_DETR, "dropout": 0.0, "backbone_norm": "group"}
    model = Double(build_model(resolve(ModelConfig(**numbers)), num_classes=CATEGORIES)).train()
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    return _step(model, optimizer, accelerator, clip=0.0)


def _step(model: nn.Module, optimizer: Any, accelerator: Accelerator, **options: Any) -> Any:
    return TrainingStep(
        model,
        SetCriterion(CATEGORIES, HungarianMatcher(), on_nonfinite="poison"),
        optimizer,
        accelerator,
        PREPROCESSING,
        num_queries=QUERIES,
        **options,
    )


def take(step: TrainingStep, number: int, *batches: Batch) -> StepFigures | None:
    counts = StepCounts.of([targets for _, targets in batches], QUERIES)
    return step(batches, number, counts)


def first_and_last(
    step: TrainingStep, pictures: Batch, *, steps: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Take so many steps on the same pictures; return the figures of the first and last known."""
    known = [take(step, number, pictures) for number in range(steps)]
    values = [figures.values for figures in known if figures is not None]
    return values[0], values[-1]
