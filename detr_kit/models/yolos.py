"""YOLOS: a plain ViT with detection tokens, and heads on them (Fang et al. 2021)."""

from __future__ import annotations

from torch import nn

from detr_kit.models.heads import DetectionHeads
from detr_kit.models.vit import ViT
from detr_kit.structures import ImageBatch, ModelOutput, TracedBatch


class YOLOS(nn.Module):
    """Assembles built parts of one width."""

    def __init__(self, backbone: ViT, heads: DetectionHeads) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads

    def forward(
        self, batch: ImageBatch | TracedBatch, all_layers: bool | None = None
    ) -> ModelOutput:
        """Detect objects; there is one layer of outputs whatever `all_layers` says."""
        return self.heads(self.backbone(batch).unsqueeze(0))
