"""What sums of losses are divided by, so that splitting a step changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detr_kit.structures import TargetBatch


@dataclass(frozen=True)
class Normalizer:
    """What the sums of a process's losses are divided by; plain numbers, known on the host.

    `boxes` divides the box losses, `class_weights` the class loss of a softmax. The class loss of
    sigmoids is divided by `boxes` too: there is no weight for `no object` to add up.
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
