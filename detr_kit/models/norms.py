"""What takes the place of a CNN's batch norms: frozen ones, or group norm."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_kit.models.extents import Extents

NormKind = Literal["frozen", "batch", "group"]


class FrozenBatchNorm2d(nn.Module):
    """A batch norm whose statistics and scale are constants, whatever train() says.

    It keeps the layer's own eps and, for timm's `BatchNormAct2d`, the activation that follows.
    Where the convolution before it computes it too (`folded`), only the activation is left to do.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, eps: float, act: nn.Module) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.act = act
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        if self.folded:
            return self.act(x)
        normalized = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
        return self.act(normalized)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return (C,) constants of x * scale + shift, in single precision at least."""
        wide = torch.promote_types(self.running_var.dtype, torch.float32)
        # Rounded once, at the end: they are computed rarely.
        weight, bias, mean, variance = (
            buffer.double()
            for buffer in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight / (variance + self.eps).sqrt()
        return scale.to(wide), (bias - mean * scale).to(wide)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # A constant counts no batches.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class ExtentGroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018) whose statistics leave out what lies outside each image."""

    def __init__(self, num_channels: int, *, eps: float, act: nn.Module, extents: Extents) -> None:
        super().__init__(math.gcd(32, num_channels), num_channels, eps=eps)
        self.act = act
        self.extents = extents

    def forward(self, x: Tensor) -> Tensor:
        mask = self.extents.mask_of(x, self)
        if mask is None:
            return self.act(super().forward(x))
        inside = (~mask).unsqueeze(1).to(x.dtype)  # (B, 1, 1, h, w)
        groups = x.unflatten(1, (self.num_groups, -1))  # (B, g, C / g, h, w)
        count = inside.sum((2, 3, 4), keepdim=True) * groups.shape[2]
        mean = (groups * inside).sum((2, 3, 4), keepdim=True) / count
        centered = groups - mean
        variance = (centered.square() * inside).sum((2, 3, 4), keepdim=True) / count
        normalized = (centered * (variance + self.eps).rsqrt()).flatten(1, 2)
        return self.act(normalized * self.weight[:, None, None] + self.bias[:, None, None])


def replace_batch_norms(body: nn.Module, kind: NormKind, extents: Extents) -> None:
    """Replace every batch norm in place, keeping names, values, eps and activations."""
    if kind == "batch":
        return
    for name, child in body.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            replace_batch_norms(child, kind, extents)
            continue
        act = getattr(child, "act", nn.Identity())
        if kind == "group":
            new: nn.Module = ExtentGroupNorm(
                child.num_features, eps=child.eps, act=act, extents=extents
            )
        else:
            new = FrozenBatchNorm2d(child.num_features, eps=child.eps, act=act)
            new.load_state_dict(child.state_dict(), strict=False)
        setattr(body, name, new.to(child.weight.device))
