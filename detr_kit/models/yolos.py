"""YOLOS: a plain ViT with detection tokens, and heads on them (Fang et al. 2021)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from detr_kit.models.heads import DetectionHeads
from detr_kit.models.queries import by_group
from detr_kit.models.vit import ViT
from detr_kit.structures import ImageBatch, ModelOutput, PatchOutput, Scoring, TracedBatch


class YOLOS(nn.Module):
    """Assembles built parts of one width.

    With `patch_supervision` the heads read the patches too in training, so that these learn to
    tell what they are part of (Zong et al. 2023, "DETRs with Collaborative Hybrid Assignments
    Training", section 3.2, with the detector's own heads in the place of further ones).
    """

    def __init__(
        self, backbone: ViT, heads: DetectionHeads, *, patch_supervision: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads
        self.patch_supervision = patch_supervision

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
        if not (self.training and self.patch_supervision):
            return self._of_tokens(self.backbone(batch))
        assert isinstance(batch, ImageBatch)
        features = self.backbone(batch, with_patches=True)
        tokens = self.backbone.active_groups * self.backbone.num_detection_tokens
        of_patches = self.heads(features[None, :, :-tokens])
        patches = PatchOutput(
            of_patches.layer_logits,
            of_patches.layer_boxes_cxcywh,
            self.backbone.patch_centers(batch),
            self.backbone.patches_outside(batch),
        )
        return replace(self._of_tokens(features[:, -tokens:]), patches=patches)

    def _of_tokens(self, features: Tensor) -> ModelOutput:
        """Return what the heads make of the groups' (B, G * Q, D) features."""
        groups = self.backbone.active_groups
        if groups == 1:
            return self.heads(features.unsqueeze(0))
        return replace(self.heads(by_group(features, groups, dim=1)), groups=groups)
