"""Position encodings of feature maps, and the one resampler of learned position tables."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.remembered import Remembered
from detr_kit.sizes import SizeHW


class SinePositions(nn.Module):
    """Sines and cosines of a cell's place among the real cells of its image, rows before columns.

    Source: DETR, appendix A.4, after Parmar et al. 2018; normalised so that the last real cell
    lies at 2 pi. Padded cells count for nothing.

    With `centered`, places are those of the cells' centres, as in the code of Deformable DETR:
    half a cell before. `temperature` is the longest wavelength's ratio to the shortest one's.
    """

    SCALE = 2 * math.pi

    def __init__(self, dim: int, *, centered: bool = False, temperature: float = 10000.0) -> None:
        super().__init__()
        if dim % 4:
            raise DetrKitError(f"hidden_dim {dim}: sine positions need a multiple of 4")
        self.dim = dim
        self.centered = centered
        self.temperature = temperature
        self._of_sizes = Remembered()

    def of_size(self, size_hw: SizeHW, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Encode the cells of a feature map without padding as (1, h, w, D); remembered."""

        def encode() -> Tensor:
            return self(torch.zeros(1, *size_hw, dtype=torch.bool, device=device), dtype)

        return self._of_sizes((), (size_hw, dtype, device), encode)

    def forward(self, padding_mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Encode the cells of a (B, h, w) mask, True on padding, as (B, h, w, D)."""
        wide = torch.promote_types(dtype, torch.float32)
        real = ~padding_mask
        exponents = torch.arange(self.dim // 4, device=real.device, dtype=wide) * (4 / self.dim)
        wavelengths = self.temperature**exponents
        encoded = []
        for axis in (1, 2):
            place = real.cumsum(axis, dtype=wide)
            last = place.narrow(axis, place.shape[axis] - 1, 1)
            if self.centered:
                place = place - 0.5
            angles = (place / (last + 1e-6) * self.SCALE).unsqueeze(-1) / wavelengths
            encoded.append(torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2))
        return torch.cat(encoded, dim=-1).to(dtype)


class LearnedPositions(nn.Module):
    """A learned vector for each column and each row, concatenated in this order (DETR, 4.2)."""

    def __init__(self, dim: int, *, table_size: int = 50) -> None:
        super().__init__()
        self.columns = nn.Embedding(table_size, dim // 2)
        self.rows = nn.Embedding(table_size, dim - dim // 2)
        nn.init.uniform_(self.columns.weight)
        nn.init.uniform_(self.rows.weight)

    def of_size(self, size_hw: SizeHW, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Encode the cells of a feature map without padding as (1, h, w, D)."""
        return self(torch.zeros(1, *size_hw, dtype=torch.bool, device=device), dtype)

    def forward(self, padding_mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Encode the cells of a (B, h, w) mask as (1, h, w, D).

        Raises DetrKitError where the feature map is larger than the table.
        """
        height, width = padding_mask.shape[1:]
        # Two comparisons: sizes that are symbols are not compared with one another.
        if height > self.rows.num_embeddings or width > self.rows.num_embeddings:
            raise DetrKitError(
                f"position_encoding learned: a feature map of {height} x {width} cells is larger "
                f"than the table of {self.rows.num_embeddings}; use smaller images or sine"
            )
        columns = self.columns.weight[:width].expand(height, -1, -1)
        rows = self.rows.weight[:height].unsqueeze(1).expand(-1, width, -1)
        return torch.cat([columns, rows], dim=-1).unsqueeze(0).to(dtype)


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
