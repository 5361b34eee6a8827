"""The one resampler of learned position tables, to grids of other sizes."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from detr_kit.models.remembered import Remembered
from detr_kit.sizes import SizeHW


def resample_grid(table: Tensor, from_hw: SizeHW, to_hw: SizeHW) -> Tensor:
    """Resample (L, h * w, D) position vectors bicubically to another grid, (L, h', w', D).

    The size is given explicitly, as factors round; corners are not aligned, nothing is smoothed.
    """
    grid = table.unflatten(1, from_hw)
    if from_hw == to_hw:
        return grid
    # A product with a matrix for each axis: the gradient of `F.interpolate` is slow on a CPU and
    # differs from run to run on a GPU. Autocast would round the positions.
    with torch.autocast(table.device.type, enabled=False):
        along_rows, along_columns = (
            _bicubic_matrix(before, after).to(table)
            for before, after in zip(from_hw, to_hw, strict=True)
        )
        rows = (along_rows @ grid.flatten(2)).unflatten(2, (from_hw[1], -1))  # (L, h', w, D)
        return along_columns @ rows


def bicubic_matrices(before: int, after: Tensor, cells: int, dtype: torch.dtype) -> Tensor:
    """Return the (B, cells, before) matrices that `resample_grid` has for a side of each image.

    `after` (B,) int64 are the sides in cells, at most `cells`; rows after the side are zero. All
    of it is computed on tensors, so that a graph does it for any sizes.
    """
    index = torch.arange(cells, device=after.device)
    after = after.unsqueeze(1)
    own = after.clamp(min=1)
    # Cell i has its centre at (i + 1/2) * before / own - 1/2. In whole numbers, as a float32 would
    # round the distance to the cell before it; one is added, so that nothing is below zero.
    numerator = before * (2 * index + 1) + own
    nearest = numerator // (2 * own)
    distance = (numerator - nearest * (2 * own)).to(dtype) / (2 * own).to(dtype)
    columns = torch.arange(before, device=after.device)
    matrices = torch.zeros((), dtype=dtype, device=after.device)
    for offset, weight in enumerate(_cubic_weights(distance)):
        place = (nearest - 2 + offset).clamp(0, before - 1)  # the border is repeated
        inside = weight.masked_fill(index >= after, 0.0)
        matrices = matrices + (place.unsqueeze(2) == columns).to(dtype) * inside.unsqueeze(2)
    return matrices


def _cubic_weights(distance: Tensor) -> tuple[Tensor, ...]:
    """Weigh two cells on each side by Keys' cubic kernel (1981) with a = -3/4, as torch does.

    `distance` in [0, 1) is that to the second of them. The outer two are written as products:
    the sums that they stand for would lose digits.
    """
    a, before, after = -0.75, distance, 1 - distance
    inner = (((a + 2) * x - (a + 3)) * x * x + 1 for x in (before, after))
    return a * before * after * after, *inner, a * after * before * before


@lru_cache(maxsize=64)
def _bicubic_matrix(before: int, after: int) -> Tensor:
    """Return the (after, before) float64 matrix that resamples a column bicubically."""
    with torch.inference_mode(False), torch.device("cpu"):
        columns = torch.eye(before, dtype=torch.float64)[None, None]
        return F.interpolate(columns, size=(after, before), mode="bicubic", align_corners=False)[
            0, 0
        ]


class CachedResampler:
    """Resamples one table, and remembers the results where no gradient is wanted."""

    MAX_SIZES = 4

    def __init__(self, from_hw: SizeHW) -> None:
        self.from_hw = from_hw
        self._grids = Remembered(self.MAX_SIZES)

    def __call__(self, table: Tensor, to_hw: SizeHW) -> Tensor:
        """Return `resample_grid(table, from_hw, to_hw)`."""
        if torch.is_grad_enabled() and table.requires_grad:
            return resample_grid(table, self.from_hw, to_hw)
        return self._grids((table,), to_hw, lambda: resample_grid(table, self.from_hw, to_hw))

    def clear(self) -> None:
        """Forget everything."""
        self._grids.clear()
