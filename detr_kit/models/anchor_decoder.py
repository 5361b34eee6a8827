"""A decoder whose queries carry a reference point or box, which its layers may refine.

Source: Zhu et al. 2021 ("Deformable DETR"), sections 4.1 and 4.2; Liu et al. 2022 ("DAB-DETR"),
section 4; Zhang et al. 2023 ("DINO"), section 3.5; Zhao et al. 2024 ("RT-DETR").

Shape legend: B images, L decoder layers, N queries of all kinds, S memory tokens, D channels, C
columns of the class head.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from detr_kit.models.anchors import AnchorMLP, SineOfBoxes, moved
from detr_kit.models.attention import Attention
from detr_kit.models.deformable_attention import DeformableAttention
from detr_kit.models.heads import DetectionHeads
from detr_kit.models.pyramid import Pyramid
from detr_kit.models.queries import Queries
from detr_kit.models.transformer import (
    MLP,
    ResidualDrop,
    initialize_xavier,
    residual,
    run_layer,
)

CrossAttention = Literal["deformable", "dense"]
# Where the positions of queries come from: the queries themselves, or anew in each layer the
# sines of its references (DAB-DETR, DINO) or their plain numbers (RT-DETR).
Positions = Literal["given", "sine", "mlp"]


class AnchorDecoderLayer(nn.Module):
    """Self attention of the queries, cross attention to the memory, MLP with ReLU; post-norm."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feedforward_dim: int,
        *,
        num_levels: int,
        num_points: int,
        cross_attention: CrossAttention,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn: Attention | DeformableAttention
        if cross_attention == "dense":
            self.cross_attn = Attention(dim, num_heads, dropout=dropout)
        else:
            self.cross_attn = DeformableAttention(dim, num_heads, num_levels, num_points)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, feedforward_dim, activation=nn.ReLU, dropout=dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.drop = ResidualDrop(dropout=dropout)
        # Deformable attention has begun as its paper has it.
        initialize_xavier(self.self_attn)
        initialize_xavier(self.mlp)
        if isinstance(self.cross_attn, Attention):
            initialize_xavier(self.cross_attn)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        reference: Tensor,
        memory: Pyramid,
        memory_positions: Tensor | None = None,
        blocked: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Map (B, N, D) to the same shape; see `AnchorDecoder.forward` for the masks."""

        def attend(h: Tensor) -> Tensor:
            at = h + positions
            return self.self_attn(at, at, h, hidden, blocked=blocked)

        def look(h: Tensor) -> Tensor:
            at = h + positions
            if isinstance(self.cross_attn, DeformableAttention):
                return self.cross_attn(at, reference, memory)
            tokens = memory.tokens
            keys = tokens if memory_positions is None else tokens + memory_positions
            return self.cross_attn(at, keys, tokens, memory.padding_mask)

        x = residual(x, attend, norm=self.norm1, drop=self.drop, pre_norm=False)
        x = residual(x, look, norm=self.norm2, drop=self.drop, pre_norm=False)
        return residual(x, self.mlp, norm=self.norm3, drop=self.drop, pre_norm=False)


class AnchorDecoder(nn.Module):
    """A stack of layers, each of which predicts classes and boxes.

    Without `refinement` every layer looks around the first references and predicts boxes from
    them; with it, the boxes that a layer predicts are the references of the next, as constants.
    `look_forward_twice` lets a layer's prediction reach the layer before through the box that it
    starts from. With `norm`, what the heads predict from passes through one shared LayerNorm,
    while references are refined from what has not, as in the official DINO.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        feedforward_dim: int,
        *,
        num_levels: int,
        num_points: int,
        cross_attention: CrossAttention = "deformable",
        positions: Positions,
        refinement: bool,
        look_forward_twice: bool,
        norm: bool,
        dropout: float,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.refinement = refinement
        self.look_forward_twice = look_forward_twice
        self.activation_checkpointing = activation_checkpointing
        self.layers = nn.ModuleList(
            AnchorDecoderLayer(
                dim,
                num_heads,
                feedforward_dim,
                num_levels=num_levels,
                num_points=num_points,
                cross_attention=cross_attention,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim) if norm else None
        self.sine = SineOfBoxes(dim // 2, order="yxwh") if positions == "sine" else None
        self.positions: AnchorMLP | None = None
        if positions == "sine":
            self.positions = AnchorMLP(2 * dim, dim, dim)
        elif positions == "mlp":
            self.positions = AnchorMLP(4, 2 * dim, dim)
        if self.positions is not None:
            initialize_xavier(self.positions)

    def forward(
        self,
        queries: Queries,
        memory: Pyramid,
        heads: nn.ModuleList,
        *,
        memory_positions: Tensor | None = None,
        blocked: Tensor | None = None,
        hidden: Tensor | None = None,
        all_layers: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return (L, B, N, C) logits and (L, B, N, 4) boxes, in single precision at least.

        L is 1, the last layer, unless `all_layers`. `heads` are one `DetectionHeads` a layer, or
        one for all. `blocked` (N, N) is True where a query (row) must not see another (column),
        `hidden` (B, N) for queries that none sees. `memory_positions` (B or 1, S, D) are added to
        the keys of dense attention.
        """
        x, reference, start = queries.content, queries.reference, queries.reference
        logits, boxes = [], []
        for index, layer in enumerate(self.layers):
            x = run_layer(
                layer,
                x,
                self._positions_of(reference, queries.positions),
                reference,
                memory,
                memory_positions,
                blocked,
                hidden,
                checkpointed=self.activation_checkpointing,
            )
            own = heads[index if len(heads) > 1 else 0]
            assert isinstance(own, DetectionHeads)
            is_last = index == len(self.layers) - 1
            features = x if self.norm is None else self.norm(x)
            if all_layers or is_last:
                own_logits = own.class_head(features)
                logits.append(own_logits.to(torch.promote_types(own_logits.dtype, torch.float32)))
                boxes.append(moved(own.box_head(features), start))
            if self.refinement and not is_last:
                refined = moved(own.box_head(x), reference)
                reference = refined.detach()
                start = refined if self.look_forward_twice else reference
        return torch.stack(logits), torch.stack(boxes)

    def _positions_of(self, reference: Tensor, given: Tensor | None) -> Tensor:
        if self.positions is None:
            assert given is not None
            return given
        numbers = reference if self.sine is None else self.sine(reference)
        first = self.positions.layers[0]
        assert isinstance(first, nn.Linear)
        return self.positions(numbers.to(first.weight.dtype))
