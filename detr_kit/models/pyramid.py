"""Feature maps of several strides, as maps and as one row of tokens.

Source: Zhu et al. 2021 ("Deformable DETR"), section 4.1 and appendix A.2.

Shape legend: B images, K levels, S tokens of all levels together, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detr_kit.sizes import SizeHW

# A (B, C, h, w) map and its (B, h, w) mask, True on padding; None where nothing is padded.
Level = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Pyramid:
    """The tokens of several feature maps, the finest map first, each row by row.

    `tokens` is (B, S, D); `sizes_hw` are the maps' sizes, whose areas sum to S. `padding_mask`
    (B, S) is True on padding. `filled_wh` (B, K, 2) int64 tells how many cells of each map's width
    and height an image fills. Both are None where every image fills its maps.
    """

    tokens: Tensor
    sizes_hw: tuple[SizeHW, ...]
    padding_mask: Tensor | None = None
    filled_wh: Tensor | None = None

    def with_tokens(self, tokens: Tensor) -> Pyramid:
        """Return the same maps with other tokens."""
        return replace(self, tokens=tokens)

    def own_sizes_wh(self) -> Tensor:
        """Return the (B or 1, K, 2) widths and heights of each image's part of the maps, in cells.

        In the precision of the tokens, single precision at least.
        """
        wide = torch.promote_types(self.tokens.dtype, torch.float32)
        if self.filled_wh is not None:
            return self.filled_wh.to(wide)
        device = self.tokens.device
        # Filled one by one: a list of sizes would wait for a device, and symbols make no list.
        sides = [
            torch.full((1,), side, dtype=wide, device=device)
            for height, width in self.sizes_hw
            for side in (width, height)
        ]
        return torch.cat(sides).view(1, -1, 2)

    def cell_centers(self) -> Tensor:
        """Return the (B or 1, S, 2) centres (x, y) of all cells, in [0, 1] of the unpadded images.

        Those of padded cells lie beyond 1. In the precision of `own_sizes_wh`.
        """
        own_wh = self.own_sizes_wh()
        centers = []
        for level, (height, width) in enumerate(self.sizes_hw):
            x, y = (
                torch.arange(side, device=own_wh.device, dtype=own_wh.dtype) + 0.5
                for side in (width, height)
            )
            grid = torch.stack([x.expand(height, -1), y.unsqueeze(1).expand(-1, width)], dim=-1)
            centers.append(grid.flatten(0, 1) / own_wh[:, level : level + 1])
        return torch.cat(centers, dim=1)

    def split(self, rows: Tensor) -> list[Tensor]:
        """Cut (B, S, ...) along the tokens into one (B, h * w, ...) a level."""
        return list(rows.split([height * width for height, width in self.sizes_hw], dim=1))

    def maps(self) -> list[Tensor]:
        """Return the tokens as (B, D, h, w) maps, the finest first."""
        return [
            rows.transpose(1, 2).unflatten(2, size_hw)
            for rows, size_hw in zip(self.split(self.tokens), self.sizes_hw, strict=True)
        ]

    def masks(self) -> list[Tensor | None]:
        """Return the (B, h, w) mask of each level."""
        if self.padding_mask is None:
            return [None] * len(self.sizes_hw)
        return [
            rows.unflatten(1, size_hw)
            for rows, size_hw in zip(self.split(self.padding_mask), self.sizes_hw, strict=True)
        ]


def flatten_levels(levels: Sequence[Level]) -> Pyramid:
    """Lay out (B, D, h, w) maps, the finest first, as one row of tokens.

    Masks are given for all levels or for none.
    """
    maps = [features for features, _ in levels]
    masks = [mask for _, mask in levels if mask is not None]
    tokens = torch.cat([features.flatten(2).transpose(1, 2) for features in maps], dim=1)
    sizes_hw = tuple((features.shape[2], features.shape[3]) for features in maps)
    if not masks:
        return Pyramid(tokens, sizes_hw)
    padding_mask = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    filled = [
        torch.stack([(~mask[:, 0, :]).sum(1), (~mask[:, :, 0]).sum(1)], dim=1) for mask in masks
    ]
    return Pyramid(tokens, sizes_hw, padding_mask, torch.stack(filled, dim=1))
