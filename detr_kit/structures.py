"""The tensor formats that models, losses and post-processing share, each stated once.

Legend: B images, (H, W) the batch's padded size, L decoder layers, Q queries, C categories
(columns of the class head without `no object`), N objects in the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from detr_kit.sizes import SizeHW


@dataclass(frozen=True)
class CollatedImages:
    """Pictures as the data loader hands them over: uint8, padded to a common size.

    `pixels` is (B, H, W, 3) uint8 RGB, arbitrary outside each image. `sizes_hw` are the images'
    own sizes inside the batch, `original_sizes_hw` the sizes of the files they came from, both on
    the host, so that reading them never waits for a device. `image_ids` names the pictures.
    `skipped` says which pictures could not be read and why; a batch may have lost all of its own.
    """

    pixels: Tensor
    sizes_hw: tuple[SizeHW, ...]
    original_sizes_hw: tuple[SizeHW, ...]
    image_ids: tuple[int, ...]
    skipped: tuple[str, ...] = ()

    @classmethod
    def from_images(
        cls,
        images: Sequence[Tensor],
        original_sizes_hw: Sequence[SizeHW],
        image_ids: Sequence[int],
        skipped: Sequence[str] = (),
    ) -> CollatedImages:
        """Put (H, W, 3) uint8 images into the top left of a common size, the largest of each."""
        sizes_hw = tuple((image.shape[0], image.shape[1]) for image in images)
        if len(set(sizes_hw)) == 1:
            pixels = torch.stack(list(images))
        else:
            height = max((height for height, _ in sizes_hw), default=0)
            width = max((width for _, width in sizes_hw), default=0)
            pixels = torch.empty(len(images), height, width, 3, dtype=torch.uint8)
            for row, image in zip(pixels, images, strict=True):
                row[: image.shape[0], : image.shape[1]] = image
                row[: image.shape[0], image.shape[1] :] = 0
                row[image.shape[0] :] = 0
        return cls(pixels, sizes_hw, tuple(original_sizes_hw), tuple(image_ids), tuple(skipped))

    def __len__(self) -> int:
        return len(self.sizes_hw)

    def pin_memory(self) -> CollatedImages:
        return replace(self, pixels=self.pixels.pin_memory())

    def to(self, device: torch.device | str) -> CollatedImages:
        return replace(self, pixels=self.pixels.to(device, non_blocking=True))

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageBatch:
        """Scale to [0, 1], subtract `mean` and divide by `std` per channel; zero the padding."""
        device = self.pixels.device
        batch, height, width, _ = self.pixels.shape
        padding_mask = padding_mask_of(self.sizes_hw, (height, width), device)
        # Rows of pixels against a row of means: a last dimension of 3 would be computed one by
        # one. Made on the host and sent without waiting: a tensor made on a device waits for it.
        mean_row, std_row = (
            torch.tensor(values, dtype=torch.float32).repeat(width).to(device, non_blocking=True)
            for values in (mean, std)
        )
        # A copy also of pixels that are float32 already: what follows works in place.
        rows = self.pixels.reshape(batch, height, width * 3).to(torch.float32, copy=True)
        rows.div_(255.0).sub_(mean_row).div_(std_row)
        floats = rows.view(batch, height, width, 3)
        if any(size != (height, width) for size in self.sizes_hw):
            floats.masked_fill_(padding_mask.unsqueeze(-1), 0.0)
        # The permuted view of (B, H, W, 3) is a channels-last (B, 3, H, W): no copy.
        return ImageBatch(floats.permute(0, 3, 1, 2), padding_mask, self.sizes_hw)


@dataclass(frozen=True)
class ImageBatch:
    """What a model reads.

    `pixels` is (B, 3, H, W) float, normalised, zero on padding; `padding_mask` (B, H, W) bool,
    True on padding; `sizes_hw` each image's own size, top left in the batch.
    """

    pixels: Tensor
    padding_mask: Tensor
    sizes_hw: tuple[SizeHW, ...]

    @classmethod
    def from_images(cls, images: list[Tensor]) -> ImageBatch:
        """Pad normalised (3, H, W) images with zeros on the right and bottom to a common size."""
        sizes_hw = tuple((image.shape[1], image.shape[2]) for image in images)
        height, width = (max(sides) for sides in zip(*sizes_hw, strict=True))
        pixels = images[0].new_zeros(len(images), 3, height, width)
        for row, image in zip(pixels, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        mask = padding_mask_of(sizes_hw, (height, width), pixels.device)
        return cls(pixels, mask, sizes_hw)

    @property
    def has_padding(self) -> bool:
        """Whether any image is smaller than the batch; known on the host."""
        size_hw = (self.pixels.shape[2], self.pixels.shape[3])
        return any(size != size_hw for size in self.sizes_hw)


@dataclass(frozen=True)
class TracedBatch:
    """What a model reads instead of an `ImageBatch` while `torch.export` traces it.

    Sizes are symbols then, and what a graph does cannot depend on them: only the mask knows the
    images' own sizes. `pixels` and `padding_mask` are those of an `ImageBatch`; without a mask,
    every image is as large as the batch.
    """

    pixels: Tensor
    padding_mask: Tensor | None = None

    def own_sides(self) -> tuple[Tensor, Tensor]:
        """Return the images' heights and widths, (B,) int64 each, or (1,) where all are equal."""
        mask = self.padding_mask
        if mask is None:
            height, width = (
                torch.full((1,), side, dtype=torch.int64, device=self.pixels.device)
                for side in self.pixels.shape[2:]
            )
            return height, width
        return (~mask[:, :, 0]).sum(1), (~mask[:, 0, :]).sum(1)


def outside_of(own_sides: tuple[Tensor, Tensor], batch_hw: SizeHW, *, stride: int = 1) -> Tensor:
    """Return the (B, h, w) bool mask of cells whose first pixel lies outside its image.

    `own_sides` are pixels, `batch_hw` cells of `stride` pixels. Nothing here asks for the value of
    a size, which may be a symbol.
    """
    rows, columns = (
        torch.arange(cells, device=own.device) * stride >= own.unsqueeze(1)
        for cells, own in zip(batch_hw, own_sides, strict=True)
    )
    return rows.unsqueeze(2) | columns.unsqueeze(1)


def padding_mask_of(
    sizes_hw: tuple[SizeHW, ...], batch_hw: SizeHW, device: torch.device | str
) -> Tensor:
    """Return the (B, H, W) bool mask that is True outside each image."""
    if all(size == batch_hw for size in sizes_hw):
        return torch.zeros(len(sizes_hw), *batch_hw, dtype=torch.bool, device=device)
    sizes = torch.tensor(sizes_hw, dtype=torch.int64).reshape(-1, 2)
    sizes = sizes.to(device, non_blocking=True)
    return outside_of((sizes[:, 0], sizes[:, 1]), batch_hw)


@dataclass(frozen=True)
class Target:
    """The objects of one image.

    `labels` is (n,) int64, columns of the class head; `boxes_cxcywh` (n, 4) float32 in [0, 1] of
    the unpadded image. `rows` (n,) int64 tells the objects' places in the annotations on the host,
    -1 where unknown; None where none is known.
    """

    labels: Tensor
    boxes_cxcywh: Tensor
    image_id: int
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class TargetBatch:
    """The objects of a batch, image after image, so that they move to a device in two copies.

    `labels` is (N,) int64, `boxes_cxcywh` (N, 4) float32 in [0, 1] of each unpadded image;
    `counts` tells how many belong to each image and lives on the host, as do `image_ids` and
    `rows` (N,), see `Target`.
    """

    labels: Tensor
    boxes_cxcywh: Tensor
    counts: tuple[int, ...]
    image_ids: tuple[int, ...]
    rows: np.ndarray | None = None

    @classmethod
    def from_targets(cls, targets: list[Target]) -> TargetBatch:
        return cls(
            torch.cat([torch.empty(0, dtype=torch.int64), *(t.labels for t in targets)]),
            torch.cat([torch.empty(0, 4), *(t.boxes_cxcywh for t in targets)]),
            tuple(len(target.labels) for target in targets),
            tuple(target.image_id for target in targets),
            np.concatenate([np.empty(0, dtype=np.int64), *map(_rows, targets)]),
        )

    def pin_memory(self) -> TargetBatch:
        return replace(
            self, labels=self.labels.pin_memory(), boxes_cxcywh=self.boxes_cxcywh.pin_memory()
        )

    def to(self, device: torch.device | str) -> TargetBatch:
        return replace(
            self,
            labels=self.labels.to(device, non_blocking=True),
            boxes_cxcywh=self.boxes_cxcywh.to(device, non_blocking=True),
        )


def _rows(target: Target) -> np.ndarray:
    if target.rows is None:
        return np.full(len(target.labels), -1, dtype=np.int64)
    return target.rows


# How the class head scores: a softmax over the categories and `no object`, or each category by its
# own sigmoid, without a column for `no object`.
Scoring = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class DenoisingPlan:
    """What the P denoising queries of a batch stand for; in training only.

    `present` (B, P) bool is False where an image has fewer objects than others of its batch.
    `image`, `query` and `target` (M,) int64 name the queries that are to find their object, and
    its place among the flat objects of the batch; every other query that is present is to find
    nothing. Each object is repeated `copies` times.
    """

    present: Tensor
    image: Tensor
    query: Tensor
    target: Tensor
    copies: int


@dataclass(frozen=True)
class DenoisedOutput:
    """What a model makes of its denoising queries.

    `layer_logits` is (L, B, P, C), `layer_boxes_cxcywh` (L, B, P, 4), of the decoder's layers.
    """

    layer_logits: Tensor
    layer_boxes_cxcywh: Tensor
    plan: DenoisingPlan


@dataclass(frozen=True)
class PatchOutput:
    """What the heads make of the P patches of each image; in training only.

    `layer_logits` (1, B, P, C + 1) or (1, B, P, C) and `layer_boxes_cxcywh` (1, B, P, 4) are as in
    `ModelOutput`. `centers` (B, P, 2) are the (x, y) of patches in [0, 1] of each unpadded image;
    `missing` (B, P) bool is True for those that are not wholly inside it.
    """

    layer_logits: Tensor
    layer_boxes_cxcywh: Tensor
    centers: Tensor
    missing: Tensor


@dataclass(frozen=True)
class ModelOutput:
    """What every detector returns.

    `layer_logits` is (L, B, Q, C + 1), unnormalised, `no object` last, or (L, B, Q, C) where
    `scoring` is "sigmoid"; `layer_boxes_cxcywh` (L, B, Q, 4) in [0, 1] of each unpadded image. The
    last layer is the prediction; L is 1 where no auxiliary outputs were asked for.

    In training there may be several `groups` of Q queries, each with L / groups layers, one group
    after the other, `denoised` queries, and what the heads make of `patches`. With
    `first_is_of_any` the first layer of a group tells objects of any category from none, by its
    first column, which all others repeat.

    `missing` (B, Q) bool is True for queries that stand for nothing, see `Queries`: they find
    nothing and learn nothing. None where there are none.
    """

    layer_logits: Tensor
    layer_boxes_cxcywh: Tensor
    scoring: Scoring = "softmax"
    groups: int = 1
    denoised: DenoisedOutput | None = None
    first_is_of_any: bool = False
    missing: Tensor | None = None
    patches: PatchOutput | None = None

    def at_least_fp32(self) -> ModelOutput:
        """Lift half precision to fp32; fp32 and float64 stay as they are."""
        if self.layer_logits.dtype in (torch.float32, torch.float64):
            return self
        denoised, patches = self.denoised, self.patches
        return replace(
            _lifted(self),
            denoised=None if denoised is None else _lifted(denoised),
            patches=None if patches is None else _lifted(patches),
        )

    @property
    def logits(self) -> Tensor:
        return self.layer_logits[-1]

    @property
    def boxes_cxcywh(self) -> Tensor:
        return self.layer_boxes_cxcywh[-1]


_Output = TypeVar("_Output", ModelOutput, DenoisedOutput, PatchOutput)


def _lifted(output: _Output) -> _Output:
    return replace(
        output,
        layer_logits=output.layer_logits.float(),
        layer_boxes_cxcywh=output.layer_boxes_cxcywh.float(),
    )
