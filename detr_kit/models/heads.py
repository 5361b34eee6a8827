"""The heads that turn query features into classes and boxes."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.models.linear import Linear
from detr_kit.structures import ModelOutput, Scoring

# What a class head with sigmoids says of every category before it has learned anything: most
# queries find nothing (Lin et al. 2017, "Focal Loss for Dense Object Detection", section 4.1).
PRIOR = 0.01


class HeadMLP(nn.Module):
    """Linear layers with ReLU between them; hidden layers are as wide as the input."""

    def __init__(self, dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [dim] * num_layers + [out_dim]
        self.layers = nn.ModuleList(Linear(before, after) for before, after in pairwise(widths))

    @property
    def last(self) -> Linear:
        layer = self.layers[-1]
        assert isinstance(layer, Linear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class DetectionHeads(nn.Module):
    """A class head and a box head of three layers.

    `class_head.layers[-1]` and `box_head.layers[-1]` are the output layers in all families. With
    softmax scoring the class head has a column for `no object` after the `num_classes` others;
    with sigmoids it has none, and its bias starts where every category has a probability of 0.01.
    `zero_boxes` lets the box head begin with zeros, so that boxes refined by it begin as given.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        class_layers: int,
        scoring: Scoring = "softmax",
        zero_boxes: bool = False,
    ) -> None:
        super().__init__()
        self.scoring = scoring
        self.num_columns = num_classes + (scoring == "softmax")
        self.class_head = HeadMLP(dim, self.num_columns, class_layers)
        self.box_head = HeadMLP(dim, 4, 3)
        if scoring == "sigmoid":
            nn.init.constant_(self.class_head.last.bias, -math.log((1 - PRIOR) / PRIOR))
        if zero_boxes:
            nn.init.zeros_(self.box_head.last.weight)
            nn.init.zeros_(self.box_head.last.bias)

    def forward(self, features: Tensor) -> ModelOutput:
        """Map (L, B, Q, D) features to logits and boxes, in single precision at least."""
        logits, boxes = self.class_head(features), self.box_head(features)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return ModelOutput(logits.to(wide), boxes.to(wide).sigmoid(), self.scoring)
