"""Which object each patch of a picture is to find, where patches learn beside the queries.

Sources: Zong et al. 2023 ("DETRs with Collaborative Hybrid Assignments Training"), section 3.2:
heads with one-to-many assignments on the tokens of an encoder, in training alone; Tian et al. 2019
("FCOS"), section 3.1: a place inside several boxes belongs to the smallest.

Shape legend: B images, P patches, M most objects of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detr_kit.matching import image_of_objects
from detr_kit.structures import PatchOutput, TargetBatch


@dataclass(frozen=True)
class PatchTargets:
    """What patches are to find.

    Where that is nothing, `classes` (B, P) is `no_object` and `boxes_cxcywh` (B, P, 4) ones, with
    which no loss is infinite. `shares` (B, P) sum to 1 over the patches of an object and are 0 for
    other patches; `background` (B, P) is True for patches inside their image that are to find
    nothing.
    """

    classes: Tensor
    boxes_cxcywh: Tensor
    shares: Tensor
    background: Tensor

    def class_weights(self, num_queries: int) -> Tensor:
        """Return what the patches' (B, P) class losses count, 0 for those outside their image.

        An object counts once, however many patches it has, and the background of a picture as
        much as `num_queries` queries that find nothing.
        """
        counts = self.background.sum(1, keepdim=True).clamp(min=1)
        return torch.where(self.background, num_queries / counts, self.shares)


@torch.no_grad()
def assign_patches(patches: PatchOutput, targets: TargetBatch, *, no_object: int) -> PatchTargets:
    """Give every patch the smallest object whose box covers its centre.

    An object's nearest patch counts as covered, so that one smaller than a patch has one too. An
    object left with none, as smaller ones or an equal one have them all, takes its nearest patch
    from an owner that has more; where that one has none to spare either, it goes without.
    Nothing here waits for the device: the host knows the numbers of objects.
    """
    labels, boxes = _by_image(targets, patches.centers, no_object)
    covered, nearest = _covered(patches, boxes)
    real = (labels != no_object).unsqueeze(1)
    areas = boxes[..., 2:].prod(-1).unsqueeze(1).masked_fill(~(covered & real), torch.inf)
    is_own = _is_least(areas)
    counts = is_own.sum(1, keepdim=True)
    to_spare = (is_own & (counts > 1)).any(2, keepdim=True)
    # Areas are 1 at most: whoever has nothing comes first, the smallest of several.
    is_own = _is_least(torch.where(nearest & to_spare & real & (counts == 0), areas - 2, areas))
    counts = is_own.sum(1, keepdim=True).clamp(min=1)
    found, own = is_own.any(2), is_own.long().argmax(2)
    own_boxes = boxes.gather(1, own.unsqueeze(2).expand(-1, -1, 4))
    return PatchTargets(
        labels.gather(1, own).masked_fill(~found, no_object),
        own_boxes.masked_fill(~found.unsqueeze(2), 1.0),
        (is_own / counts).sum(2),
        ~(found | patches.missing),
    )


def _covered(patches: PatchOutput, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, P, M) where a patch counts as covered by a box, and where it is its nearest.

    Patches outside their image are neither.
    """
    x, y = ((patches.centers[..., i : i + 1] - boxes[:, None, :, i]).abs() for i in (0, 1))
    inside = (x <= boxes[:, None, :, 2] / 2) & (y <= boxes[:, None, :, 3] / 2)
    outside = patches.missing.unsqueeze(2)
    away = x.square_().add_(y.square_()).masked_fill_(outside, torch.inf)
    is_nearest = torch.zeros_like(inside).scatter_(1, away.argmin(1, keepdim=True), True) & ~outside
    return (inside & ~outside) | is_nearest, is_nearest


def _is_least(areas: Tensor) -> Tensor:
    """Return (B, P, M), True at the least finite area of each patch, the first of equal ones."""
    least, place = areas.min(2, keepdim=True)
    return torch.zeros_like(areas, dtype=torch.bool).scatter_(2, place, least.isfinite())


def _by_image(targets: TargetBatch, like: Tensor, no_object: int) -> tuple[Tensor, Tensor]:
    """Return the objects as labels (B, M) and boxes (B, M, 4); `no_object` where there is none."""
    images, most = len(targets.counts), max((1, *targets.counts))
    image = image_of_objects(targets.counts)
    first = torch.tensor([0, *targets.counts[:-1]]).cumsum(0)
    place = image * most + torch.arange(len(image)) - first[image]
    place = place.to(like.device, non_blocking=True)
    labels = torch.full((images * most,), no_object, device=like.device)
    boxes = like.new_ones(images * most, 4)
    labels[place] = targets.labels
    boxes[place] = targets.boxes_cxcywh.to(boxes.dtype)
    return labels.view(images, most), boxes.view(images, most, 4)
