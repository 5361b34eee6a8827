"""Drawn outputs of models that score by sigmoids, and objects for them, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from detr_kit.structures import DenoisedOutput, DenoisingPlan, ModelOutput, TargetBatch

CATEGORIES = 3
QUERIES = 5


def drawn_boxes(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.1


def drawn_output(
    seed: int,
    *,
    layers: int = 1,
    images: int = 1,
    groups: int = 1,
    queries: int = QUERIES,
    categories: int = CATEGORIES,
) -> ModelOutput:
    """`groups` times `layers` layers of logits around those of a beginner, and boxes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (layers * groups, images, queries)
    logits = torch.randn(*shape, categories, generator=generator, dtype=torch.float64) * 2 - 1
    boxes = drawn_boxes(generator, *shape)
    return ModelOutput(logits.requires_grad_(), boxes.requires_grad_(), "sigmoid", groups)


def drawn_targets(
    seed: int, counts: tuple[int, ...], *, categories: int = CATEGORIES
) -> TargetBatch:
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(0, categories, (sum(counts),), generator=generator)
    boxes = drawn_boxes(generator, sum(counts))
    return TargetBatch(labels, boxes, counts, tuple(range(100, 100 + len(counts))))


def drawn_denoised(
    seed: int, targets: TargetBatch, *, layers: int = 1, copies: int = 2
) -> DenoisedOutput:
    """Copy after copy of the objects, first the queries that are to find them, then negatives."""
    generator = torch.Generator().manual_seed(seed + 2)
    most, images = max(targets.counts), len(targets.counts)
    shape = (layers, images, 2 * copies * most)
    logits = torch.randn(*shape, CATEGORIES, generator=generator, dtype=torch.float64) * 2 - 1
    boxes = drawn_boxes(generator, *shape)
    present = torch.zeros(images, shape[2], dtype=torch.bool)
    pairs = []
    for image, first, count in objects_of_images(targets.counts):
        for part in range(2 * copies):
            start = part * most
            present[image, start : start + count] = True
            if part % 2 == 0:
                pairs += [(image, start + slot, first + slot) for slot in range(count)]
    image_of, query, target = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3).T
    plan = DenoisingPlan(present, image_of, query, target, copies)
    return DenoisedOutput(logits.requires_grad_(), boxes.requires_grad_(), plan)


def objects_of_images(counts: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Yield each image's number, its first object's, and how many it has."""
    first = 0
    for image, count in enumerate(counts):
        yield image, first, count
        first += count
