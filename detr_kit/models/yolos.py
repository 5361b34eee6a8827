"""YOLOS: a plain ViT with detection tokens, and heads on them (Fang et al. 2021)."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from detr_kit.models.heads import DetectionHeads
from detr_kit.models.queries import by_group
from detr_kit.models.vit import ViT
from detr_kit.structures import ImageBatch, ModelOutput, Scoring, TracedBatch


class YOLOS(nn.Module):
    """Assembles built parts of one width."""

    def __init__(self, backbone: ViT, heads: DetectionHeads) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads

    @property
    def scoring(self) -> Scoring:
        return self.heads.scoring

    @property
    def num_columns(self) -> int:
        """How many columns the class head has, with one for `no object` if it softmaxes."""
        return self.heads.num_columns

    def forward(
        self, batch: ImageBatch | TracedBatch, all_layers: bool | None = None
    ) -> ModelOutput:
        """Detect objects; there is one layer of outputs whatever `all_layers` says.

        In training with groups of detection tokens, there is one of each group.
        """
        features, groups = self.backbone(batch), self.backbone.active_groups
        if groups == 1:
            return self.heads(features.unsqueeze(0))
        return replace(self.heads(by_group(features, groups, dim=1)), groups=groups)
