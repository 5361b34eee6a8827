"""Which object each patch of a picture is to find, where patches learn beside the queries.

Sources: Zong et al. 2023 ("DETRs with Collaborative Hybrid Assignments Training"), section 3.1:
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

    An object's nearest patch counts as covered, so that one smaller than a patch has one too. All
    that waits for nothing: the host knows the numbers of objects.
    """
    centers, outside = patches.centers, patches.missing.unsqueeze(2)
    labels, boxes = _by_image(targets, centers, no_object)
    apart = (centers.unsqueeze(2) - boxes[:, None, :, :2]).abs()  # (B, P, M, 2)
    inside = (apart <= boxes[:, None, :, 2:] / 2).all(-1)
    nearest = apart.square().sum(-1).masked_fill(outside, torch.inf).argmin(1, keepdim=True)
    covered = inside.scatter(1, nearest, True) & (labels != no_object).unsqueeze(1) & ~outside
    areas = boxes[..., 2:].prod(-1).unsqueeze(1).expand(covered.shape)
    least, own = areas.masked_fill(~covered, torch.inf).min(2)
    found = least.isfinite()
    # Not `one_hot`, which looks at the values first.
    is_own = own.unsqueeze(2) == torch.arange(labels.shape[1], device=own.device)
    is_own = is_own & found.unsqueeze(2)
    patches_of_own = is_own.sum(1).gather(1, own).clamp(min=1)
    own_boxes = boxes.gather(1, own.unsqueeze(2).expand(-1, -1, 4))
    return PatchTargets(
        labels.gather(1, own).masked_fill(~found, no_object),
        own_boxes.masked_fill(~found.unsqueeze(2), 1.0),
        found / patches_of_own,
        ~(found | patches.missing),
    )


def _by_image(targets: TargetBatch, like: Tensor, no_object: int) -> tuple[Tensor, Tensor]:
    """Return the objects as labels (B, M) and boxes (B, M, 4); `no_object` where there is none."""
    images, most = len(targets.counts), max(1, *targets.counts)
    image = image_of_objects(targets.counts)
    first = torch.tensor([0, *targets.counts[:-1]]).cumsum(0)
    place = image * most + torch.arange(len(image)) - first[image]
    place = place.to(like.device, non_blocking=True)
    labels = torch.full((images * most,), no_object, device=like.device)
    boxes = like.new_ones(images * most, 4)
    labels[place] = targets.labels
    boxes[place] = targets.boxes_cxcywh.to(boxes.dtype)
    return labels.view(images, most), boxes.view(images, most, 4)
