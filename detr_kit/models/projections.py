"""From a CNN's feature maps to maps of one width, and to further, coarser ones.

Source: Zhu et al. 2021 ("Deformable DETR"), appendix A.2 and figure 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.backbones import Padding
from detr_kit.models.convolutions import ConvNorm, initialize_convolutions
from detr_kit.models.extents import halved_mask, zero_outside
from detr_kit.models.norms import group_norm_inside
from detr_kit.models.pyramid import Level

LevelNorm = Literal["group", "batch"]


class LevelProjections(nn.ModuleList):
    """A 1x1 convolution and a norm for each map, 3x3 ones of stride 2 for the levels beyond them.

    The first level beyond reads the last of the given maps, each further one the level before it.
    Group norms have 32 groups, or fewer where 64 does not divide `dim`; with `padding`
    "independent" their statistics are those of each image's own cells. Convolutions before batch
    norms have no bias.

    Raises DetrKitError where there are fewer levels than maps.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        num_levels: int,
        norm: LevelNorm = "group",
        padding: Padding = "independent",
    ) -> None:
        super().__init__()
        if num_levels < len(channels):
            raise DetrKitError(f"levels {num_levels}: the backbone gives {len(channels)}")
        self.padding = padding
        for level in range(num_levels):
            beyond = level - len(channels)
            width = channels[level] if beyond < 0 else channels[-1] if beyond == 0 else dim
            self.append(_projection(width, dim, norm, halves=beyond >= 0))
        initialize_convolutions(self)

    def forward(self, levels: Sequence[Level], padding_mask: Tensor | None = None) -> list[Level]:
        """Map (B, C, h, w) maps and their (B, h, w) masks to (B, D, h, w) maps, finest first.

        `padding_mask` (B, H, W) is the images' own: with `padding` "official" the masks of the
        levels beyond are taken from it; without it, from the mask of the last given level.
        """
        projected: list[Level] = []
        source, source_mask = levels[-1]
        for level, projection in enumerate(self):
            assert isinstance(projection, nn.Sequential)
            beyond = level >= len(levels)
            features, mask = (source, source_mask) if beyond else levels[level]
            if beyond and self.padding == "independent":
                features = zero_outside(features, mask)
            grouped = not isinstance(projection, ConvNorm)
            features = projection[0](features) if grouped else projection(features)
            if beyond and mask is not None:
                mask = self._coarser(mask, padding_mask, features)
            if grouped:  # by the mask of what the convolution returned
                features = self._normed(features, mask, projection[1])
            projected.append((features, mask))
            if beyond:
                source, source_mask = features, mask
        return projected

    def _coarser(self, mask: Tensor, padding_mask: Tensor | None, features: Tensor) -> Tensor:
        """Return the mask of a map that halves the one of `mask`."""
        size_hw = (features.shape[2], features.shape[3])
        if self.padding == "independent":
            return halved_mask(mask, size_hw)
        images = mask if padding_mask is None else padding_mask
        return F.interpolate(images.unsqueeze(1).float(), size=size_hw).squeeze(1) > 0.5

    def _normed(self, features: Tensor, mask: Tensor | None, norm: nn.Module) -> Tensor:
        if mask is None or self.padding == "official":
            return norm(features)
        assert isinstance(norm, nn.GroupNorm)
        # Half precision is too little for sums over a map. Under autocast the result stays single,
        # as that of any norm does; a model that is half precision itself goes on in it.
        wide = torch.promote_types(features.dtype, torch.float32)
        normed = group_norm_inside(features.to(wide), mask.unsqueeze(1), norm)
        return normed.to(norm.weight.dtype)


def _projection(in_channels: int, dim: int, norm: LevelNorm, *, halves: bool) -> nn.Sequential:
    size, stride = (3, 2) if halves else (1, 1)
    if norm == "batch":
        return ConvNorm(in_channels, dim, size, stride=stride, names=("0", "1"))
    conv = nn.Conv2d(in_channels, dim, size, stride=stride, padding=size // 2)
    # Two channels a group at least: one alone in a map of a single cell would be normalised to 0.
    groups = math.gcd(32, dim // 2) if dim % 2 == 0 else 1
    return nn.Sequential(conv, nn.GroupNorm(groups, dim))
