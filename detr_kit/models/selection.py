"""Queries that start from the encoder's best tokens.

Shape legend: B images, S tokens of all levels together, Q queries of a group, D channels, C columns
of the class head.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.models.anchors import SineOfBoxes, grid_anchors
from detr_kit.models.heads import DetectionHeads
from detr_kit.models.linear import Linear
from detr_kit.models.pyramid import Pyramid
from detr_kit.models.queries import Queries, for_each
from detr_kit.structures import ModelOutput

Content = Literal["tokens", "proposals", "learned"]


class SelectedQueries(nn.Module):
    """Lets every token propose an object, and makes queries of the best.

    A token's box is its anchor of the grid, moved by the box head; the class head's best score
    decides. `content` tells what a query is besides its box:

    - "tokens": the token itself, transformed; no gradient goes back through it (Zhao et al. 2024,
      "RT-DETR", section 4.3, without its choice by uncertainty).
    - "learned": the same for every picture (Zhang et al. 2023, "DINO", section 3.4).
    - "proposals": content and positions are a linear function of the box's sines (Deformable DETR,
      appendix A.4). A token is scored by the first column alone, which stands for all categories
      then: the first layer of outputs repeats it.

    There are always Q queries: where an image has fewer tokens, the others are `missing`. The
    box of a query is a constant for the layers after.
    """

    def __init__(
        self,
        num_queries: int,
        dim: int,
        heads: DetectionHeads,
        *,
        content: Content,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.groups = groups
        self.scored_by_first = content == "proposals"
        self.transform = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.heads = heads
        nn.init.xavier_uniform_(self.transform.weight)
        nn.init.zeros_(self.transform.bias)
        self.content = nn.Embedding(groups * num_queries, dim) if content == "learned" else None
        self.sine: SineOfBoxes | None = None
        if content == "proposals":
            self.sine = SineOfBoxes(dim // 2, order="xywh")
            self.positions = Linear(2 * dim, 2 * dim)
            self.positions_norm = nn.LayerNorm(2 * dim)
            nn.init.xavier_uniform_(self.positions.weight)
            nn.init.zeros_(self.positions.bias)

    def forward(self, memory: Pyramid) -> Queries:
        """Choose tokens, best first, and return the queries of a batch."""
        anchors, usable = grid_anchors(memory)
        tokens = memory.tokens.masked_fill(~usable.unsqueeze(-1), 0.0)
        index, missing = self._best(self._scores(tokens), memory.padding_mask)
        # The chosen few anew: the backward pass has nothing to do with the others then.
        features = self.norm(self.transform(_at(tokens, index)))
        anchors = _at(anchors.expand(tokens.shape[0], -1, -1), index)
        logits, boxes = self._proposals(features, anchors)
        reference = boxes.detach()
        positions = None
        if self.sine is not None:
            encoded = self.sine(reference).to(self.positions.weight.dtype)
            of_boxes = self.positions_norm(self.positions(encoded))
            positions, content = of_boxes.chunk(2, dim=-1)
        elif self.content is None:
            content = features.detach()
        else:
            content, reference, missing = self._of_groups(reference, missing)
        proposals = ModelOutput(logits.unsqueeze(0), boxes.unsqueeze(0), self.heads.scoring)
        return Queries(content, reference, positions, proposals, missing)

    def _scores(self, tokens: Tensor) -> Tensor:
        """Return (B, S) scores without a gradient."""
        # Not under `no_grad`: autocast would remember weights that are cut off from theirs.
        logits = self.heads.class_head(self.norm(self.transform(tokens))).detach()
        if self.scored_by_first:
            return logits[..., 0]
        if self.heads.scoring == "softmax":  # `no object` is the last column
            wide = torch.promote_types(logits.dtype, torch.float32)
            return logits.log_softmax(-1, dtype=wide)[..., :-1].amax(-1)
        return logits.amax(-1)

    def _best(self, scores: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the (B, Q) places of the best tokens, and which stand for none."""
        size = scores.shape[1]
        # A size that is a symbol may be any.
        lacking = isinstance(size, torch.SymInt) or size < self.num_queries
        if padding_mask is None and not lacking:
            return scores.topk(self.num_queries, dim=1).indices, None
        if padding_mask is not None:
            scores = scores.masked_fill(padding_mask, -torch.inf)
        before = self.num_queries if lacking else 0
        best, index = F.pad(scores, (before, 0), value=-torch.inf).topk(self.num_queries, dim=1)
        return (index - before).clamp(min=0), best == -torch.inf

    def _proposals(self, features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, Q, C) logits and (B, Q, 4) boxes, in single precision at least."""
        logits, deltas = self.heads.class_head(features), self.heads.box_head(features)
        wide = torch.promote_types(logits.dtype, torch.float32)
        if self.scored_by_first:
            logits = logits[..., :1].expand_as(logits)
        return logits.to(wide), (deltas.to(wide) + anchors.to(wide)).sigmoid()

    def _of_groups(
        self, reference: Tensor, missing: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the learned content, and the boxes that all groups share, repeated for each."""
        assert self.content is not None
        groups = self.groups if self.training else 1
        content = self.content.weight[: groups * self.num_queries]
        content = for_each(reference.shape[0], content)
        if missing is not None:
            missing = missing.repeat(1, groups)
        return content, reference.repeat(1, groups, 1), missing


def _at(rows: Tensor, index: Tensor) -> Tensor:
    """Return (B, Q, ...) out of (B, S, ...)."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
