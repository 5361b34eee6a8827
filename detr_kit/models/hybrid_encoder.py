"""RT-DETR's encoder: attention on the coarsest level alone, convolutions across the levels.

Source: Zhao et al. 2024 ("RT-DETR"), section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.errors import require
from detr_kit.models.backbones import Padding
from detr_kit.models.convolutions import ConvNorm, CSPBlock, initialize_convolutions
from detr_kit.models.extents import zero_outside
from detr_kit.models.positions import CellPositions
from detr_kit.models.pyramid import Level
from detr_kit.models.transformer import Encoder, initialize_xavier


class HybridEncoder(nn.Module):
    """Attends within the coarsest level, then fuses levels from coarse to fine and back.

    Maps are `dim` wide inside and `out_dim` in the end. `expansion` is the width of the CSP blocks
    in `dim`. With `padding` "official" nothing is masked.

    Raises DetrKitError where a width is not a multiple of 4 and of `num_heads`, or none is left.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        num_levels: int,
        *,
        num_layers: int = 1,
        num_heads: int = 8,
        feedforward_dim: int = 1024,
        expansion: float = 1.0,
        dropout: float = 0.0,
        padding: Padding = "independent",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        # The width is the decoder's unless it is given its own: users change what it comes from.
        setting = "hidden_dim" if dim == out_dim else "encoder_dim"
        require(
            dim % 4 == 0 and (num_layers == 0 or dim % num_heads == 0),
            f"{setting} {dim}: encoder hybrid needs a multiple of 4 and of num_heads {num_heads}",
        )
        require(
            int(dim * expansion) > 0,
            f"encoder_expansion {expansion}: it leaves no channel of {setting} {dim}",
        )
        self.padding = padding
        self.positions = CellPositions(dim)
        self.attention = Encoder(
            dim,
            num_layers,
            num_heads,
            feedforward_dim,
            pre_norm=False,
            activation=nn.GELU,
            dropout=dropout,
            activation_checkpointing=activation_checkpointing,
        )
        initialize_xavier(self.attention)
        steps = range(num_levels - 1)

        def fusions() -> nn.ModuleList:
            return nn.ModuleList(CSPBlock(2 * dim, dim, expansion=expansion) for _ in steps)

        self.laterals = nn.ModuleList(ConvNorm(dim, dim, 1, activated=True) for _ in steps)
        self.top_down = fusions()
        self.downsamples = nn.ModuleList(
            ConvNorm(dim, dim, 3, stride=2, activated=True) for _ in steps
        )
        self.bottom_up = fusions()
        self.output_proj = nn.ModuleList(
            ConvNorm(dim, out_dim, 1, names=("0", "1")) for _ in range(num_levels)
        )
        initialize_convolutions(self.output_proj)

    def forward(self, levels: Sequence[Level]) -> list[Level]:
        """Map (B, D, h, w) maps to (B, out_dim, h, w) ones, the finest first; masks stay.

        Each level's sides are half of the one before, rounded up.
        """
        maps = [features for features, _ in levels]
        independent = self.padding == "independent"
        masks = [mask if independent else None for _, mask in levels]
        maps[-1] = self._attended(maps[-1], masks[-1])
        for step, (lateral, fusion) in enumerate(zip(self.laterals, self.top_down, strict=True)):
            coarse = len(maps) - 1 - step
            fine = coarse - 1
            maps[coarse] = lateral(maps[coarse])
            both = torch.cat([_upsampled(maps[coarse], maps[fine]), maps[fine]], dim=1)
            maps[fine] = fusion(both, masks[fine])
        steps = zip(self.downsamples, self.bottom_up, strict=True)
        for fine, (downsample, fusion) in enumerate(steps):
            halved = downsample(zero_outside(maps[fine], masks[fine]))
            both = torch.cat([halved, maps[fine + 1]], dim=1)
            maps[fine + 1] = fusion(both, masks[fine + 1])
        projected = [
            project(features) for project, features in zip(self.output_proj, maps, strict=True)
        ]
        return [(features, mask) for features, (_, mask) in zip(projected, levels, strict=True)]

    @property
    def reader_of_attended(self) -> nn.Module:
        """The module that reads the map whose cells have attended to each other."""
        return (self.laterals or self.output_proj)[0]

    def _attended(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Let the cells of a (B, D, h, w) map attend to each other."""
        size_hw = (features.shape[2], features.shape[3])
        # The parameters' precision, not the features': autocast would round the positions.
        dtype = next(self.output_proj.parameters()).dtype
        positions = self.positions(size_hw, dtype, features.device)
        tokens = features.flatten(2).transpose(1, 2)
        attended = self.attention(tokens, positions, None if mask is None else mask.flatten(1))
        return attended.transpose(1, 2).unflatten(2, size_hw)


def _upsampled(coarse: Tensor, fine: Tensor) -> Tensor:
    """Repeat each cell of a map for two by two of one twice as large, less what is beyond it.

    To a side of 2n or 2n - 1 cells, nearest neighbours are that: cell i reads i // 2.
    """
    return F.interpolate(coarse, size=fine.shape[2:], mode="nearest")
