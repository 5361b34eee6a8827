"""Deformable attention: each query reads a few points of several feature maps.

Source: Zhu et al. 2021 ("Deformable DETR"), section 4.1 and appendix A.

Shape legend: B images, N queries, K levels, P points a level, S tokens of all levels together,
D channels, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.linear import Linear
from detr_kit.models.pyramid import Pyramid
from detr_kit.models.sampling import sample


class DeformableAttention(nn.Module):
    """Weighted sums of `num_points` values of each level, by head, around a query's reference.

    `offsets` and `weights` tell from the query where they lie and what they count; `value` and
    `proj` are the projections of what is read and of what comes out. It starts as in the paper:
    the heads look in as many directions, each point a cell further away, and all points count
    alike.

    `observer`, where set, is handed where the queries look, (B, N, h, K, P, 2) as (x, y) in [0, 1]
    of the unpadded images, and what each point counts, (B, N, h, K, P), which sum to one over
    levels and points. Points may lie outside.

    Raises DetrKitError where `dim` is not a multiple of `num_heads`.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise DetrKitError(f"hidden_dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.offsets = Linear(dim, num_heads * num_levels * num_points * 2)
        self.weights = Linear(dim, num_heads * num_levels * num_points)
        self.value = Linear(dim, dim)
        self.proj = Linear(dim, dim)
        self.observer: Callable[[Tensor, Tensor], object] | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as described above, with xavier-uniform projections."""
        nn.init.zeros_(self.offsets.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        # On the border of a square, so that the points of a level lie on its cells.
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1).view(1, 1, -1, 1)
        spread = (directions[:, None, None] * steps).expand(-1, self.num_levels, -1, -1)
        self.offsets.bias.copy_(spread.flatten())
        for part in (self.weights.weight, self.weights.bias, self.value.bias, self.proj.bias):
            nn.init.zeros_(part)
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.proj.weight)

    def forward(
        self, query: Tensor, reference: Tensor, memory: Pyramid, values: Tensor | None = None
    ) -> Tensor:
        """Look from (B, N, D) queries into the memory, and return (B, N, D).

        `reference` (B or 1, N, 2 or 4) lies in [0, 1] of the unpadded images: points, from which
        offsets count in cells of each level, or boxes (cx, cy, w, h), from whose centres they
        count in halves of the boxes' sides divided by P. `values` (B, S, D) are what
        `project_values` makes of the memory, where a caller has them.
        """
        values = self.project_values(memory) if values is None else values
        own_wh = memory.own_sizes_wh()
        cells = self._cells(self.offsets(query), reference, own_wh)
        shares = self.weights(query).unflatten(-1, (self.num_heads, -1))
        # In single precision at least, places above all: half has no place between far cells.
        shares = shares.softmax(-1, dtype=cells.dtype)
        shares = shares.unflatten(-1, (self.num_levels, self.num_points))
        if self.observer is not None:
            self.observer((cells + 0.5) / own_wh[:, None, None, :, None], shares)
        by_head = values.to(cells.dtype).unflatten(-1, (self.num_heads, -1))
        return self.proj(sample(by_head, cells, shares, memory.sizes_hw).to(values.dtype))

    def project_values(self, memory: Pyramid) -> Tensor:
        """Return the (B, S, D) values that queries read from a memory, zero on padding."""
        values = self.value(memory.tokens)
        if memory.padding_mask is None:
            return values
        return values.masked_fill(memory.padding_mask.unsqueeze(-1), 0.0)

    def _cells(self, offsets: Tensor, reference: Tensor, own_wh: Tensor) -> Tensor:
        """Return where the points lie, as `sample` wants it: (B, N, h, K, P, 2)."""
        center = reference[..., :2].unsqueeze(2) * own_wh.unsqueeze(1) - 0.5  # (B, N, K, 2)
        by_head = offsets.unflatten(-1, (self.num_heads, -1))
        if reference.shape[-1] == 4:
            half = reference[..., 2:].unsqueeze(2) * own_wh.unsqueeze(1) * (0.5 / self.num_points)
            by_head = by_head * self._of_points(half)
        cells = by_head + self._of_points(center)
        return cells.unflatten(-1, (self.num_levels, self.num_points, 2))

    def _of_points(self, of_levels: Tensor) -> Tensor:
        """(B, N, K, 2) -> (B, N, 1, K * P * 2)"""
        return (
            of_levels.unsqueeze(3).expand(-1, -1, -1, self.num_points, -1).flatten(2).unsqueeze(2)
        )
