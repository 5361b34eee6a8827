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


@torch.no_grad()
def draw_scales(module: nn.Module, *, kernels: bool = False) -> nn.Module:
    """Draw statistics, and move scales and biases, from a stream of its own; return the module.

    `kernels` draws convolutions anew, which start so small that cells would hardly differ.
    """
    generator = torch.Generator().manual_seed(2)
    for key, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if key.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor.ndim == 1:
            tensor.add_(0.3 * noise)
        elif tensor.ndim == 4 and kernels:
            tensor.copy_(noise * (3 / tensor[0].numel()) ** 0.5)
    return module
