"""Queries that stand for known objects, with noise: they teach the decoder without matching.

Source: Li et al. 2022 ("DN-DETR"), section 4; Zhang et al. 2023 ("DINO"), section 3.3, and the
official `prepare_for_cdn`.

Shape legend: B images, P denoising queries, D channels, N objects in the batch, M positives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from detr_kit.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detr_kit.structures import DenoisingPlan, TargetBatch


@dataclass(frozen=True)
class Denoised:
    """The denoising queries of a batch: copy after copy, each with its positives first.

    `content` is (B, P, D), `reference` (B, P, 4) boxes in [0, 1].
    """

    content: Tensor
    reference: Tensor
    plan: DenoisingPlan


@dataclass(frozen=True)
class _Slots:
    """What each query stands for: `objects` (B, P) among the N, `present` (B, P), `negative` (P,).

    `pairs` (3, M) are image, query and object of the positives.
    """

    objects: Tensor
    present: Tensor
    negative: Tensor
    pairs: Tensor
    copies: int


class Denoising(nn.Module):
    """Makes queries of the objects: boxes with noise, categories some of which are wrong.

    Each object is repeated as often as about `num_queries` queries allow, at least once, each time
    by a positive query, which is to find it, and a negative one, which is to find nothing. A
    positive's corners move by up to half a side times `box_noise`, along each axis; a negative's
    by one to two times as much. Corners of a negative that pass each other change places, as in the
    official code of Huang et al. 2025 ("DEIM"); DINO's leaves a box without width or height there.
    A category is drawn anew with a chance of `label_noise` / 2.

    `labels` embeds the categories; its last row, which stays zero, is for queries without object.
    """

    def __init__(
        self, num_classes: int, dim: int, num_queries: int, *, label_noise: float, box_noise: float
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.labels = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)

    def forward(self, targets: TargetBatch) -> Denoised | None:
        """Return the queries of a batch, None where it holds no object.

        `targets` is on the model's device. Noise is drawn there; sizes follow from the counts.
        """
        if not any(targets.counts):
            return None
        slots = self._slots(targets.counts, targets.labels.device)
        labels = self._noisy_labels(targets.labels[slots.objects])
        labels = labels.masked_fill(~slots.present, self.num_classes)
        boxes = self._noisy_boxes(targets.boxes_cxcywh[slots.objects], slots.negative)
        image, query, target = slots.pairs
        content = self.labels(labels)
        plan = DenoisingPlan(slots.present, image, query, target, slots.copies)
        return Denoised(content, boxes, plan)

    def nothing(self) -> Tensor:
        """Return a zero that depends on the parameters, for batches without denoising queries.

        Processes that average their gradients then agree on whose there are.
        """
        return self.labels.weight.sum() * 0.0

    def _slots(self, counts: tuple[int, ...], device: torch.device) -> _Slots:
        most = max(counts)
        copies = max(1, self.num_queries // (2 * most))
        per_image = np.array(counts)
        starts = per_image.cumsum() - per_image
        slot = np.arange(most)
        exists = slot < per_image[:, None]
        objects = np.tile(np.where(exists, starts[:, None] + slot, 0), 2 * copies)
        present = np.tile(exists, 2 * copies)
        negative = np.arange(2 * copies).repeat(most) % 2 == 1
        image, query = (present & ~negative).nonzero()
        pairs = np.stack([image, query, objects[image, query]])
        slots, exist, negatives, of_positives = (
            torch.from_numpy(rows).to(device, non_blocking=True)
            for rows in (objects, present, negative, pairs)
        )
        return _Slots(slots, exist, negatives, of_positives, copies)

    def _noisy_labels(self, labels: Tensor) -> Tensor:
        drawn_anew = torch.rand(labels.shape, device=labels.device) < self.label_noise / 2
        return torch.where(drawn_anew, torch.randint_like(labels, self.num_classes), labels)

    def _noisy_boxes(self, boxes_cxcywh: Tensor, negative: Tensor) -> Tensor:
        share = torch.rand_like(boxes_cxcywh) + negative.unsqueeze(-1)
        sign = torch.randint_like(boxes_cxcywh, 2) * 2 - 1
        half = boxes_cxcywh[..., 2:].repeat(1, 1, 2) / 2
        corners = cxcywh_to_xyxy(boxes_cxcywh) + share * sign * half * self.box_noise
        center, sides = xyxy_to_cxcywh(corners.clamp(0, 1)).split(2, dim=-1)
        # Corners that have moved past each other still span a box.
        return torch.cat([center, sides.abs()], dim=-1)


def blocked_queries(
    groups: int, num_queries: int, denoising: int, copies: int, device: torch.device
) -> Tensor | None:
    """Return the (N, N) bool mask of queries (columns) that others (rows) must not see.

    There are `groups` of `num_queries`, then `copies` of `denoising` / `copies` queries each. Every
    part sees itself, and the copies see the first group too, as in DINO; what predicts sees none of
    what is there for training only. None where there is one group alone.
    """
    if groups == 1 and not denoising:
        return None
    index = torch.arange(groups * num_queries + denoising, device=device)
    part = index // num_queries
    if denoising:
        of_copies = (index - groups * num_queries) // (denoising // copies) + groups
        part = torch.where(index < groups * num_queries, part, of_copies)
    blocked = part.unsqueeze(1) != part
    return blocked & ~((part >= groups).unsqueeze(1) & (part == 0))
