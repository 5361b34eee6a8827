"""Detectors whose queries carry reference points or boxes: Deformable DETR and what grew from it.

Sources: Zhu et al. 2021 ("Deformable DETR"), Liu et al. 2022 ("DAB-DETR"), Zhang et al. 2023
("DINO"), Zhao et al. 2024 ("RT-DETR"), Lv et al. 2024 ("RT-DETRv2").

Shape legend: B images, L layers, Q queries of a group, P denoising queries, N of all kinds, S
memory tokens, C columns of the class head.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.models.anchor_decoder import AnchorDecoder
from detr_kit.models.backbones import Backbone
from detr_kit.models.deformable_encoder import DeformableEncoder
from detr_kit.models.denoising import Denoised, Denoising, blocked_queries
from detr_kit.models.heads import DetectionHeads
from detr_kit.models.hybrid_encoder import HybridEncoder
from detr_kit.models.positions import MemoryPositions
from detr_kit.models.projections import LevelProjections
from detr_kit.models.pyramid import Pyramid, flatten_levels
from detr_kit.models.queries import LearnedAnchors, LearnedQueries, Queries, by_group
from detr_kit.models.selection import SelectedQueries
from detr_kit.models.transformer import Encoder
from detr_kit.structures import (
    DenoisedOutput,
    ImageBatch,
    ModelOutput,
    Scoring,
    TargetBatch,
    TracedBatch,
)

# The logit of every category for a query that stands for nothing: a probability of 2e-9.
_UNLIKELY = -20.0


class DeformableDETR(nn.Module):
    """Assembles built parts; `heads` are one `DetectionHeads` a decoder layer, or one for all.

    `memory_positions` are for dense attention, in the encoder or in the decoder. `groups` are
    those of the queries.
    """

    def __init__(
        self,
        backbone: Backbone,
        projections: LevelProjections,
        encoder: DeformableEncoder | HybridEncoder | Encoder,
        queries: LearnedQueries | LearnedAnchors | SelectedQueries,
        decoder: AnchorDecoder,
        heads: nn.ModuleList,
        *,
        memory_positions: MemoryPositions | None = None,
        denoising: Denoising | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_proj = projections
        self.encoder = encoder
        self.memory_positions = memory_positions
        self.queries = queries
        self.decoder = decoder
        self.heads = heads
        self.denoising = denoising
        self.groups = groups

    @property
    def scoring(self) -> Scoring:
        return self._last_heads.scoring

    @property
    def num_columns(self) -> int:
        """How many columns the class heads have, with one for `no object` if they softmax."""
        return self._last_heads.num_columns

    @property
    def wants_targets(self) -> bool:
        """Whether training is to hand the objects to `forward`."""
        return self.denoising is not None

    @property
    def _last_heads(self) -> DetectionHeads:
        heads = self.heads[-1]
        assert isinstance(heads, DetectionHeads)
        return heads

    def forward(
        self,
        batch: ImageBatch | TracedBatch,
        all_layers: bool | None = None,
        targets: TargetBatch | None = None,
    ) -> ModelOutput:
        """Detect objects; outputs of all decoder layers if `all_layers`, None: in training.

        In training, `targets` on the model's device are the objects that denoising queries repeat,
        and with `all_layers` the proposals that queries were selected by are the first layer.
        """
        if all_layers is None:
            all_layers = self.training
        memory, memory_positions = self._encoded(batch)
        queries: Queries = self.queries(memory)
        denoised = None
        if self.training and self.denoising is not None:
            denoised = None if targets is None else self.denoising(targets)
            if denoised is None:
                queries = replace(queries, content=queries.content + self.denoising.nothing())
        groups = self.groups if self.training else 1
        together, hidden, blocked = self._together(queries, denoised, groups)
        logits, boxes = self.decoder(
            together,
            memory,
            self.heads,
            memory_positions=memory_positions,
            blocked=blocked,
            hidden=hidden,
            all_layers=all_layers,
        )
        if not (self.training and all_layers):
            queries = replace(queries, proposals=None)
        output = _by_group(logits, boxes, queries, groups, self.scoring)
        if queries.proposals is not None and isinstance(self.queries, SelectedQueries):
            output = replace(output, first_is_of_any=self.queries.scored_by_first)
        if denoised is None:
            return output
        first = queries.content.shape[1]
        of_denoised = DenoisedOutput(logits[:, :, first:], boxes[:, :, first:], denoised.plan)
        return replace(output, denoised=of_denoised)

    def _encoded(self, batch: ImageBatch | TracedBatch) -> tuple[Pyramid, Tensor | None]:
        """Return the memory, and (B or 1, S, D) positions for attention to all of it."""
        levels = self.input_proj(self.backbone.levels(batch), batch.padding_mask)
        if isinstance(self.encoder, HybridEncoder):
            levels = self.encoder(levels)
        memory = flatten_levels(levels)
        positions = None if self.memory_positions is None else self.memory_positions(memory)
        if isinstance(self.encoder, DeformableEncoder):
            memory = self.encoder(memory)
        elif isinstance(self.encoder, Encoder):
            tokens = self.encoder(memory.tokens, positions, memory.padding_mask)
            memory = memory.with_tokens(tokens)
        return memory, positions

    def _together(
        self, queries: Queries, denoised: Denoised | None, groups: int
    ) -> tuple[Queries, Tensor | None, Tensor | None]:
        """Return the queries of all kinds, the (B, N) that none sees, and who sees whom (N, N).

        A denoising query without object is seen by none, so that nothing depends on how many
        objects the other images of a batch have.
        """
        count, device = self.queries.num_queries, queries.content.device
        if denoised is None:
            return queries, queries.missing, blocked_queries(groups, count, 0, 0, device)
        hidden = ~denoised.plan.present
        first, added = queries.content.shape[1], hidden.shape[1]
        if queries.missing is None:
            hidden = F.pad(hidden, (first, 0), value=False)
        else:
            hidden = torch.cat([queries.missing, hidden], dim=1)
        together = replace(
            queries,
            content=torch.cat([queries.content, denoised.content.to(queries.content.dtype)], 1),
            reference=torch.cat([queries.reference, denoised.reference], 1),
        )
        copies = denoised.plan.copies
        return together, hidden, blocked_queries(groups, count, added, copies, device)


def _by_group(
    logits: Tensor, boxes: Tensor, queries: Queries, groups: int, scoring: Scoring
) -> ModelOutput:
    """Return each group's layers, its proposals before them; the group that predicts is the last.

    `logits` is (L, B, N, C), `boxes` (L, B, N, 4).
    """
    count = queries.content.shape[1]
    parts = [by_group(rows[:, :, :count], groups, dim=2) for rows in (logits, boxes)]
    proposals = queries.proposals
    if proposals is not None:
        of_all = (proposals.layer_logits, proposals.layer_boxes_cxcywh)
        parts = [
            torch.cat([proposed.expand(groups, *proposed.shape), rows], dim=1)
            for proposed, rows in zip(of_all, parts, strict=True)
        ]
    layer_logits, layer_boxes = (rows.flatten(0, 1) for rows in parts)
    if queries.missing is None:
        return ModelOutput(layer_logits, layer_boxes, scoring, groups)
    missing = queries.missing[:, : count // groups]
    nothing = torch.full_like(layer_logits[0, 0, 0], _UNLIKELY)
    if scoring == "softmax":  # `no object` is the last column
        nothing = F.pad(nothing[1:], (0, 1), value=-_UNLIKELY)
    layer_logits = torch.where(missing.unsqueeze(-1), nothing, layer_logits)
    layer_boxes = layer_boxes.masked_fill(missing.unsqueeze(-1), 0.5)
    return ModelOutput(layer_logits, layer_boxes, scoring, groups, missing=missing)
