"""Position encodings of the cells of feature maps.

Shape legend: B images, (h, w) the cells of a map, S tokens of all levels together, D channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.pyramid import Pyramid
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


class MemoryPositions(nn.Module):
    """What dense attention knows of where a token lies: the sines of its cell, and its level."""

    def __init__(self, dim: int, num_levels: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim).normal_())
        self.sine = SinePositions(dim)

    def forward(self, memory: Pyramid) -> Tensor:
        """Return (B or 1, S, D) positions."""
        dtype = self.level_embed.dtype
        levels = zip(memory.sizes_hw, memory.masks(), self.level_embed, strict=True)
        return torch.cat(
            [
                (
                    self.sine.of_size(size_hw, dtype, memory.tokens.device)
                    if mask is None
                    else self.sine(mask, dtype)
                ).flatten(1, 2)
                + level
                for size_hw, mask, level in levels
            ],
            dim=1,
        )


class CellPositions(nn.Module):
    """Sines, then cosines of a cell's row number, and the same of its column number.

    Source: Chen et al. 2021 ("MoCo v3"), as in RT-DETR. Numbers count from 0 and are not
    normalised: they do not depend on the size of the map. `dim` is a multiple of 4.
    """

    TEMPERATURE = 10000.0

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self._of_sizes = Remembered()

    def forward(self, size_hw: SizeHW, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Encode the cells of a map as (1, h * w, D); remembered."""

        def encode() -> Tensor:
            wide = torch.promote_types(dtype, torch.float32)
            exponents = torch.arange(self.dim // 4, device=device, dtype=wide) * (4 / self.dim)
            wavelengths = self.TEMPERATURE**exponents
            height, width = size_hw
            encoded = []
            for axis, cells in ((1, height), (0, width)):
                angles = torch.arange(cells, device=device, dtype=wide)[:, None] / wavelengths
                waves = torch.cat([angles.sin(), angles.cos()], dim=1)
                encoded.append(waves.unsqueeze(axis).expand(height, width, -1))
            return torch.cat(encoded, dim=2).flatten(0, 1).unsqueeze(0).to(dtype)

        return self._of_sizes((), (size_hw, dtype, device), encode)


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
