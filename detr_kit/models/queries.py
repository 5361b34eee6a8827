"""Queries that are learned: with points of reference, or with anchors.

Shape legend: B images, Q queries of a group, G groups, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detr_kit.models.linear import Linear
from detr_kit.models.pyramid import Pyramid
from detr_kit.structures import ModelOutput


@dataclass(frozen=True)
class Queries:
    """What a decoder starts from; in training the queries of all groups, the first ones' first.

    `content` is (B, N, D), `reference` (B, N, 2 or 4) points or cxcywh boxes in [0, 1] of each
    unpadded image. `positions` (B, N, D) hold for all layers; None where each layer derives them
    from its references. `proposals` are the one layer of outputs that a group's Q queries were
    chosen by. `missing` (B, N) is True for queries that stand for nothing, as an image has too
    few tokens to choose from; None where there are none.
    """

    content: Tensor
    reference: Tensor
    positions: Tensor | None = None
    proposals: ModelOutput | None = None
    missing: Tensor | None = None


class LearnedQueries(nn.Module):
    """A learned content and position for each query; a point of reference follows from the latter.

    Source: Deformable DETR, section 4.1. The groups' queries lie one after the other; all but the
    first group are for training (Chen et al. 2023, "Group DETR", section 3.2).
    """

    def __init__(self, num_queries: int, dim: int, *, groups: int = 1) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.content = nn.Embedding(groups * num_queries, dim)
        self.positions = nn.Embedding(groups * num_queries, dim)
        self.points = Linear(dim, 2)
        nn.init.xavier_uniform_(self.points.weight)
        nn.init.zeros_(self.points.bias)

    def forward(self, memory: Pyramid) -> Queries:
        """Return the queries of a batch; 2 numbers of reference."""
        count = None if self.training else self.num_queries
        content, positions = self.content.weight[:count], self.positions.weight[:count]
        # Not a product of matrices: autocast would round the points to a few hundred places.
        logits = (positions.unsqueeze(1) * self.points.weight).sum(-1) + self.points.bias
        points = logits.sigmoid()
        batch = memory.tokens.shape[0]
        content, points, positions = (for_each(batch, x) for x in (content, points, positions))
        return Queries(content, points, positions)


class LearnedAnchors(nn.Module):
    """A learned content and a learned box for each query (Liu et al. 2022, "DAB-DETR", 4.1).

    `anchors` holds the boxes' logits. Groups as in `LearnedQueries`.
    """

    def __init__(self, num_queries: int, dim: int, *, groups: int = 1) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.content = nn.Embedding(groups * num_queries, dim)
        self.anchors = nn.Embedding(groups * num_queries, 4)

    def forward(self, memory: Pyramid) -> Queries:
        """Return the queries of a batch; 4 numbers of reference."""
        count = None if self.training else self.num_queries
        batch = memory.tokens.shape[0]
        content, anchors = self.content.weight[:count], self.anchors.weight[:count]
        return Queries(for_each(batch, content), for_each(batch, anchors.sigmoid()))


def by_group(rows: Tensor, groups: int, *, dim: int) -> Tensor:
    """Part a dimension of G * Q rows into (G, ..., Q, ...), the first group last: it predicts."""
    first, *others = rows.chunk(groups, dim)
    return torch.stack([*others, first])


def for_each(batch: int, rows: Tensor) -> Tensor:
    """Repeat (N, D) rows for each image of a batch."""
    # Not a view: a product with one would ask whether a size is 1 that may be a symbol.
    return rows.expand(batch, -1, -1).clone(memory_format=torch.contiguous_format)
