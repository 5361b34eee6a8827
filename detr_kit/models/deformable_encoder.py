"""The encoder of Deformable DETR: every token of every level looks around its own place.

Source: Zhu et al. 2021, section 4.2 and appendix A.

Shape legend: B images, K levels, S tokens of all levels together, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detr_kit.models.deformable_attention import DeformableAttention
from detr_kit.models.positions import SinePositions
from detr_kit.models.pyramid import Pyramid
from detr_kit.models.remembered import Remembered
from detr_kit.models.transformer import MLP, ResidualDrop, residual, run_layer


class DeformableEncoderLayer(nn.Module):
    """Deformable self attention and MLP, each on a residual branch that is normalised after it."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feedforward_dim: int,
        *,
        num_levels: int,
        num_points: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attn = DeformableAttention(dim, num_heads, num_levels, num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, feedforward_dim, activation=nn.ReLU, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.drop = ResidualDrop(dropout=dropout)

    def forward(self, x: Tensor, positions: Tensor, reference: Tensor, maps: Pyramid) -> Tensor:
        """Map (B, S, D) to the same shape.

        `positions` (B or 1, S, D) are added to the queries; `reference` (B or 1, S, 2) is each
        token's place in [0, 1] of its unpadded image. `maps` gives the sizes and the padding;
        its own tokens are not read.
        """

        def look(h: Tensor) -> Tensor:
            return self.attn(h + positions, reference, maps.with_tokens(h))

        x = residual(x, look, norm=self.norm1, drop=self.drop, pre_norm=False)
        return residual(x, self.mlp, norm=self.norm2, drop=self.drop, pre_norm=False)


class DeformableEncoder(nn.Module):
    """A stack of such layers over several levels, each told apart by a learned vector.

    Positions are those of the cells' centres as in the code of Deformable DETR if `centered`, half
    a cell further as in that of DINO if not. It starts as in the paper: xavier-uniform matrices,
    the attention as `DeformableAttention` says, level vectors from a normal distribution.
    """

    # Training on pictures of many sizes comes back to few of them.
    MAX_SIZES = 16

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        feedforward_dim: int,
        *,
        num_levels: int,
        num_points: int,
        dropout: float,
        temperature: float = 10000.0,
        centered: bool = True,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.positions = SinePositions(dim, centered=centered, temperature=temperature)
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
                dim,
                num_heads,
                feedforward_dim,
                num_levels=num_levels,
                num_points=num_points,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self._places = Remembered(self.MAX_SIZES)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as described above."""
        nn.init.normal_(self.level_embed)
        for part in self.modules():
            if isinstance(part, MLP):
                nn.init.xavier_uniform_(part.fc1.weight)
                nn.init.xavier_uniform_(part.fc2.weight)
            elif isinstance(part, DeformableAttention):
                part.reset_parameters()

    def forward(self, memory: Pyramid) -> Pyramid:
        """Return the same maps with encoded tokens; those on padding mean nothing."""
        dtype, device = self.level_embed.dtype, memory.tokens.device
        if memory.padding_mask is None:
            sine, reference = self._places(
                (), (memory.sizes_hw, dtype, device), lambda: self._encode(memory, dtype)
            )
        else:
            sine, reference = self._encode(memory, dtype)
        of_levels = [
            level.expand(height * width, -1)
            for level, (height, width) in zip(self.level_embed, memory.sizes_hw, strict=True)
        ]
        positions = sine + torch.cat(of_levels)
        x = memory.tokens
        for layer in self.layers:
            x = run_layer(
                layer, x, positions, reference, memory, checkpointed=self.activation_checkpointing
            )
        return memory.with_tokens(x)

    def _encode(self, memory: Pyramid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the sine positions (B or 1, S, D) and places (B or 1, S, 2) of all tokens."""
        device = memory.tokens.device
        masks = [
            torch.zeros(1, *size_hw, dtype=torch.bool, device=device) if mask is None else mask
            for mask, size_hw in zip(memory.masks(), memory.sizes_hw, strict=True)
        ]
        # The parameters' precision, not the tokens': autocast would round the positions.
        sine = torch.cat([self.positions(mask, dtype).flatten(1, 2) for mask in masks], dim=1)
        return sine, memory.cell_centers()
