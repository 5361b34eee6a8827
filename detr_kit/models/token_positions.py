"""Position vectors of a batch of pictures whose grids of patches differ.

Shape legend: B images, L layers, (h, w) the batch's grid, Q detection tokens, N = 1 + h * w + Q
tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detr_kit.sizes import SizeHW


@dataclass(frozen=True)
class GridPositions:
    """Positions of L layers for a batch: resampled once a size, laid out when a layer asks.

    `class_position` is (L, 1, D), `detection` (L, Q, D), `sampled` maps a grid to (L, h, w, D),
    `grids` holds the images' grids, or one for all.
    """

    class_position: Tensor
    sampled: dict[SizeHW, Tensor]
    detection: Tensor
    grids: list[SizeHW]
    batch_grid: SizeHW

    def of_layer(self, index: int) -> Tensor:
        """Return (B or 1, N, D), zero on padded patches."""
        height, width = self.batch_grid
        laid_out = torch.stack(
            [
                F.pad(self.sampled[grid][index], (0, 0, 0, width - grid[1], 0, height - grid[0]))
                for grid in self.grids
            ]
        )
        count = len(self.grids)
        parts = [self.class_position[index], self.detection[index]]
        before, after = (part.expand(count, -1, -1) for part in parts)
        return torch.cat([before, laid_out.flatten(1, 2), after], dim=1)


@dataclass(frozen=True)
class TracedPositions:
    """The same for sizes that are symbols: every image's grid by matrices for each axis.

    `class_position` is (L, 1, D), `patches` (L, h0 * w0, D) of the grid `from_hw`, `detection`
    (L, Q, D), `along_rows` (B or 1, h, h0), `along_columns` (B or 1, w, w0). With
    `as_they_are`, the patches' positions are taken so by grids of as many cells.
    """

    class_position: Tensor
    patches: Tensor
    detection: Tensor
    from_hw: SizeHW
    along_rows: Tensor
    along_columns: Tensor
    as_they_are: bool

    def of_layer(self, index: int) -> Tensor:
        """Return (B or 1, N, D), zero on padded patches."""
        count, width, from_width = self.along_columns.shape
        height, dim = self.along_rows.shape[1], self.patches.shape[2]
        by_column = self.patches[index].unflatten(0, self.from_hw).transpose(0, 1).flatten(1)
        # Products of two matrices each: `matmul` would look at the sizes, to see if one is 1.
        widened = self.along_columns.reshape(count * width, from_width).mm(by_column)
        widened = widened.view(count, width, self.from_hw[0], dim).transpose(1, 2)
        widened = widened.clone(memory_format=torch.contiguous_format)
        laid_out = self.along_rows.bmm(widened.flatten(2)).view(count, height * width, dim)
        if self.as_they_are:
            laid_out = self._where_agreeing(self.patches[index], laid_out)
        parts = [self.class_position[index], self.detection[index]]
        before, after = (part.expand(laid_out.shape[0], -1, -1) for part in parts)
        return torch.cat([before, laid_out, after], dim=1)

    @staticmethod
    def _where_agreeing(patches: Tensor, laid_out: Tensor) -> Tensor:
        cells = torch.ones_like(laid_out[0, :, 0], dtype=torch.int64).cumsum(0)
        taken = patches[(cells - 1).clamp(max=len(patches) - 1)]
        return torch.where(cells[-1] == len(patches), taken, laid_out)
