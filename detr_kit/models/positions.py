"""Position encodings of feature maps, and the one resampler of learned position tables."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.sizes import SizeHW


class SinePositions(nn.Module):
    """Sines and cosines of a cell's place among the real cells of its image, rows before columns.

    Source: DETR, appendix A.4, after Parmar et al. 2018; normalised so that the last real cell
    lies at 2 pi. Padded cells count for nothing.
    """

    TEMPERATURE = 10000.0
    SCALE = 2 * math.pi

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise DetrKitError(f"hidden_dim {dim}: sine positions need a multiple of 4")
        self.dim = dim

    def forward(self, padding_mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Encode the cells of a (B, h, w) mask, True on padding, as (B, h, w, D)."""
        wide = torch.promote_types(dtype, torch.float32)
        real = ~padding_mask
        exponents = torch.arange(self.dim // 4, device=real.device, dtype=wide) * (4 / self.dim)
        wavelengths = self.TEMPERATURE**exponents
        encoded = []
        for axis in (1, 2):
            place = real.cumsum(axis, dtype=wide)
            last = place.narrow(axis, place.shape[axis] - 1, 1)
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

    def forward(self, padding_mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Encode the cells of a (B, h, w) mask as (1, h, w, D).

        Raises DetrKitError where the feature map is larger than the table.
        """
        height, width = padding_mask.shape[1:]
        if max(height, width) > self.rows.num_embeddings:
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
    resampled = F.interpolate(
        grid.permute(0, 3, 1, 2), size=to_hw, mode="bicubic", align_corners=False
    )
    return resampled.permute(0, 2, 3, 1)


class CachedResampler:
    """Resamples one table, and remembers the results where no gradient is wanted.

    What is remembered is dropped as soon as the table's values are others: loaded, stepped,
    averaged or swapped for another tensor.
    """

    MAX_SIZES = 4

    def __init__(self, from_hw: SizeHW) -> None:
        self.from_hw = from_hw
        self._grids: dict[SizeHW, Tensor] = {}
        self._source: Tensor | None = None
        self._version = -1

    def __call__(self, table: Tensor, to_hw: SizeHW) -> Tensor:
        """Return `resample_grid(table, from_hw, to_hw)`."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or table.is_inference():
            return resample_grid(table, self.from_hw, to_hw)
        if not self._is_current(table):
            self.clear()
            # An alias keeps the memory, so that no other tensor can come to lie at its address.
            self._source, self._version = table.detach(), table._version
        if to_hw not in self._grids:
            while len(self._grids) >= self.MAX_SIZES:
                del self._grids[next(iter(self._grids))]
            self._grids[to_hw] = resample_grid(table, self.from_hw, to_hw)
        return self._grids[to_hw]

    def clear(self) -> None:
        """Forget everything."""
        self._grids = {}
        self._source = None

    def _is_current(self, table: Tensor) -> bool:
        source = self._source
        return (
            source is not None
            and source.data_ptr() == table.data_ptr()
            and source.dtype == table.dtype
            and source.device == table.device
            and self._version == table._version
        )
