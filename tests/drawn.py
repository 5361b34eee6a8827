"""Weights that hide nothing: no value is at the start where it would take no part."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def draw_values(model: nn.Module) -> None:
    """Draw affine values, statistics of norms, positions and tokens, from torch's own stream."""
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith("running_mean"):
            tensor.normal_(0, 0.3)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor) * 0.2)
        elif "pos_embed" in key or "token" in key:
            tensor.normal_(0, 0.5)
