"""CNN backbones: torchvision's ResNets and any timm CNN, with predictions that ignore padding.

Why padding needs care: zeros beside an image do not stay zero (a bias is added, a normalisation
shifts them), so that the next 3x3 convolution at the image's edge reads what an image alone would
not have there. The input of every wider convolution and pooling is therefore zeroed outside each
image; its true extent halves, rounding up, at every stride.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.extents import Extents, pad_to_multiple, pad_traced, zero_outside
from detr_kit.models.folding import fold_frozen_norms, forget_folded
from detr_kit.models.norms import NormKind, replace_batch_norms
from detr_kit.models.pyramid import Level
from detr_kit.models.trunks import Trunk, build_trunk
from detr_kit.sizes import SizeHW
from detr_kit.structures import ImageBatch, TracedBatch, outside_of

Padding = Literal["independent", "official"]


class Backbone(nn.Module):
    """A CNN that maps an image batch to feature maps and their padding masks.

    `name` is one of `RESNETS`, "plain" or "timm/NAME"; `stages` keeps the first of the CNN's
    stages (None: all); `dilation` replaces the last stage's stride (DC5); `frozen_stages` counts
    the stem as the first. `level_strides` and `level_channels` describe the maps of the last
    `num_levels` stages, the finest first; `stride` and `num_channels` the last of them.

    Raises DetrKitError for an unknown name and for settings that the CNN does not have.
    """

    def __init__(
        self,
        name: str,
        *,
        norm: NormKind,
        stages: int | None = None,
        dilation: bool = False,
        frozen_stages: int = 0,
        padding: Padding = "independent",
        num_levels: int = 1,
    ) -> None:
        super().__init__()
        self.name = name
        self.padding = padding
        trunk = build_trunk(name, stages, dilation=dilation)
        _check_levels(trunk, num_levels, name)
        self.body = trunk.body
        self.num_levels = num_levels
        self.level_strides = tuple(trunk.strides[-num_levels:])
        self.level_channels = tuple(trunk.channels[-num_levels:])
        self.stride, self.num_channels = self.level_strides[-1], self.level_channels[-1]
        # A ResNet pads its convolutions alike on all sides: an image alone needs no extra rows.
        # Others may choose their padding by size, which only a multiple of the stride keeps equal.
        self.pads_alone = name.startswith("timm/")
        self.extents = Extents()
        replace_batch_norms(self.body, norm, self.extents)
        if norm == "frozen":
            fold_frozen_norms(self.body, side=2 * self.stride)
        _freeze(self.body, trunk.ends, frozen_stages, name)
        self.extents.watch(self.body)
        self.image_by_image = False
        if self.pads_alone and padding == "independent":
            self.image_by_image = self._depends_on_padding()

    def forward(self, batch: ImageBatch | TracedBatch) -> Level:
        """Return (B, C, h, w) features and their (B, h, w) mask, None where nothing is padded."""
        return self.levels(batch)[-1]

    def levels(self, batch: ImageBatch | TracedBatch) -> list[Level]:
        """Return the (B, C, h, w) map and (B, h, w) mask of each level, the finest first.

        A level's side is half of the one before, rounded up. Either all masks are None, where
        nothing is padded, or none is.
        """
        if isinstance(batch, TracedBatch):
            return self._traced(batch)
        if self.image_by_image and len(batch.sizes_hw) > 1:
            return self._one_by_one(batch)
        pixels, mask, padded = batch.pixels, batch.padding_mask, batch.has_padding
        official = self.padding == "official"
        if self._pads_to_stride or (padded and not official):
            pixels, mask = pad_to_multiple(pixels, mask, self.stride)
            padded = padded or pixels is not batch.pixels
        watched = padded and not official and not self.image_by_image
        with self.extents.of(mask, self.stride) if watched else nullcontext():
            maps = self._maps(pixels)
        if not padded and not self.image_by_image:
            return [(features, None) for features in maps]
        if official:
            return [(features, _nearest(mask, features)) for features in maps]
        # Only cells of the batch itself are of use; one is outside an image where its first pixel
        # is.
        outside = [batch.padding_mask[:, ::stride, ::stride] for stride in self.level_strides]
        return [
            _emptied(features[:, :, : mask.shape[1], : mask.shape[2]], mask)
            for features, mask in zip(maps, outside, strict=True)
        ]

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; batch norms without gradients keep their statistics.

        Folded weights are forgotten too, as `.data` writes leave them unnoticed.
        """
        super().train(mode)
        forget_folded(self.body)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self

    @property
    def _pads_to_stride(self) -> bool:
        """Whether images of every size are padded to a multiple of the stride.

        Of several levels, only this makes sure that each has half the size of the one before.
        """
        return self.pads_alone and (self.padding == "independent" or self.num_levels > 1)

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        """Run the CNN; returns the maps of the levels."""
        if not isinstance(self.body, nn.Sequential):
            return list(self.body(pixels)[-self.num_levels :])
        maps: list[Tensor] = []
        before = len(self.body) - self.num_levels
        for index, part in enumerate(self.body):
            pixels = part(pixels)
            if index >= before:
                maps.append(pixels)
        return maps

    def _traced(self, batch: TracedBatch) -> list[Level]:
        """Do the same for any sizes in one graph, of a model that `traceable_copy` has prepared.

        Masks are given out wherever one is given, and for the finer levels of what is padded to a
        multiple of the stride; the coarsest has no cell in that.
        """
        pixels, mask = batch.pixels, batch.padding_mask
        if self._pads_to_stride:
            pixels = pad_traced(pixels, self.stride)
        official = self.padding == "official"
        masked = mask is not None or (self._pads_to_stride and self.num_levels > 1)
        watched = not official and not self.image_by_image and (masked or self.pads_alone)
        own_sides = batch.own_sides()
        with self.extents.of_traced(own_sides) if watched else nullcontext():
            maps = self._maps(pixels)
        if not masked:
            return [(features, None) for features in maps]
        if official and mask is not None and not self._pads_to_stride:
            return [(features, _nearest(mask, features)) for features in maps]
        outside = [
            outside_of(own_sides, (features.shape[2], features.shape[3]), stride=stride)
            for features, stride in zip(maps, self.level_strides, strict=True)
        ]
        if official:
            return list(zip(maps, outside, strict=True))
        return [_emptied(*level) for level in zip(maps, outside, strict=True)]

    def _one_by_one(self, batch: ImageBatch) -> list[Level]:
        """Run each image alone, for layers that see the whole picture at once."""
        rows: list[list[Level]] = []
        for row, (height, width) in enumerate(batch.sizes_hw):
            alone = ImageBatch(
                batch.pixels[row : row + 1, :, :height, :width],
                batch.padding_mask[row : row + 1, :height, :width],
                ((height, width),),
            )
            rows.append(self.levels(alone))
        together = []
        for images, stride in zip(zip(*rows, strict=True), self.level_strides, strict=True):
            height, width = (-(-side // stride) for side in batch.pixels.shape[2:])
            together.append(_together(images, (height, width)))
        return together

    @torch.no_grad()
    def _depends_on_padding(self) -> bool:
        """Whether an image's features change with the batch it is in, found by trying it.

        Squeeze-and-excitation, for example, averages over everything, padding included.
        """
        parameter = next(self.body.parameters())
        if parameter.is_meta:
            return False
        trial = copy.deepcopy(self).double().eval()
        for module in trial.body.modules():
            weight = getattr(module, "weight", None)
            # Norms that begin at zero would silence what comes before them.
            if isinstance(weight, Tensor) and weight.ndim == 1 and not weight.any():
                nn.init.ones_(weight)
        generator = torch.Generator().manual_seed(0)
        # However small the stride: sides of many cells, the first image's no multiples of it.
        side = max(2 * self.stride, 64)
        sizes = ((side - 11, side + 5), (side + side // 2 + 3, 2 * side))
        images = [
            torch.randn(3, *size, generator=generator, dtype=torch.float64, device="cpu").to(
                parameter.device
            )
            for size in sizes
        ]
        together, _ = trial(ImageBatch.from_images(images))
        alone, _ = trial(ImageBatch.from_images(images[:1]))
        difference = together[:1, :, : alone.shape[2], : alone.shape[3]] - alone
        return bool(difference.abs().max() > 1e-9 * alone.abs().max())


def _emptied(features: Tensor, outside: Tensor) -> Level:
    return zero_outside(features, outside), outside


def _nearest(mask: Tensor, features: Tensor) -> Tensor:
    """Bring a (B, H, W) mask to the size of a feature map, by nearest neighbour."""
    floats = mask.unsqueeze(1).to(features.dtype)
    return F.interpolate(floats, size=features.shape[2:]).squeeze(1) > 0.5


def _together(images: Sequence[Level], size_hw: SizeHW) -> Level:
    """Pad single images' maps of one level to a common size."""
    maps, masks = [], []
    for features, mask in images:
        missing = (0, size_hw[1] - features.shape[3], 0, size_hw[0] - features.shape[2])
        if mask is None:
            mask = features.new_zeros(1, *features.shape[2:], dtype=torch.bool)
        maps.append(F.pad(features, missing))
        masks.append(F.pad(mask, missing, value=True))
    return torch.cat(maps), torch.cat(masks)


def _check_levels(trunk: Trunk, count: int, name: str) -> None:
    strides = trunk.strides[-count:]
    if not 1 <= count <= len(trunk.strides):
        raise DetrKitError(
            f"levels: {count} feature maps are wanted of {name}, whose stages give "
            f"{len(trunk.strides)}"
        )
    if any(2 * finer != coarser for finer, coarser in itertools.pairwise(strides)):
        raise DetrKitError(
            f"levels: the strides of the last {count} stages of {name} are {strides}, but each "
            "must be twice the one before (dilation keeps the last one from it)"
        )


def _freeze(body: nn.Module, ends: list[str], count: int, name: str) -> None:
    """Take the gradients of everything up to the end of the given number of stages."""
    if count > len(ends):
        raise DetrKitError(f"frozen_stages {count}: {name} has {len(ends)}, the stem included")
    if count == 0:
        return
    last = ends[count - 1]
    reached = False
    for module_name, module in body.named_modules():
        # timm flattens "stages.0" to "stages_0" in some of its wrappers.
        inside = any(
            module_name == end or module_name.startswith(end + ".")
            for end in (last, last.replace(".", "_"))
        )
        if reached and not inside:
            return
        reached = reached or inside
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    if not reached:
        raise DetrKitError(f"frozen_stages {count}: {name} has no module {last}; set 0")
