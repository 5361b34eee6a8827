"""The heads that turn query features into classes and boxes."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.models.linear import Linear
from detr_kit.structures import ModelOutput


class HeadMLP(nn.Module):
    """Linear layers with ReLU between them; hidden layers are as wide as the input."""

    def __init__(self, dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [dim] * num_layers + [out_dim]
        self.layers = nn.ModuleList(Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class DetectionHeads(nn.Module):
    """A class head with a column for `no object`, and a box head of three layers.

    `class_head.layers[-1]` and `box_head.layers[-1]` are the output layers in both families.
    """

    def __init__(self, dim: int, num_classes: int, *, class_layers: int) -> None:
        super().__init__()
        self.class_head = HeadMLP(dim, num_classes + 1, class_layers)
        self.box_head = HeadMLP(dim, 4, 3)

    def forward(self, features: Tensor) -> ModelOutput:
        """Map (L, B, Q, D) features to logits and boxes, in single precision at least."""
        logits, boxes = self.class_head(features), self.box_head(features)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return ModelOutput(logits.to(wide), boxes.to(wide).sigmoid())
