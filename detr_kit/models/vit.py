"""A plain ViT with detection tokens; its keys are those of the published ViT, DeiT and YOLOS.

Shape legend: B images, P patches, Q detection tokens, N = 1 + P + Q tokens, D channels, G groups of
Q detection tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.errors import DetrKitError
from detr_kit.models.resampling import CachedResampler, bicubic_matrices
from detr_kit.models.token_groups import GroupedLayer
from detr_kit.models.token_positions import GridPositions, TracedPositions
from detr_kit.models.transformer import EncoderLayer, run_layer
from detr_kit.sizes import SizeHW
from detr_kit.structures import ImageBatch, TracedBatch, outside_of

Positions = GridPositions | TracedPositions
# The mask of the tokens, (B, N) or None, and the positions of the input and of the blocks.
Layout = tuple[Tensor | None, Positions, Positions | None]
# Positions (L, N, D), and (L, (G - 1) * Q, D) of the detection tokens of further groups.
Tables = tuple[Tensor, Tensor | None]


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each mapped to a token; partial patches are left out."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, P, D)"""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Class token, patches and detection tokens through pre-norm blocks (YOLOS, section 3.1).

    `pos_embed` (1, N, D) is added at the input; `mid_pos_embed` (depth - 1, 1, N, D), if there is
    one, after every block but the last. Both belong to pictures of the given sizes and are
    resampled to other sizes. `frozen_stages` takes the gradients of tokens, patch embedding and
    both position tables (1), and of the first k blocks (k + 1).

    With several `groups`, training runs G - 1 further groups of as many detection tokens, each of
    which is seen by itself alone, see `GroupedLayer`. Evaluation does not read their tables:
    `extra_det_token` and `extra_pos_embed` (1, (G - 1) * Q, D), `extra_mid_pos_embed` (depth - 1,
    1, (G - 1) * Q, D).

    `padding` "independent": padded tokens are masked as attention keys and positions are those of
    each image's own grid. "official": the mask is ignored and positions are those of the padded
    grid, taken as they are where their number already agrees.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        feedforward_dim: int,
        patch_size: int,
        num_detection_tokens: int,
        position_size_hw: SizeHW,
        mid_position_size_hw: SizeHW | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        padding: Literal["independent", "official"] = "independent",
        activation_checkpointing: bool = False,
        frozen_stages: int = 0,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_detection_tokens = num_detection_tokens
        self.groups = groups
        self.padding = padding
        self.activation_checkpointing = activation_checkpointing
        self.patch_embed = PatchEmbed(dim, patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.det_token = nn.Parameter(torch.empty(1, num_detection_tokens, dim))
        self.grid_hw = self._grid_of(position_size_hw)
        tokens = self.grid_hw[0] * self.grid_hw[1] + 1 + num_detection_tokens
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, dim))
        self._resample = CachedResampler(self.grid_hw)
        self.mid_pos_embed: nn.Parameter | None = None
        if mid_position_size_hw is not None and depth > 1:
            mid_grid_hw = self._grid_of(mid_position_size_hw)
            tokens = mid_grid_hw[0] * mid_grid_hw[1] + 1 + num_detection_tokens
            self.mid_pos_embed = nn.Parameter(torch.empty(depth - 1, 1, tokens, dim))
            self._resample_mid = CachedResampler(mid_grid_hw)
        self._add_groups(dim, depth)
        layer = EncoderLayer if groups == 1 else GroupedLayer
        self.blocks = nn.ModuleList(
            layer(
                dim,
                num_heads,
                feedforward_dim,
                pre_norm=True,
                activation=nn.GELU,
                dropout=dropout,
                drop_path=drop_path * index / max(depth - 1, 1),
                norm_eps=norm_eps,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self._initialize()
        self._freeze(frozen_stages)

    def forward(self, batch: ImageBatch | TracedBatch, *, with_patches: bool = False) -> Tensor:
        """Return the detection tokens' (B, Q, D) features; (B, G * Q, D) in training with groups.

        With `with_patches`, the (B, P, D) features of the patches stand before them. Raises
        DetrKitError for an image smaller than a patch.
        """
        if isinstance(batch, TracedBatch):
            mask, first, mid = self._lay_out_traced(batch)
        else:
            mask, first, mid = self._lay_out(batch)
        patches = self.patch_embed(batch.pixels)
        class_token = self.cls_token.expand(patches.shape[0], -1, -1)
        detection_tokens = self._of_groups(self.det_token, self.extra_det_token)
        detection_tokens = detection_tokens.expand(patches.shape[0], -1, -1)
        x = torch.cat([class_token, patches, detection_tokens], dim=1)
        x = x + first.of_layer(0)
        last = len(self.blocks) - 1
        groups, size = self.active_groups, self.num_detection_tokens
        grouping = () if groups == 1 else (groups, size)
        read = groups * size + (patches.shape[1] if with_patches else 0)
        for index, block in enumerate(self.blocks):
            # Nothing reads the other tokens after the last block.
            tokens = read if index == last else None
            inputs = (x, None, mask, tokens, *grouping)
            x = run_layer(block, *inputs, checkpointed=self.activation_checkpointing)
            if mid is not None and index < last:
                x = x + mid.of_layer(index)
        return self.norm(x)

    def patches_outside(self, batch: ImageBatch) -> Tensor:
        """Return (B, P), True for patches that are not wholly inside their image."""
        last = self.patch_size - 1
        return batch.padding_mask[:, last :: self.patch_size, last :: self.patch_size].flatten(1)

    def patch_centers(self, batch: ImageBatch) -> Tensor:
        """Return the (B, P, 2) centres (x, y) of patches, in [0, 1] of each unpadded image."""
        device = batch.pixels.device
        sizes = torch.tensor(batch.sizes_hw, dtype=torch.float32).to(device, non_blocking=True)
        grid_hw = self._grid_of((batch.pixels.shape[2], batch.pixels.shape[3]))
        y, x = (
            (torch.arange(count, device=device) + 0.5) * self.patch_size / sides.unsqueeze(1)
            for count, sides in zip(grid_hw, sizes.T, strict=True)
        )
        x, y = torch.broadcast_tensors(x.unsqueeze(1), y.unsqueeze(2))
        return torch.stack([x, y], dim=-1).flatten(1, 2)

    @property
    def active_groups(self) -> int:
        """How many groups of detection tokens run: one in evaluation."""
        return self.groups if self.training else 1

    def train(self, mode: bool = True) -> ViT:
        """Set the mode; also forget resampled positions, which `.data` writes leave unnoticed."""
        self._resample.clear()
        if self.mid_pos_embed is not None:
            self._resample_mid.clear()
        return super().train(mode)

    def _grid_of(self, size_hw: SizeHW) -> SizeHW:
        height, width = (side // self.patch_size for side in size_hw)
        if not height or not width:
            raise DetrKitError(
                f"size {size_hw[0]} x {size_hw[1]} (height x width) is smaller than a patch of "
                f"{self.patch_size} pixels"
            )
        return height, width

    def _lay_out(self, batch: ImageBatch) -> Layout:
        batch_grid = self._grid_of((batch.pixels.shape[2], batch.pixels.shape[3]))
        grids = self._image_grids(batch, batch_grid)
        mask = None if set(grids) == {batch_grid} else self._token_mask(batch)
        tables = (self.pos_embed, self.extra_pos_embed)
        first = self._positions(tables, self._resample, grids, batch_grid)
        mid = None
        if self.mid_pos_embed is not None:
            mid = self._positions(self._mid_tables(), self._resample_mid, grids, batch_grid)
        return mask, first, mid

    def _lay_out_traced(self, batch: TracedBatch) -> Layout:
        """Do the same for any sizes in one graph."""
        height, width = (side // self.patch_size for side in batch.pixels.shape[2:])
        if self.padding == "official":
            batch = TracedBatch(batch.pixels)
        rows, columns = (sides // self.patch_size for sides in batch.own_sides())
        mask = None
        if batch.padding_mask is not None:
            patches = outside_of((rows, columns), (height, width)).flatten(1)
            seen = patches.new_zeros(1, 1).expand(patches.shape[0], -1)
            mask = torch.cat([seen, patches, seen.expand(-1, self.num_detection_tokens)], dim=1)

        def positions(tables: Tables, from_hw: SizeHW) -> TracedPositions:
            table = tables[0]
            along_rows = bicubic_matrices(from_hw[0], rows, height, table.dtype)
            along_columns = bicubic_matrices(from_hw[1], columns, width, table.dtype)
            official = self.padding == "official"
            return TracedPositions(
                *self._split(tables), from_hw, along_rows, along_columns, as_they_are=official
            )

        first, mid = positions((self.pos_embed, self.extra_pos_embed), self.grid_hw), None
        if self.mid_pos_embed is not None:
            mid = positions(self._mid_tables(), self._resample_mid.from_hw)
        return mask, first, mid

    def _image_grids(self, batch: ImageBatch, batch_grid: SizeHW) -> list[SizeHW]:
        """Return each image's own grid; a single one where all are the batch's."""
        if self.padding == "official" or not batch.has_padding:
            return [batch_grid]
        grids = [self._grid_of(size_hw) for size_hw in batch.sizes_hw]
        return [batch_grid] if set(grids) == {batch_grid} else grids

    def _token_mask(self, batch: ImageBatch) -> Tensor:
        """Return (B, N), True on patches that are not wholly inside their image."""
        return F.pad(self.patches_outside(batch), (1, self.num_detection_tokens), value=False)

    def _positions(
        self,
        tables: Tables,
        resample: CachedResampler,
        grids: list[SizeHW],
        batch_grid: SizeHW,
    ) -> GridPositions:
        """Resample a table (L, N, D), and that of further groups, to every grid of the batch."""
        class_position, patches, detection = self._split(tables)
        sampled = {}
        for grid in dict.fromkeys(grids):
            if self.padding == "official" and grid[0] * grid[1] == patches.shape[1]:
                sampled[grid] = patches.unflatten(1, grid)
            else:
                sampled[grid] = resample(patches, grid)
        return GridPositions(class_position, sampled, detection, grids, batch_grid)

    def _split(self, tables: Tables) -> tuple[Tensor, Tensor, Tensor]:
        """Divide a table (L, N, D) into those of the class token, patches and detection tokens."""
        table, extra = tables
        count = self.num_detection_tokens
        return table[:, :1], table[:, 1:-count], self._of_groups(table[:, -count:], extra)

    def _of_groups(self, first: Tensor, extra: Tensor | None) -> Tensor:
        """Put the first group's (L, Q, D) and the others' that run into one."""
        if extra is None or self.active_groups == 1:
            return first
        return torch.cat([first, extra], dim=1)

    def _mid_tables(self) -> Tables:
        assert self.mid_pos_embed is not None
        extra = self.extra_mid_pos_embed
        return self.mid_pos_embed.flatten(0, 1), None if extra is None else extra.flatten(0, 1)

    def _add_groups(self, dim: int, depth: int) -> None:
        self.extra_det_token: nn.Parameter | None = None
        self.extra_pos_embed: nn.Parameter | None = None
        self.extra_mid_pos_embed: nn.Parameter | None = None
        tokens = (self.groups - 1) * self.num_detection_tokens
        if tokens:
            self.extra_det_token = nn.Parameter(torch.empty(1, tokens, dim))
            self.extra_pos_embed = nn.Parameter(torch.empty(1, tokens, dim))
            if self.mid_pos_embed is not None:
                self.extra_mid_pos_embed = nn.Parameter(torch.empty(depth - 1, 1, tokens, dim))

    def _initialize(self) -> None:
        """Truncated normal 0.02 for tokens, positions and linear layers (official YOLOS)."""
        tables = [self.cls_token, self.det_token, self.pos_embed]
        if self.mid_pos_embed is not None:
            tables.append(self.mid_pos_embed)
        for table in tables:
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for extra in (self.extra_det_token, self.extra_pos_embed, self.extra_mid_pos_embed):
            if extra is not None:  # drawn last: the others start as they do without groups
                nn.init.trunc_normal_(extra, std=0.02)

    def _freeze(self, stages: int) -> None:
        if stages > len(self.blocks) + 1:
            raise DetrKitError(
                f"frozen_stages {stages}: a ViT of {len(self.blocks)} blocks has "
                f"{len(self.blocks) + 1}, the patch embedding included"
            )
        if not stages:
            return
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(False)
        for module in (self.patch_embed, *self.blocks[: stages - 1]):
            module.requires_grad_(False)
